"""`reconciler rollback`: break-glass. An older generation now; the source is left alone for a while.

The ordinary way back is `git revert`. This is for when git, the forge or the file
cannot be had: it needs the state folder only, and works without a daemon.
"""

import argparse
import fcntl
import sys
import time
from pathlib import Path

from reconciler import suspension
from reconciler.commands import Commands, add_place, run_dir, state_dir
from reconciler.commands.suspend import add_reason, who
from reconciler.follow import described
from reconciler.history import Generation, History, Result
from reconciler.suspension import Suspension, span

PATIENCE = 20.0  # seconds for a daemon to do it
EXAMPLES = """\
The source is suspended meanwhile: 24 hours, or as long as --for says; `reconciler resume` ends it.

examples:
  reconciler rollback --reason "new pool drops half of the traffic"
        the generation before the one that is applied
  reconciler rollback 41 --reason "incident 4711" --for 2h
        just that one, of those that `reconciler history` lists

exit codes: 0 it is applied; 4 a guardrail holds removals back; 1 there is none, or it was not applied; 64 usage
"""


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "rollback",
        help="break-glass: apply an older generation, and suspend the source",
        description="Break-glass: apply an older generation, and suspend the source.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("generation", nargs="?", type=int, help="default: the one before")
    add_reason(parser)
    add_place(parser)
    parser.add_argument(
        "--node", type=Path, default=Path("/etc/evenkeel/node.yaml"), metavar="FILE",
        help="this node's own file, needed where no daemon runs (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--allow-removals", action="store_true", help="remove also what the guardrails would keep"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    state = state_dir(options)
    history = History(state / "history")
    target = choose(history.generations(), suspension.read(state), options.generation)
    history.revision(target)  # OSError, before anything is changed, when its text is gone
    now = time.time()
    made = Suspension(
        options.reason, now, now + options.seconds, who(), target.number, target.digest,
        allow_removals=options.allow_removals,
    )  # fmt: skip
    suspension.write(state, made)
    print(f"suspended: {described(made)}")
    if not runs(run_dir(options)):
        return _apply(options, state)
    return _await(history, target, now)


def choose(kept: list[Generation], paused: Suspension | None, wanted: int | None) -> Generation:
    """What to go back to: what is asked for, or what was applied before what is applied now."""
    numbers = ", ".join(str(one.number) for one in kept) or "none"
    if wanted is not None:
        found = next((one for one in kept if one.number == wanted), None)
        if found is None:
            raise OSError(f"generation {wanted} is not kept; there are: {numbers}")
        return found
    base = _base(kept, paused)
    for one in kept:
        older = base is not None and one.number < base.number and one.digest != base.digest
        if older and one.result is not Result.FAILED:
            return one
    raise OSError(f"there is no older generation that was applied; kept are: {numbers}")


def _base(kept: list[Generation], paused: Suspension | None) -> Generation | None:
    """Going back twice goes back two steps, and not there and back again."""
    if paused is not None and paused.generation:
        return next((one for one in kept if one.number == paused.generation), None)
    return next(iter(kept), None)


def runs(folder: Path) -> bool:
    """Whether a daemon holds the writer's lock."""
    try:
        with (folder / "reconciler.lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _apply(options: argparse.Namespace, state: Path) -> int:
    print("no reconciler runs: applying it here")
    from reconciler.cli import main  # noqa: PLC0415 -- which imports us

    return main([
        "--once", "--instance", options.instance, "--node", str(options.node),
        "--state-dir", str(state), "--run-dir", str(run_dir(options)),
    ])  # fmt: skip


def _await(history: History, target: Generation, since: float) -> int:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        newest = next(iter(history.generations()), None)
        if newest is not None and newest.digest == target.digest:
            if newest.result is Result.APPLIED:
                print(f"generation {newest.number} forwards what {target.number} did")
                return 0
            if newest.result is Result.HELD:
                print("a guardrail keeps what it would remove: --allow-removals", file=sys.stderr)
                return 4
            if newest.result is Result.PARTLY:
                said = f"generation {newest.number} is applied but for {newest.note}"
                print(said, file=sys.stderr)
                return 1
        time.sleep(0.05)
    waited = span(time.time() - since)
    print(f"the reconciler has not applied it after {waited}: see its log", file=sys.stderr)
    return 1
