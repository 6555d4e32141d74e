"""`reconciler sync`: let the daemon look at its source and its maps now, and say what came of it."""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from reconciler import control
from reconciler.commands import Commands, add_place, run_dir

DONE, FAILED, REJECTED, REFUSED = 0, 1, 3, 4


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "sync",
        help="look at the source and the maps now, and wait for the outcome",
        description="Let the running reconciler look now, and wait for the outcome.",
        epilog="example:\n  git push && ssh lb1 reconciler sync\n\n"
        "exit codes: 0 the maps are what the source says; 1 they are not; 3 the content was rejected;\n"
        "4 a guardrail holds removals back",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_place(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    answer = control.ask(run_dir(options) / control.SOCKET, "sync")
    return report(answer)


def report(answer: Mapping[str, Any]) -> int:
    """What the pass after an order came to."""
    outcome = answer.get("outcome")
    if outcome is None:
        return DONE
    sys.stdout.write(f"generation {outcome['generation']}\n")
    by_type = {one["type"]: one for one in outcome["conditions"]}
    for one in outcome["conditions"]:
        if one["type"] in _CODES and not one["well"]:
            sys.stderr.write(f"reconciler: {one['type']}: {one['reason']}: {one['message']}\n")
    if by_type["InSync"]["reason"] == "RemovalsRefused":
        return REFUSED
    return next((code for kind, code in _CODES.items() if not by_type[kind]["well"]), DONE)


_CODES = {"ConfigValid": REJECTED, "SourceFresh": FAILED, "InSync": FAILED}
