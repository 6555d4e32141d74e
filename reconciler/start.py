"""What a run starts from: options, files, and who follows the source. Writes no map."""

import argparse
import gc
import sys
from pathlib import Path

from reconciler import node as nodes
from reconciler import sources
from reconciler.admission import Why
from reconciler.follow import Accepted, Follower
from reconciler.loop import PATIENCE, Place, Reconciler, keep, meaning
from reconciler.model import Node
from reconciler.problems import Mark, Problem, Rejected
from reconciler.source import Source

DONE, FAILED, PENDING, REJECTED, REFUSED, USAGE = 0, 1, 2, 3, 4, 64
RUN_DIR = Path("/run/evenkeel")


def node_of(path: Path) -> Node:
    remedy = "write one that names this node's interfaces, or name another with --node"
    return nodes.load(text(path, remedy), str(path))


def content(path: Path, remedy: str) -> bytes:
    """Of a file that an option names; where it is not there, what to do."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file; {remedy}") from None
    except IsADirectoryError:
        raise IsADirectoryError(f"{path}: is a directory; {remedy}") from None


def text(path: Path, remedy: str) -> str:
    """The same of a file that people write."""
    data = content(path, remedy)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line, column = data.count(b"\n", 0, error.start), data.rfind(b"\n", 0, error.start)
        problem = Problem(
            Mark(line + 1, error.start - column),
            f"byte 0x{data[error.start]:02x} is not UTF-8",
            "is it this file, and saved as plain text?",
        )
        raise Rejected(str(path), [problem]) from None


def place_of(options: argparse.Namespace) -> Place:
    run_dir = options.run_dir or RUN_DIR / options.instance
    return Place(options.instance, run_dir, options.state_dir)


def add_place(arguments: argparse.ArgumentParser) -> None:
    """This node's file, which instance, and where its files are."""
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


def follower_of(options: argparse.Namespace, source: Source, node: Node, place: Place) -> Follower:
    rules = sources.rules_of(options)
    return Follower(source, place.state_dir, lambda revision: meaning(revision, node), rules)


def once(reconciler: Reconciler, accepted: Accepted, follower: Follower) -> int:
    # Routes may have changed while nobody watched: flows look their next hops up anew.
    view = reconciler.reconcile(accepted, wait=PATIENCE, stale_hops=True)
    keep(reconciler, follower, reconciler.unattached or view)
    if reconciler.unattached:
        raise reconciler.unattached
    for finding in view.findings:
        print(f"guardrail: {finding}", file=sys.stderr)  # noqa: T201 -- for who ran it
    for _, why in sorted(view.blocked.items()):
        print(f"not applied: {why}", file=sys.stderr)  # noqa: T201
    if any(why.why is Why.REFUSED for why in view.blocked.values()):
        return FAILED
    return REFUSED if view.refused or view.blocked else DONE


def collect_seldom() -> None:
    """Hardly anything here refers to itself, and looking through 10,000 backends for it takes long."""
    gc.set_threshold(100_000, 20, 20)
