"""The command line: reads arguments and files, prints, and says how it went by exit code."""

import argparse
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from bpf.errors import plainly
from bpf.kernel import Instance, KernelError, NotLoaded, Sizes, instances, teardown
from bpf.pins import Pins, entries
from readiness.manager import ServiceManager
from reconciler import dry, shape, sources
from reconciler.board import Board
from reconciler.commands import add_place as add_instance
from reconciler.commands import (
    apply,
    doctor,
    explain,
    history,
    override,
    replay,
    rollback,
    status,
    suspend,
    sync,
    upgrade,
    validate,
)
from reconciler.control import SOCKET, NotRunning, Refused, Requests
from reconciler.counting import NAME as COUNTERS
from reconciler.daemon import Daemon
from reconciler.desk import Desk
from reconciler.fifo import KEPT as ROLES
from reconciler.follow import Follower
from reconciler.git import GitError
from reconciler.healthfile import NAME as HEALTH
from reconciler.heart import NAME as HEARTBEAT
from reconciler.heart import Heart
from reconciler.ids import NoRoom
from reconciler.loop import (
    LOCK,
    NotConverged,
    Place,
    Reconciler,
    applied,
    writer,
)
from reconciler.model import Node
from reconciler.neigh import Neighbours
from reconciler.observer import NAME as CONDITIONS
from reconciler.observer import Observer
from reconciler.orders import Orders
from reconciler.overrides import Unusable
from reconciler.pair import Pair
from reconciler.privilege import act_as_owner, keep_to_ourselves
from reconciler.problems import Rejected, did_you_mean
from reconciler.release import outdated
from reconciler.revision import SourceError
from reconciler.source import Poke, Source
from reconciler.standing import PARTLY, WHOLE
from reconciler.start import (
    DONE,
    FAILED,
    REJECTED,
    USAGE,
    add_place,
    collect_seldom,
    follower_of,
    node_of,
    once,
    place_of,
)

log = logging.getLogger("reconciler")
LOADING = 300.0  # seconds for the verifier, which says nothing meanwhile
EXAMPLES = """\
examples:
  reconciler --config lb.yaml --node node.yaml
        follow the files until SIGTERM; what is pinned stays and goes on forwarding
  reconciler --once --instance edge
        one pass over /etc/evenkeel/lb.yaml, then exit
  reconciler --dry-run --detailed-exitcode
        print what would change; write nothing, take no lock
  reconciler --dry-run --against main/lb.yaml --config lb.yaml
        the same between two files, for CI: no kernel, no privilege
  reconciler --dry-run --out change.plan && reconciler apply --plan change.plan
        just that, or nothing: refused when the file or the maps changed meanwhile
  reconciler validate lb.yaml
        say everything that is wrong with the file; needs no privilege
  reconciler schema > config.schema.json
        for editors that complete and explain

exit codes: 0 done, or a plan was computed; 2 changes are pending (--detailed-exitcode); 1 runtime error;
3 configuration rejected; 4 refused by a guardrail, or a stale plan; 64 usage
"""
SCHEMA_EXAMPLES = """\
examples:
  reconciler schema > config.schema.json
        of lb.yaml, for editors that complete and explain
  reconciler schema node > node.schema.json

exit codes: 0 printed; 64 usage
"""
TEARDOWN_EXAMPLES = """\
From then on nothing is forwarded. It is refused while a reconciler of that instance runs: stop that first.

examples:
  systemctl stop evenkeel-reconciler && reconciler teardown
  reconciler teardown --instance edge

exit codes: 0 done; 1 nothing is loaded, or a reconciler runs; 64 usage
"""


