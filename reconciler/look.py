"""One look at everything: what should be, what is, and what follows. Pure.

Both the dry run and the real one go through here, so that they cannot differ.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from bpf import abi
from reconciler import drain
from reconciler.compile import Desired, Surroundings, compile_config
from reconciler.dataplane import Op, State
from reconciler.drain import Leaving
from reconciler.guard import Finding, guard
from reconciler.linger import lingering
from reconciler.memo import Memo
from reconciler.model import Config, Guardrails, Node
from reconciler.overrides import Overrides
from reconciler.overrides import applied as with_overrides
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


@dataclass(frozen=True, slots=True)
class View:
    """What one look found, and the operations that follow from it."""

    desired: Desired
    held: State  # desired, with what a guardrail does not let go, and what drains
    findings: tuple[Finding, ...]
    ops: tuple[Op, ...]
    drains: tuple[Leaving, ...] = ()
    next_end: float = math.inf  # seconds until a drain's deadline

    @property
    def refused(self) -> bool:
        return any(finding.refused for finding in self.findings)


def look(
    config: Config,
    node: Node,
    live: Live,
    *,
    allow_removals: bool = False,
    memo: Memo | None = None,
) -> View:
    """With the memo of the last look, this one takes time for what has changed since."""
    memo = memo or Memo()
    memo.turn()
    configured = compile_config(config, node, live.actual, live.around, live.room, live.now, memo)
    desired = with_overrides(configured, live.overrides)
    limits = UNLIMITED if allow_removals else config.guardrails
    held, findings = guard(with_health(desired, live.health, memo), live.actual, limits)
    held = lingering(held, live.actual, live.flows, live.now, desired.drains, live.around.hops)
    leaving = tuple(drain.under_way(held, live.flows))
    return View(
        desired,
        held,
        tuple(findings),
        tuple(plan(held, live.actual)),
        leaving,
        drain.next_end(leaving, live.now),
    )
