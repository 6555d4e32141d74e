"""`reconciler replay`: a capture through a shadow of the program, packet by packet. Changes nothing."""

import argparse
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, TextIO

from bpf.kernel import Instance, NotLoaded, NotPermitted
from reconciler import dry, fates, shadows
from reconciler.capture import CaptureError, frames
from reconciler.commands import Commands, add_place, run_dir
from reconciler.expect import HERE, stage
from reconciler.fates import NOT_REPLAYED, Replayed, Tally
from reconciler.loop import Place, applied
from reconciler.maps import PinnedMaps
from reconciler.model import Config, Node
from reconciler.names import Names
from reconciler.packet.text import lines
from reconciler.replaying import Lane, replay
from reconciler.shadows import Watched
from reconciler.start import DONE, FAILED, node_of
from reconciler.verdicts import BY_NAME

FLOWS = 65536  # entries of a shadow's own maps: a large node's twice would be too much
EVERY = 0.5  # seconds between two words on how far it is
EXAMPLES = """\
examples:
  ssh client tcpdump -i eth0 -w - -c 1000 | reconciler replay -
  reconciler replay lost.pcapng --only no_backend --decode --limit 10
        the first ten packets that found no backend, every field of them
  reconciler replay day.pcap --config new.yaml --against old.yaml
        which packets and flows would go elsewhere; every backend counts as healthy
  reconciler replay day.pcap --output json | jq -r 'select(.verdict == "gated") | .tuple'

Capture where packets are whole: at the client, or on a mirror port. On the balancer itself tcpdump sees only
what the program leaves to the kernel.

Flows start with the capture: what the node knew before is not in it. Routes towards clients are those
of this machine. Time does not pass between packets, but gates open anew with each second.

exit codes: 0 replayed; 1 cannot, or the capture is broken (what was read before it counts);
3 configuration rejected; 64 usage
"""


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "replay",
        help="what becomes of each packet of a capture",
        description="Send a capture through a shadow of the program, and say what becomes of each packet.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("capture", metavar="CAPTURE", help="pcap or pcapng of Ethernet; -: stdin")
    _add_configuration(parser)
    parser.add_argument("--decode", action="store_true", help="every field of every layer, too")
    parser.add_argument(
        "--only",
        choices=(*BY_NAME, NOT_REPLAYED),
        metavar="VERDICT",
        help="print packets of this verdict; the summary counts all",
    )
    parser.add_argument("--service", metavar="NAME", help="print packets of this service")
    parser.add_argument("--limit", type=_count, metavar="N", help="print at most N packets")
    parser.add_argument("--output", dest="format", choices=("text", "json"), default="text")
    parser.set_defaults(run=run)


def _add_configuration(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        dest="services",
        type=Path,
        metavar="FILE",
        help="not what the node has now, but this file, with every backend healthy",
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="with --config: which packets would go elsewhere than with this file",
    )
    parser.add_argument(
        "--node", type=Path, default=argparse.SUPPRESS, metavar="FILE", help="goes with --config"
    )
    parser.add_argument("--interface", metavar="NAME", help="where packets come in")
    add_place(parser)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: a number is wanted")
    return int(text)


def run(options: argparse.Namespace) -> int:
    if options.against and not options.services:
        print("reconciler replay: --against compares with --config FILE", file=sys.stderr)
        return 64
    with ExitStack() as stack:
        source = stack.enter_context(_opened(options.capture))
        lane, against = _lanes(options, stack)
        try:
            return _print_all(options, source, lane, against)
        except BrokenPipeError:  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return DONE


def _opened(name: str) -> contextlib.AbstractContextManager[BinaryIO]:
    if name == "-":
        return contextlib.nullcontext(sys.stdin.buffer)
    return Path(name).open("rb")


# ---- what it is replayed with


def _lanes(options: argparse.Namespace, stack: ExitStack) -> tuple[Lane, Lane | None]:
    if not options.services:
        return _live(options, stack), None
    node = node_of(options.node) if options.node.exists() else None
    lane = _staged(options.services, "--config", node, options, stack)
    if not options.against:
        return lane, None
    return lane, _staged(options.against, "--against", node, options, stack)


def _live(options: argparse.Namespace, stack: ExitStack) -> Lane:
    """Over the configuration and health of this moment, and of every later one."""
    try:
        live = stack.enter_context(Instance.open(options.instance, read_only=True))
    except (NotLoaded, NotPermitted) as error:
        hint = "--config FILE replays with a file instead; either needs the right to load programs"
        raise type(error)(f"{error}. {hint}") from error
    state = PinnedMaps(live).read()
    config = applied(Place(options.instance, run_dir(options), options.state_dir))
    size = max((pool.size for pool in state.pools.values()), default=0)
    names = Names.of((None, config or Config({}, {})), size, state)
    attached = next((one.ifindex for one in live.attachments()), HERE)
    shadow = stack.enter_context(shadows.of_live(live, FLOWS))
    return Lane(Watched(shadow, state), state, names, _ifindex(options, attached))


