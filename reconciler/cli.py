"""The command line: reads arguments and files, prints, and says how it went by exit code."""

import argparse
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from bpf.kernel import Instance, KernelError, NotLoaded, Sizes
from reconciler import config as configuration
from reconciler import node as nodes
from reconciler import report, shape, sources
from reconciler.board import Board
from reconciler.commands import doctor, history, override, rollback, status, suspend, sync
from reconciler.control import SOCKET, NotRunning, Refused, Requests
from reconciler.counting import NAME as COUNTERS
from reconciler.dataplane import State
from reconciler.desk import Desk
from reconciler.follow import Accepted, Follower
from reconciler.git import GitError
from reconciler.ids import NoRoom
from reconciler.look import Live, View, look
from reconciler.loop import (
    PATIENCE,
    Daemon,
    NotConverged,
    Place,
    Reconciler,
    applied,
    keep,
    meaning,
    surroundings,
    writer,
)
from reconciler.maps import PinnedMaps
from reconciler.model import Node
from reconciler.neigh import Neighbours
from reconciler.observer import NAME as CONDITIONS
from reconciler.observer import Observer
from reconciler.orders import Orders
from reconciler.overrides import Unusable, in_force
from reconciler.overriding import OverrideFile
from reconciler.parts import node_problems
from reconciler.problems import Rejected
from reconciler.revision import SourceError
from reconciler.source import Poke, Source

DONE, FAILED, PENDING, REJECTED, REFUSED, USAGE = 0, 1, 2, 3, 4, 64
RUN_DIR = Path("/run/evenkeel")

