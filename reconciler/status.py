"""What an operator asks for: a value, and its JSON. Pure.

The document is schemas/status.schema.json; the text, the metrics and the page say the
same. How it is made of what was read: stating.
"""

from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any

from bpf.link import Attachment
from reconciler.conditions import Holds
from reconciler.facts import (
    Attempt,
    Checker,
    Daemon,
    Moment,
    Past,
    Probes,
    Program,
    Suspend,
)
from reconciler.rates import Count, Rate
from reconciler.shortage import ShortPool

FORMAT = "1.0"


# ---- what it is


@dataclass(frozen=True, slots=True)
class Content:
    """A configuration by its digest."""

    generation: int
    digest: str
    commit: str
    at: Moment


@dataclass(frozen=True, slots=True)
class Health:
    state: str  # up, down, unknown: as the health map has it
    since: Moment | None
    reason: str
    detail: str
    check: str
    latency_ms: float | None
    ramp: int  # of 255
    probes: Probes


@dataclass(frozen=True, slots=True)
class BackendStatus:
    pool: str
    name: str
    id: int
    address: str
    weight: int
    state: str  # as configured: up, drain, down
    reason: str
    override: str | None
    health: Health
    usable: bool
    reachable: bool
    share: float
    live_flows: int
    counters: Count
    rates: Rate | None


@dataclass(frozen=True, slots=True)
class TableStatus:
    name: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class PoolStatus:
    name: str
    check: str | None
    usable: int  # of those that get new flows
    tables: tuple[TableStatus, ...]
    backends: tuple[BackendStatus, ...]


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    name: str
    frontends: tuple[str, ...]
    forward: str
    balance: str
    pools: tuple[str, ...]
    serving: str | None  # the pool that new flows get; None: no backend, they are dropped
    fail_open: bool  # ... although none of its backends is usable
    short: tuple[ShortPool, ...]  # pools that are passed over
    counters: Count
    rates: Rate | None


@dataclass(frozen=True, slots=True)
class VerdictStatus:
    verdict: str
    packets: int
    bytes: int
    packets_per_second: float | None


@dataclass(frozen=True, slots=True)
class CpuStatus:
    cpu: int
    packets: int
    packets_per_second: float | None


@dataclass(frozen=True, slots=True)
class Drain:
    """A backend whose flows end."""

    backend: str
    flows_left: int
    seconds_left: float | None  # None: they are kept


@dataclass(frozen=True, slots=True)
class OverrideStatus:
    backend: str
    state: str
    reason: str
    by: str
    since: Moment
    until: Moment


@dataclass(frozen=True, slots=True)
class BlockedStatus:
    """A service that is not what the file says: it stays what it was, or absent."""

    service: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class ConditionStatus:
    type: str
    status: str
    reason: str
    message: str
    since: Moment
    well: bool


@dataclass(frozen=True, slots=True)
class RoleStatus:
    name: str  # of the vrrp_instance
    role: str
    priority: int | None
    since: Moment


@dataclass(frozen=True, slots=True)
class VrrpStatus:
    running: bool
    instances: tuple[RoleStatus, ...]


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """A node that is to forward alike."""

    name: str
    address: str
    answers: bool
    agrees: bool | None  # None: it never answered
    differences: tuple[str, ...]
    differing_seconds: float | None
    heard: Moment | None
    trouble: str
    digest: str
    commit: str


@dataclass(frozen=True, slots=True)
class Status:
    format_version: str
    instance: str
    at: Moment
    daemon: Daemon | None
    attached: tuple[Attachment, ...]
    program: Program | None
    previous_program: Program | None  # kept for `upgrade --undo`
    applied: Content | None
    applying: bool
    attempted: Attempt | None
    conditions: tuple[ConditionStatus, ...]
    services: tuple[ServiceStatus, ...]
    pools: tuple[PoolStatus, ...]
    checker: Checker | None
    live_flows: int
    verdicts: tuple[VerdictStatus, ...]
    cpus: tuple[CpuStatus, ...]
    latency: tuple[int, ...]  # packets measured, by log2 of ns
    refused: tuple[str, ...]
    blocked: tuple[BlockedStatus, ...]
    drift: tuple[str, ...]
    drains: tuple[Drain, ...]
    overrides: tuple[OverrideStatus, ...]
    suspends: tuple[Suspend, ...]
    history: tuple[Past, ...]
    vrrp: VrrpStatus | None
    peers: tuple[PeerStatus, ...]

    @property
    def ready(self) -> bool:
        return any(c.type == "Ready" and c.status == Holds.TRUE for c in self.conditions)

    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = plain(self)
        return document


def plain(value: Any) -> Any:  # noqa: ANN401 -- whatever a status holds
    kind = type(value)
    if kind in _AS_THEY_ARE:
        return value
    if kind is tuple:
        return [plain(one) for one in value]
    if is_dataclass(kind):
        return {name: plain(getattr(value, name)) for name in _names(kind)}
    if isinstance(value, Moment):
        return str(value)
    return value.value if isinstance(value, Enum) else dict(value)


_AS_THEY_ARE = frozenset({str, int, float, bool, type(None)})


@cache
def _names(kind: type[Any]) -> tuple[str, ...]:
    return tuple(one.name for one in fields(kind))
