"""One look at everything: what should be, what is, and what follows. Pure.

Both the dry run and the real one go through here, so that they cannot differ.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bpf import abi
from reconciler import drain
from reconciler.admission import Blocks, admit, frozen
from reconciler.compile import Desired, Surroundings
from reconciler.dataplane import Op, State
from reconciler.drain import Leaving
from reconciler.guard import Finding, guard, with_services
from reconciler.linger import lingering
from reconciler.memo import Memo, Same
from reconciler.model import Config, Guardrails, Node
from reconciler.overrides import Overrides
from reconciler.plan import plan
from reconciler.spare import with_health

UNLIMITED = Guardrails(removed_services=100, removed_backends=100, allow_empty=True)


@dataclass(frozen=True, slots=True)
class Live:
    """What was found on this machine."""

    actual: State
    health: Mapping[int, abi.Health]
    around: Surroundings
    room: Mapping[str, int]
    overrides: Overrides = ()  # in force
    flows: Mapping[int, int] = field(default_factory=dict)  # live ones by backend's index
    now: int = 0  # tick
    standing: Config | None = None  # what the maps were made from, as far as it is known
    sure: bool = False  # whether the maps say that they were made from just that
    failed: Blocks = field(default_factory=dict)  # what the kernel refused, and is not tried now


@dataclass(frozen=True, slots=True)
class View:
    """What one look found, and the operations that follow from it."""

    desired: Desired
    held: State  # desired, with what a guardrail does not let go, and what drains
    findings: tuple[Finding, ...]
    ops: tuple[Op, ...]
    drains: tuple[Leaving, ...] = ()
    next_end: float = math.inf  # seconds until a drain's deadline
    config: Config = field(
        default_factory=lambda: Config({}, {})
    )  # what the maps will be made from
    blocked: Blocks = field(default_factory=dict)  # services that are not what the file says

    @property
    def refused(self) -> bool:
        return any(finding.refused for finding in self.findings)

    @property
    def is_calm(self) -> bool:
        """Everything is as it should be, and as long as it stays so neither time nor flows change that.

        Whoever leaves, or is to, is in the operations or drains.
        """
        return not (self.ops or self.drains or self.findings or self.blocked)


def look(
    config: Config,
    node: Node,
    live: Live,
    *,
    allow_removals: bool = False,
    memo: Memo | None = None,
) -> View:
    """With the memo of the last look, this one takes time for what has changed since.

    Nothing, if that was calm and everything is found to be the same.
    """
    memo = memo or Memo()
    found = (Same(config), node, allow_removals, *_timeless(live))
    known: View | None = memo.kept(look, *found)
    if known is not None:
        return known
    memo.turn()
    view = _anew(config, node, live, memo, allow_removals=allow_removals)
    if view.is_calm:
        memo.keep(look, view, *found)
    return view


def _timeless(live: Live) -> tuple[Any, ...]:
    """What a calm look follows from: all but the time and the flows."""
    return (
        live.actual,
        live.actual.free,
        live.health,
        live.around,
        live.room,
        live.overrides,
        Same(live.standing),
        live.sure,
        live.failed,
    )


def _anew(config: Config, node: Node, live: Live, memo: Memo, *, allow_removals: bool) -> View:
    actual = live.actual
    taken = admit(
        config,
        live.standing,
        live.failed,
        node,
        actual,
        live.around,
        live.room,
        live.now,
        memo,
        live.overrides,
    )
    desired = taken.desired
    limits = UNLIMITED if allow_removals else config.guardrails
    wanted = with_health(desired, live.health, memo, actual.services)
    stay = frozen(taken.blocked, actual, config, live.standing, sure=live.sure)
    wanted = with_services(wanted, actual, stay)
    held, findings = guard(wanted, actual, limits)
    held = lingering(held, actual, live.flows, live.now, desired.drains, live.around.hops)
    leaving = tuple(drain.under_way(held, live.flows))
    return View(
        desired,
        held,
        tuple(findings),
        tuple(plan(held, actual)),
        leaving,
        drain.next_end(leaving, live.now),
        taken.config,
        taken.blocked,
    )
