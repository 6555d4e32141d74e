"""`reconciler doctor`: what on this host stands in the way of packets, and the command that mends it. Changes nothing."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bpf.errors import plainly
from bpf.kernel import KernelError
from reconciler import config as configuration
from reconciler import host, pairhost, pairing
from reconciler.commands import Commands, add_place, run_dir
from reconciler.doctor import findings, in_order
from reconciler.keepalived import Malformed
from reconciler.loop import Place, applied
from reconciler.problems import Rejected
from reconciler.start import node_of
from reconciler.start import text as text_of
from reconciler.symptoms import Finding, Level

WELL, CANNOT_LOOK, FOUND = 0, 1, 2
EXAMPLES = """\
examples:
  reconciler doctor
  reconciler doctor --node node.yaml --config lb.yaml
        before anything runs: the files say which interfaces and backends to look at
  reconciler doctor --keepalived /etc/keepalived/keepalived.conf --keepalived lb2/keepalived.conf
        also whether the pair fails over: this node's file first, then its peers'
  reconciler doctor --output json | jq -r '.findings[].mend'

exit codes: 0 nothing is wrong (notes do not count); 2 there are warnings; 1 cannot look
"""


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "doctor",
        help="check this host, and name the command that mends each finding",
        description="Check this host, and name the command that mends each finding.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--node",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="which interfaces to look at (default: /etc/evenkeel/node.yaml)",
    )
    parser.add_argument(
        "--config",
        dest="services",
        type=Path,
        metavar="FILE",
        help="which backends to look at (default: what was applied last)",
    )
    parser.add_argument(
        "--keepalived",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="also whether keepalived will run the check script, and what the weights come to;"
        " once more for each peer's file",
    )
    parser.add_argument("--output", dest="format", choices=("text", "json"), default="text")
    add_place(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    try:
        found = looked(options)
    except (KernelError, OSError, Rejected, Malformed) as error:
        print(f"reconciler doctor: cannot look: {plainly(error)}", file=sys.stderr)
        return CANNOT_LOOK
    print(document(found) if options.format == "json" else text(found))
    return FOUND if _count(found, Level.WARNING) else WELL


def looked(options: argparse.Namespace) -> tuple[Finding, ...]:
    own = node_of(options.node)
    config = applied(Place(options.instance, run_dir(options), options.state_dir))
    if options.services:
        config = configuration.load(
            text_of(options.services, "name the one to look at with --config"),
            str(options.services),
        )
    facts = host.read(own, config, options.instance)
    found = findings(facts)
    if not options.keepalived:
        return found
    pair = pairhost.read(options.keepalived, list(own.interfaces))
    outs = {reach.address: reach.out for reach in facts.reaches}
    return in_order((*found, *pairing.examined(pair), *pairing.forged(config, pair, outs)))


def document(found: Sequence[Finding]) -> str:
    return json.dumps(
        {
            "warnings": _count(found, Level.WARNING),
            "notes": _count(found, Level.NOTE),
            "findings": [finding.document() for finding in found],
        },
        indent=1,
    )


def text(found: Sequence[Finding]) -> str:
    lines = []
    for one in found:
        lines.append(f"{one.level.value:8} {one.about}: {one.what}")
        lines.append(f"{'':8}   {one.mend}")
    warnings, notes = _count(found, Level.WARNING), _count(found, Level.NOTE)
    ended = f"{warnings} warning{'s' * (warnings != 1)}, {notes} note{'s' * (notes != 1)}"
    return "\n".join([*lines, ended if found else "nothing is wrong"])


def _count(found: Sequence[Finding], level: Level) -> int:
    return sum(one.level is level for one in found)