def _staged(
    path: Path, option: str, node: Node | None, options: argparse.Namespace, stack: ExitStack
) -> Lane:
    _, config = dry.loaded(path, node, option)
    node = node or Node(interfaces={})
    staged = stage(config, node)
    shadow = stack.enter_context(shadows.of_state(staged.state, staged.health, FLOWS))
    names = Names.of((None, config), node.table_size, staged.state)
    return Lane(Watched(shadow, staged.state), staged.state, names, _ifindex(options, HERE))


def _ifindex(options: argparse.Namespace, otherwise: int) -> int:
    if not options.interface:
        return otherwise
    try:
        return socket.if_nametoindex(options.interface)
    except OSError as error:
        raise OSError(f"--interface {options.interface}: {error}") from error


# ---- what is printed


def _print_all(
    options: argparse.Namespace, source: BinaryIO, lane: Lane, against: Lane | None
) -> int:
    tally, printed, error = Tally(), 0, ""
    settings = lane.state.settings.get(0)
    port = settings.gue_port if settings else 0
    progress = _Progress(source, sys.stderr)
    try:
        for one in replay(frames(source), lane, against, tally, port):
            if _wanted(one, options) and (options.limit is None or printed < options.limit):
                printed += 1
                _print(one, options)
            progress.say(tally)
    except CaptureError as broken:
        error = f"{options.capture}: {broken}"
    except KeyboardInterrupt:  # of a capture that goes on: what came so far counts
        error = f"{options.capture}: interrupted"
    progress.clear()
    _print_summary(tally, error, options, compared=against is not None)
    return FAILED if error else DONE


def _wanted(one: Replayed, options: argparse.Namespace) -> bool:
    fits = [one.fate, *([one.against] if one.against is not None else [])]
    if options.only and all(fate.verdict != options.only for fate in fits):
        return False
    return not options.service or any(fate.service == options.service for fate in fits)


def _print(one: Replayed, options: argparse.Namespace) -> None:
    if options.format == "json":
        print(json.dumps(one.document(layers=options.decode)))
        return
    print(f"#{one.number} {_clock(one.time)} {one.decoded.tuple or 'no IP'}: {_said(one)}")
    for note in _notes(one):
        print(f"    {note}")
    for line in lines(one.decoded) if options.decode else ():
        print(f"    {line}")


def _clock(stamp: int | None) -> str:
    if stamp is None:
        return "-"
    seconds, rest = divmod(stamp, 10**9)
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09}Z"
    except (OverflowError, ValueError, OSError):
        return f"{seconds}.{rest:09}"


def _said(one: Replayed) -> str:
    action = f" ({one.fate.action})" if one.fate.action else ""
    return f"{one.fate}{action}: {one.fate.why}"


def _notes(one: Replayed) -> Iterator[str]:
    if one.moved_from:
        yield f"FLOW MOVED: it went to {one.moved_from} before"
    if one.elsewhere:
        yield f"ELSEWHERE: with --against {one.against}"
    if one.captured < one.length:
        yield f"cut: {one.captured} of {one.length} bytes captured, the rest taken for zero"
    if one.decoded.problem and not one.decoded.cut:
        yield f"malformed: {one.decoded.problem}"
    yield from one.decoded.wrong_sums


def _print_summary(
    tally: Tally, error: str, options: argparse.Namespace, *, compared: bool
) -> None:
    if options.format == "json":
        print(json.dumps(tally.document(error, compared=compared)))
    else:
        print("\n".join(fates.summary(tally, compared=compared)))
    if error:
        print(f"reconciler replay: {error}", file=sys.stderr)


class _Progress:
    """How far it is, for who waits at a terminal."""

    def __init__(self, source: BinaryIO, screen: TextIO) -> None:
        self._source, self._screen = source, screen
        self._on = screen.isatty() and not sys.stdout.isatty()
        self._next = time.monotonic() + EVERY
        self._size = _size(source) if self._on else 0

    def say(self, tally: Tally) -> None:
        if not self._on or (now := time.monotonic()) < self._next:
            return
        self._next = now + EVERY
        part = f", {100 * self._source.tell() // self._size}%" if self._size else ""
        self._screen.write(f"\r{tally.packets} packets{part} ")
        self._screen.flush()

    def clear(self) -> None:
        if self._on:
            self._screen.write("\r\033[K")


def _size(source: BinaryIO) -> int:
    """Of a file; 0: it has none, as a pipe."""
    if not source.seekable():
        return 0
    size = source.seek(0, 2)
    source.seek(0)
    return size