EXAMPLES = """\
examples:
  reconciler --config lb.yaml --node node.yaml
        follow the files until SIGTERM; what is pinned stays and goes on forwarding
  reconciler --once --instance edge
        one pass over /etc/evenkeel/lb.yaml, then exit
  reconciler --dry-run --detailed-exitcode
        print what would change; write nothing, take no lock
  reconciler validate lb.yaml
        say everything that is wrong with the file; needs no privilege
  reconciler schema > config.schema.json
        for editors that complete and explain

exit codes: 0 done, or a plan was computed; 2 changes are pending (--detailed-exitcode); 1 runtime error;
3 configuration rejected; 4 refused by a guardrail; 64 usage
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
    _common(arguments)
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
        "--allow-removals", action="store_true", help="remove also what the guardrails would keep"
    )
    arguments.set_defaults(run=run)
    commands = arguments.add_subparsers(title="commands", metavar="")
    _add_commands(commands.add_parser)
    for command in (doctor, history, override, rollback, status, suspend, sync):
        command.add(commands)
    return arguments


def _add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    validate = add("validate", help="say everything that is wrong with files", allow_abbrev=False)
    validate.add_argument("files", nargs="*", type=Path, metavar="FILE", help="default: --config")
    validate.add_argument("--config", type=Path, metavar="FILE", help="one more file to validate")
    validate.add_argument(
        "--node", type=Path, metavar="FILE", help="also whether the files suit this node.yaml"
    )
    validate.set_defaults(run=validate_files)
    schema = add("schema", help="print the schema of a file", allow_abbrev=False)
    schema.add_argument(
        "name",
        nargs="?",
        default="config",
        choices=("config", "node", "targets", "status", "history"),
    )
    schema.set_defaults(run=print_schema)
    teardown = add("teardown", help="detach and remove an instance, flows and history included")
    teardown.add_argument("--instance", default="default", metavar="NAME")
    teardown.add_argument("--run-dir", type=Path, metavar="DIR")
    sources.add_state_dir(teardown)
    teardown.set_defaults(run=tear_down)


def _common(arguments: argparse.ArgumentParser) -> None:
    sources.add_source(arguments)
    arguments.add_argument(
        "--node",
        type=Path,
        default=Path("/etc/evenkeel/node.yaml"),
        metavar="FILE",
        help="what is this node's own (default: %(default)s)",
    )
    arguments.add_argument(
        "--instance", default="default", metavar="NAME", help="which data plane (default: default)"
    )
    arguments.add_argument(
        "--run-dir",
        type=Path,
        metavar="DIR",
        help=f"where targets.json is published (default: {RUN_DIR}/NAME)",
    )
    sources.add_state_dir(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser()
    options = arguments.parse_args(argv)
    dry = getattr(options, "dry_run", False)
    if getattr(options, "detailed_exitcode", False) and not dry:
        arguments.error("--detailed-exitcode goes with --dry-run")
    if getattr(options, "output", None) and not dry and options.run is run:
        arguments.error("--output goes with --dry-run: otherwise nothing is printed but the log")
    if wrong := sources.problem(options):
        arguments.error(wrong)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    try:
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
        print(f"reconciler: {error}", file=sys.stderr)
        return FAILED
    return code


def run(options: argparse.Namespace) -> int:
    node = _node(options.node)
    place = _place(options)
    if options.dry_run:
        return dry_run(options, node, place)
    with writer(place), Neighbours() as neighbours:
        sizes = Sizes(**node.sizes)
        source = sources.source_of(options, place.state_dir)
        follower = follower_of(options, source, node, place)
        # Rejected before anything is loaded: the first file decides whether there is a start.
        accepted = follower.once() if options.once else None
        with Instance.load(place.instance, sizes, log=logging.getLogger("bpf").info) as instance:
            instance.replace()
            reconciler = Reconciler(
                instance, node, place, neighbours, allow_removals=options.allow_removals
            )
            if accepted is not None:
                return once(reconciler, accepted, follower)
            return follow(reconciler, source, follower, node, place, neighbours)


def follower_of(options: argparse.Namespace, source: Source, node: Node, place: Place) -> Follower:
    rules = sources.rules_of(options)
    return Follower(source, place.state_dir, lambda revision: meaning(revision, node), rules)


def once(reconciler: Reconciler, accepted: Accepted, follower: Follower) -> int:
    view = reconciler.reconcile(accepted, wait=PATIENCE)
    keep(reconciler, follower, reconciler.unattached or view)
    if reconciler.unattached:
        raise reconciler.unattached
    for finding in view.findings:
        print(f"guardrail: {finding}", file=sys.stderr)
    return REFUSED if view.refused else DONE


def follow(
    reconciler: Reconciler,
    source: Source,
    follower: Follower,
    node: Node,
    place: Place,
    neighbours: Neighbours,
) -> int:
    from reconciler.serve import Server  # noqa: PLC0415 -- slow to import, for commands

    poke = Poke()
    board, requests = Board(), Requests(poke)
    desk = desk_of(reconciler, source, follower, node, place, board, requests)
    daemon = Daemon(reconciler, source, follower, place, desk)

    def stop(*_: Any) -> None:  # noqa: ANN401 -- signal number and frame
        daemon.stopping = True
        poke()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)

    def look_now(*_: Any) -> None:  # noqa: ANN401 -- signal number and frame
        source.hurry()
        poke()

    signal.signal(signal.SIGHUP, look_now)
    socket = place.run_dir / SOCKET
    with Server(board, requests, node.listen, socket, node.control_group):
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
) -> Desk:
    def backends() -> list[tuple[str, str]]:
        accepted = follower.accepted
        pools = accepted.config.pools.values() if accepted else ()
        return [(pool.name, name) for pool in pools for name in pool.backends]

    observer = Observer(reconciler.instance, reconciler.books, node, place.run_dir, board)
    observer.found(applied(place), reconciler.dataplane.read())
    orders = Orders(place.state_dir, backends, source.hurry)
    return Desk(board, requests, orders, observer)


def dry_run(options: argparse.Namespace, node: Node, place: Place) -> int:
    source = sources.source_of(options, place.state_dir)
    accepted = follower_of(options, source, node, place).preview()
    with Neighbours() as neighbours:
        try:
            with Instance.open(place.instance, read_only=True) as instance:
                live = _live(instance, accepted, node, neighbours, place)
                meta = instance.maps.meta.get(0)
                view = look(accepted.config, node, live, allow_removals=options.allow_removals)
        except NotLoaded:
            live, meta = _nothing(accepted, node, neighbours), None
            view = look(accepted.config, node, live, allow_removals=options.allow_removals)
    read = (accepted.revision.path, accepted.revision.digest)
    configs = (applied(place), accepted.config)
    made = accepted.revision.made
    plan = report.describe(view, live, read, configs, node.table_size, meta, made)
    as_json = options.output == "json"
    print(json.dumps(plan.document(), indent=1) if as_json else report.text(plan))
    return _dry_exit(view) if options.detailed_exitcode else DONE


def _dry_exit(view: View) -> int:
    if view.refused:
        return REFUSED
    return PENDING if view.ops else DONE


def _live(
    instance: Instance, accepted: Accepted, node: Node, neighbours: Neighbours, place: Place
) -> Live:
    dataplane = PinnedMaps(instance)
    actual = dataplane.read()
    settings = actual.settings.get(0)
    epoch = settings.hop_epoch if settings else 0
    around = surroundings(neighbours, accepted.config, node, epoch, wait=None)
    forced = in_force(OverrideFile(place.state_dir).read(), time.time())
    return Live(actual, dataplane.health(), around, dataplane.room(), forced)


def _nothing(accepted: Accepted, node: Node, neighbours: Neighbours) -> Live:
    """Where nothing was ever loaded, a plan compares with nothing."""
    sizes = Sizes(**node.sizes)
    room = {name: getattr(sizes, name) for name in sizes.__dataclass_fields__}
    return Live(State(), {}, surroundings(neighbours, accepted.config, node, 0, wait=None), room)


def validate_files(options: argparse.Namespace) -> int:
    node = _node(options.node) if options.node else None
    files = [*options.files, *([options.config] if options.config else [])]
    if not files and not node:
        files = [Path("/etc/evenkeel/lb.yaml")]
    wrong = 0
    for path in files:
        try:
            _validate(path, node)
            print(f"{path}: ok")
        except Rejected as error:
            wrong += 1
            print(error, file=sys.stderr)
    return REJECTED if wrong else DONE


def _validate(path: Path, node: Node | None) -> None:
    text = path.read_text()
    config = configuration.load(text, str(path))
    found = node_problems(config, node) if node else []
    if found:
        raise Rejected(str(path), found, text)


def print_schema(options: argparse.Namespace) -> int:
    print(shape.schema_text(options.name), end="")
    return DONE


def tear_down(options: argparse.Namespace) -> int:
    place = _place(options)
    with writer(place):
        try:
            Instance.open(place.instance).teardown()
        except NotLoaded as error:
            print(f"reconciler: {error}", file=sys.stderr)
        for name in ("targets.json", "applied.yaml", COUNTERS, CONDITIONS):
            (place.run_dir / name).unlink(missing_ok=True)
        sources.forget(place.state_dir)
    return DONE


def _node(path: Path) -> Node:
    return nodes.load(path.read_text(), str(path))


def _place(options: argparse.Namespace) -> Place:
    run_dir = options.run_dir or RUN_DIR / options.instance
    return Place(options.instance, run_dir, options.state_dir)
