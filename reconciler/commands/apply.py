"""`reconciler apply`: carry out a plan that was saved, or nothing at all when it is stale."""

import argparse
import json
import logging
import sys
from pathlib import Path

from bpf.kernel import Instance, NotLoaded, Sizes
from reconciler import saved, sources
from reconciler.commands import Commands
from reconciler.dataplane import State
from reconciler.dry import bound
from reconciler.follow import Accepted
from reconciler.loop import Reconciler, writer
from reconciler.maps import PinnedMaps
from reconciler.neigh import Neighbours
from reconciler.start import (
    DONE,
    REFUSED,
    add_place,
    content,
    follower_of,
    node_of,
    once,
    place_of,
)

REMEDY = "`reconciler --dry-run --out FILE` makes one"
EXAMPLES = """\
A plan is bound to lb.yaml, node.yaml and what the maps said. If any of them is another one
now, nothing is done and the exit code is 4. Say the same options as when it was made.

examples:
  reconciler --dry-run --out change.plan
  reconciler apply --plan change.plan

exit codes: 0 applied; 4 stale, or held back by a guardrail; 1 runtime error; 3 configuration rejected; 64 usage
"""


class Stale(Exception):
    """What the plan was made from is not there any more."""


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "apply",
        help="carry out a plan that --dry-run --out saved",
        description="Carry out a plan that was saved, or nothing when it is stale.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--plan", type=Path, required=True, metavar="PLAN", help="what was saved")
    sources.add_source(parser)
    add_place(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    try:
        plan = saved.bound(json.loads(content(options.plan, REMEDY)))
    except saved.Unreadable as error:
        raise OSError(f"{options.plan}: {error}") from error
    except ValueError:
        raise OSError(f"{options.plan}: this is no saved plan; {REMEDY}") from None
    try:
        return _apply(options, plan)
    except Stale as error:
        print(f"{options.plan}: stale, nothing was done: {error}", file=sys.stderr)
        return REFUSED


def _apply(options: argparse.Namespace, plan: saved.Bound) -> int:
    node, place = node_of(options.node), place_of(options)
    with writer(place), Neighbours() as neighbours:
        source = sources.source_of(options, place.state_dir)
        # Looked at first: applying it is what makes a source remember it.
        accepted = follower_of(options, source, node, place).preview()
        _refuse(options, plan, accepted, _content(place.instance))
        log = logging.getLogger("bpf").info
        with Instance.load(place.instance, Sizes(**node.sizes), log=log) as instance:
            follower = follower_of(options, source, node, place)
            taken = follower.once()
            _refuse(options, plan, taken, PinnedMaps(instance).read())
            reconciler = Reconciler(
                instance, node, place, neighbours, allow_removals=plan.allow_removals
            )
            code = once(reconciler, taken, follower)
            print(f"plan {plan.plan_id} is applied{'' if code == DONE else ', but not whole'}")
            return code


def _content(name: str) -> State:
    try:
        with Instance.open(name) as instance:
            return PinnedMaps(instance).read()
    except NotLoaded:
        return State()


def _refuse(
    options: argparse.Namespace, plan: saved.Bound, accepted: Accepted, actual: State
) -> None:
    now = bound(options, accepted.revision, actual, allow_removals=plan.allow_removals)
    if reasons := saved.stale(plan, now):
        raise Stale("; ".join(reasons))
