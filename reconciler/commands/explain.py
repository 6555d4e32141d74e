"""`reconciler explain`: what would become of a packet now, and why. Changes nothing, and sends nothing."""

import argparse
import json
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from bpf.kernel import Instance, KernelError, NotLoaded, NotPermitted
from reconciler import dry, explaining, shadows, supposing
from reconciler.commands import Commands, add_place, run_dir
from reconciler.expect import HERE, stage
from reconciler.expectations import packet_of
from reconciler.explaining import Answer, Question, World
from reconciler.explanation import Told, document, text
from reconciler.loop import Place, applied
from reconciler.maps import PinnedMaps
from reconciler.model import Config, Node, Packet, Proto
from reconciler.names import Names
from reconciler.packet.build import SYN, flags_of, frame
from reconciler.shadows import Watched
from reconciler.standing import WHOLE
from reconciler.start import DONE, FAILED, USAGE, node_of
from reconciler.supposing import NoSuchBackend, Supposed

DEFAULT = Path("/etc/evenkeel/lb.yaml")
MOST_TAGS, LARGEST_TAG = 2, 4094
EXAMPLES = """\
examples:
  reconciler explain "198.51.100.7:41000 -> 192.0.2.10:443/tcp"
  reconciler explain "[2001:db8::7]:41000 -> [2001:db8::10]:53/udp" --interface eth0 --vlan 7
  reconciler explain "198.51.100.7:41000 -> 192.0.2.10:443/tcp" --flags ack
        an ACK: what a packet of a connection meets that is established
  reconciler explain "198.51.100.7:41000 -> 192.0.2.10:443/tcp" --if-down web/web2
        ... if web2's checks failed
  reconciler explain "198.51.100.7:41000 -> 192.0.2.10:443/tcp" --config new.yaml
        ... after that file was applied; with --plan after /etc/evenkeel/lb.yaml was
  reconciler explain "10.1.2.101:8080 -> 198.51.100.7:41000/tcp" --flags syn,ack
        a backend's reply

The program itself is asked, in a copy that is attached nowhere and knows what the live one knows of
this flow. Where there is no live one, --config asks with every backend healthy.

exit codes: 0 explained; 1 cannot, or trace and program disagree; 3 configuration rejected; 64 usage
"""


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "explain",
        help="what would become of a packet, and why",
        description="Say what the program would do with a packet now, and how it comes to that.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "packet", metavar="PACKET", help="SOURCE:PORT -> DESTINATION:PORT/tcp or udp"
    )
    parser.add_argument(
        "--flags", metavar="FLAGS", help="of TCP: syn (the default), ack, fin,ack ..."
    )
    parser.add_argument("--interface", metavar="NAME", help="where it comes in")
    parser.add_argument(
        "--vlan",
        action="append",
        type=int,
        metavar="ID",
        help="its tag; twice: the outer one first",
    )
    _add_suppositions(parser)
    parser.add_argument("--output", dest="format", choices=("text", "json"), default="text")
    add_place(parser)
    parser.set_defaults(run=run)


def _add_suppositions(parser: argparse.ArgumentParser) -> None:
    asked = parser.add_argument_group("what if")
    for option, word in (("--if-down", "failed"), ("--if-up", "passed")):
        asked.add_argument(
            option,
            action="append",
            default=[],
            metavar="POOL/BACKEND",
            help=f"if its checks {word}; may be given again",
        )
    asked.add_argument("--plan", action="store_true", help=f"after {DEFAULT} was applied")
    asked.add_argument(
        "--config", dest="services", type=Path, metavar="FILE", help="after this file was applied"
    )
    asked.add_argument(
        "--node", type=Path, default=argparse.SUPPRESS, metavar="FILE", help="goes with these"
    )


def run(options: argparse.Namespace) -> int:
    try:
        packet, flags = _packet(options)
        with ExitStack() as stack:
            told = _told(options, packet, flags, stack)
    except (_Usage, NoSuchBackend) as error:
        print(f"reconciler explain: {error}", file=sys.stderr)
        return USAGE
    print(json.dumps(document(told), indent=1) if options.format == "json" else text(told))
    return FAILED if told.answer.differences else DONE


# ---- what is asked


class _Usage(Exception):
    """An argument that cannot be."""


def _packet(options: argparse.Namespace) -> tuple[Packet, int]:
    packet = packet_of(options.packet)
    if isinstance(packet, str):
        raise _Usage(f'{packet}; as in "198.51.100.7:41000 -> 192.0.2.10:443/tcp"')
    if options.flags and packet.proto is not Proto.TCP:
        raise _Usage("--flags: only TCP has any")
    flags = SYN if options.flags is None else flags_of(options.flags)
    if flags is None:
        raise _Usage(f"--flags {options.flags}: syn, ack, fin, rst, psh, urg, with commas; or none")
    tags = options.vlan or []
    if len(tags) > MOST_TAGS or any(not 0 <= tag <= LARGEST_TAG for tag in tags):
        raise _Usage(f"--vlan: at most {MOST_TAGS} tags of 0 to {LARGEST_TAG}")
    return packet, flags