class _Parser(argparse.ArgumentParser):
    """argparse exits with 2 on a usage error, which here means that changes are pending."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


def parser() -> argparse.ArgumentParser:
    arguments = _Parser(
        prog="reconciler",
        description="Make the pinned BPF maps equal what lb.yaml says.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    sources.add_source(arguments)
    add_place(arguments)
    mode = arguments.add_mutually_exclusive_group()
    mode.add_argument("--once", action="store_true", help="one pass, then exit")
    mode.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan against the live maps; change nothing",
    )
    arguments.add_argument(
        "--detailed-exitcode", action="store_true", help="--dry-run: 2 when changes are pending"
    )
    arguments.add_argument(
        "--output", choices=("text", "json"), help="how --dry-run prints (default: text)"
    )
    arguments.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="--dry-run: what changes from that file to --config; needs no kernel and no privilege",
    )
    arguments.add_argument(
        "--out", type=Path, metavar="PLAN", help="--dry-run: also save the plan, for `apply`"
    )
    arguments.add_argument(
        "--allow-removals", action="store_true", help="remove also what the guardrails would keep"
    )
    arguments.set_defaults(run=run)
    commands = arguments.add_subparsers(title="commands", metavar="")
    _add_commands(commands.add_parser)
    for command in (
        apply, doctor, explain, history, override, replay, rollback, status, suspend, sync, upgrade, validate,
    ):  # fmt: skip
        command.add(commands)
    return arguments


def _add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    schema = _with_help(add, "schema", "print the schema of a file", SCHEMA_EXAMPLES)
    schema.add_argument(
        "name",
        nargs="?",
        default="config",
        choices=(
            "config",
            "node",
            "targets",
            "status",
            "plan",
            "history",
            "digests",
            "replay",
            "upgrade",
            "explain",
            "validate",
        ),
    )
    schema.set_defaults(run=print_schema)
    what = "detach and remove an instance, flows and history included"
    remove = _with_help(add, "teardown", what, TEARDOWN_EXAMPLES)
    add_instance(remove)
    remove.set_defaults(run=tear_down)


def _with_help(
    add: Callable[..., argparse.ArgumentParser], name: str, what: str, epilog: str
) -> argparse.ArgumentParser:
    return add(
        name,
        help=what,
        description=f"{what.capitalize()}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser()
    words = sys.argv[1:] if argv is None else argv
    options = arguments.parse_args(words)
    if wrong := _misplaced(words, options) or _dry_problem(options) or sources.problem(options):
        arguments.error(wrong)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    collect_seldom()
    try:
        if options.run is not override.run:  # which asks the daemon first, as who it is
            act_as_owner()
        code: int = options.run(options)
    except Rejected as error:
        print(error, file=sys.stderr)
        return REJECTED
    except (
        KernelError,
        SourceError,
        GitError,
        NoRoom,
        NotConverged,
        NotRunning,
        Refused,
        Unusable,
        OSError,
    ) as error:
        print(f"reconciler: {plainly(error)}", file=sys.stderr)
        return FAILED
    return code


def _misplaced(words: Sequence[str], options: argparse.Namespace) -> str:
    """A command has options of its own, and argparse forgets those before it: `--instance edge teardown`."""
    if options.run is run or not words[0].startswith("-"):
        return ""
    return f"{words[0]} stands before the command: say `reconciler COMMAND {words[0]} ...`"


def _dry_problem(options: argparse.Namespace) -> str:
    """What is wrong with the options of a dry run; empty if nothing is."""
    if options.run is not run:
        return ""
    given = (
        name for name in ("detailed_exitcode", "output", "against", "out") if getattr(options, name)
    )
    if not options.dry_run and (first := next(given, "")):
        return f"--{first.replace('_', '-')} goes with --dry-run"
    if options.against and options.from_git:
        return "--against compares with --config, not with --from-git"
    if options.against and options.out:
        return "--out saves a plan for live maps: --against has none"
    return ""


def run(options: argparse.Namespace) -> int:
    if options.dry_run:
        return dry.run(options)
    node = node_of(options.node)
    place, manager = place_of(options), ServiceManager.of()
    keep_to_ourselves()
    with writer(place), Neighbours() as neighbours:
        sizes = Sizes(**node.sizes)
        source = sources.source_of(options, place.state_dir)
        follower = follower_of(options, source, node, place)
        # Rejected before anything is loaded: the first file decides whether there is a start.
        accepted = follower.once() if options.once else None
        load = partial(manager.working, LOADING)  # also as long as others keep us from beginning
        load()
        heard = logging.getLogger("bpf").info
        with Instance.load(place.instance, sizes, log=heard, working=load) as instance:
            if other := outdated(instance, sizes):
                log.warning("%s", other.message)
            reconciler = Reconciler(
                instance, node, place, neighbours,
                allow_removals=options.allow_removals, progress=manager.working,
            )  # fmt: skip
            if accepted is not None:
                return once(reconciler, accepted, follower)
            return follow(reconciler, source, follower, node, place, neighbours, manager)


def follow(
    reconciler: Reconciler,
    source: Source,
    follower: Follower,
    node: Node,
    place: Place,
    neighbours: Neighbours,
    manager: ServiceManager,
) -> int:
    from reconciler.serve import Server  # noqa: PLC0415 -- slow to import, for commands

    poke = Poke()
    board, requests = Board(), Requests(poke)
    pair = Pair(node, place.run_dir, board)
    desk = desk_of(reconciler, source, follower, node, place, board, requests, pair)
    daemon = Daemon(reconciler, source, follower, place, desk, manager)

    def stop(*_: Any) -> None:  # noqa: ANN401 -- signal number and frame
        daemon.stopping = True
        poke()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)

    def look_now(*_: Any) -> None:  # noqa: ANN401 -- signal number and frame
        manager.reloading()
        source.hurry()
        poke()

    signal.signal(signal.SIGHUP, look_now)
    socket = place.run_dir / SOCKET
    with Server(board, requests, node.listen, socket, node.control_group), pair:
        daemon.run(poke, neighbours)
    return DONE


def desk_of(
    reconciler: Reconciler,
    source: Source,
    follower: Follower,
    node: Node,
    place: Place,
    board: Board,
    requests: Requests,
    pair: Pair,
) -> Desk:
    def backends() -> list[tuple[str, str]]:
        """Of the file, and of what stands of an older one: a blocked service may have others."""
        known = (one.config for one in (follower.accepted, board.facts) if one)
        pools = (pool for config in known if config for pool in config.pools.values())
        return list(dict.fromkeys((pool.name, name) for pool in pools for name in pool.backends))

    observer = Observer(reconciler.instance, reconciler.books, node, place.run_dir, board, pair)
    observer.found(applied(place), reconciler.dataplane.read())
    orders = Orders(place.state_dir, backends, source.hurry)
    heart = Heart(place.run_dir, place.instance, node.interfaces)
    return Desk(board, requests, orders, observer, heart)


def print_schema(options: argparse.Namespace) -> int:
    print(shape.schema_text(options.name), end="")
    return DONE


def tear_down(options: argparse.Namespace) -> int:
    """Of whatever version, whole or not: where another program has to be replaced, this is the remedy."""
    place = place_of(options)
    if not entries(Pins.of(place.instance).directory):
        hint = did_you_mean(place.instance, instances()) or "there is nothing to tear down"
        raise NotLoaded(f"instance {place.instance}: nothing is loaded; {hint}")
    with writer(place):
        teardown(place.instance)
        ours = (COUNTERS, CONDITIONS, HEALTH, HEARTBEAT, ROLES, SOCKET, LOCK)
        for name in ("targets.json", WHOLE, PARTLY, *ours):
            (place.run_dir / name).unlink(missing_ok=True)
        sources.forget(place.state_dir)
    with suppress(OSError):  # healthcheck still runs here, or somebody's files are in it
        place.run_dir.rmdir()
    return DONE