def _question(options: argparse.Namespace, packet: Packet, flags: int, otherwise: int) -> Question:
    tags = options.vlan or []
    ifindex = otherwise
    if options.interface:
        try:
            ifindex = socket.if_nametoindex(options.interface)
        except OSError as error:
            raise OSError(f"--interface {options.interface}: {error}") from error
    return Question(packet, frame(packet, flags, tags), flags, ifindex, len(tags))


# ---- who is asked


def _told(options: argparse.Namespace, packet: Packet, flags: int, stack: ExitStack) -> Told:
    path = options.services or (DEFAULT if options.plan else None)
    try:
        live = stack.enter_context(Instance.open(options.instance, read_only=True))
    except (NotLoaded, NotPermitted, PermissionError) as error:
        if path is None:
            hint = "--config FILE explains what a file would do, without a live data plane"
            raise KernelError(f"{error}. {hint}") from error
        return _of_file(options, path, packet, flags, stack)
    at = next((one.ifindex for one in live.attachments()), HERE)
    question = _question(options, packet, flags, at)
    supposed = Supposed(tuple(options.if_down), tuple(options.if_up))
    if path is None and not supposed:
        return _of_live(options, live, question, stack)
    return _of_plan(options, path, supposed, live, question, stack)


def _of_live(
    options: argparse.Namespace, live: Instance, question: Question, stack: ExitStack
) -> Told:
    state, config = PinnedMaps(live).read(), applied(_place(options))
    size = max((pool.size for pool in state.pools.values()), default=0)
    names = Names.of((None, config or Config({}, {})), size, state)
    shadow = stack.enter_context(shadows.of_live(live))
    world = World(
        state, lambda: dict(live.maps.health.items()), names, _commit(live), _interfaces(), live
    )
    notes = (
        [] if config else ["what was applied last is not known by name: run the reconciler once"]
    )
    mine, theirs = shadow.program_info().tag, live.program_info().tag
    if mine != theirs:
        notes.append(f"the live program is another version (tag {theirs}); asked is {mine}")
    answer = explaining.ask(question, world, Watched(shadow, state))
    return Told(answer, world, "the program itself, in a shadow over the live maps", notes)


def _of_plan(
    options: argparse.Namespace,
    path: Path | None,
    supposed: Supposed,
    live: Instance,
    question: Question,
    stack: ExitStack,
) -> Told:
    """As it would be: the maps that the reconciler would leave, in a shadow of their own."""
    node, place = node_of(options.node), _place(options)
    before = applied(place)
    config = _loaded(path, node) if path else before
    if config is None:
        raise KernelError(
            f"{place.run_dir / WHOLE}: not there, so names are not known: add --config FILE"
        )
    found, _, _ = dry.found(config, node, place)
    view, health, notes = supposing.view(config, node, found, supposed)
    names = Names.of((before, config), node.table_size, found.actual, view.held)
    commit = "" if path else _commit(live)
    shadow = stack.enter_context(shadows.of_state(view.held, health))
    world = World(view.held, lambda: health, names, commit, _interfaces(), live)
    answer = explaining.ask(question, world, Watched(shadow, view.held))
    return Told(
        answer, world, "the program itself, in a shadow with the maps that there would be", notes
    )


def _of_file(
    options: argparse.Namespace, path: Path, packet: Packet, flags: int, stack: ExitStack
) -> Told:
    """Nothing is loaded here, or may be read: by the file alone."""
    node = node_of(options.node) if options.node.exists() else None
    config = _loaded(path, node)
    node = node or Node(interfaces={})
    staged = stage(config, node)
    supposed = Supposed(tuple(options.if_down), tuple(options.if_up))
    state, health = supposing.staged(staged, supposed)
    names = Names.of((None, config), node.table_size, state)
    world = World(state, lambda: health, names)
    question = _question(options, packet, flags, HERE)
    notes = [
        "by the file alone: every backend counts as healthy and reachable, and no flow is known"
    ]
    try:
        shadow = stack.enter_context(shadows.of_state(state, health))
    except (KernelError, OSError) as error:
        why = str(error).partition("\n")[0]
        answer = explaining.ask_model(question, world)
        return Told(answer, world, f"the reference model (no program: {why})", notes)
    answer = _bare(explaining.ask(question, world, Watched(shadow, state)))
    return Told(answer, world, "the program itself, in a shadow", notes)


def _bare(answer: Answer) -> Answer:
    """Next hops of a file are stand-ins: what is said of them is not worth saying."""
    steps = tuple(step for step in answer.trace.steps if step.about != "next hop")
    return replace(answer, trace=replace(answer.trace, steps=steps))


def _loaded(path: Path, node: Node | None) -> Config:
    _, config = dry.loaded(path, node, "--config")
    return config


def _place(options: argparse.Namespace) -> Place:
    return Place(options.instance, run_dir(options), options.state_dir)


def _commit(live: Instance) -> str:
    meta = live.maps.meta.get(0)
    return meta.commit.decode() if meta is not None else ""


def _interfaces() -> dict[int, str]:
    named: Sequence[tuple[int, str]] = socket.if_nameindex()
    return dict(named)
