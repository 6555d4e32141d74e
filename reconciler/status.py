"""What an operator asks for: a value made of what was read, and its JSON. Pure.

Nothing is looked up here and nothing is judged anew: what is attached, counted and
found comes as Facts, and two builds from the same Facts are equal. The document is
schemas/status.schema.json; the text, the metrics and the page say the same.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache, lru_cache
from typing import Any

from bpf import abi
from bpf.link import Attachment
from reconciler import drain, ids
from reconciler.agreement import Peer
from reconciler.conditions import Condition, Holds
from reconciler.encode import TICK
from reconciler.facts import (
    Attempt,
    Checked,
    Checker,
    Daemon,
    Facts,
    Moment,
    Past,
    Probes,
    Program,
    Suspend,
)
from reconciler.model import Address, Backend, Pool
from reconciler.names import address_of
from reconciler.overrides import Override
from reconciler.parts import Part, PoolKey
from reconciler.portrait import Portrait, portrait
from reconciler.rates import NOTHING, Count, Rate, rate, sum_of, total
from reconciler.shortage import ShortPool, short_pools
from reconciler.spare import is_usable
from reconciler.vrrp import Vrrp

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
        plain: dict[str, Any] = _plain(self)
        return plain


def _plain(value: Any) -> Any:  # noqa: ANN401 -- whatever a status holds
    kind = type(value)
    if kind in _AS_THEY_ARE:
        return value
    if kind is tuple:
        return [_plain(one) for one in value]
    if is_dataclass(kind):
        return {name: _plain(getattr(value, name)) for name in _names(kind)}
    if isinstance(value, Moment):
        return str(value)
    return value.value if isinstance(value, Enum) else dict(value)


_AS_THEY_ARE = frozenset({str, int, float, bool, type(None)})


@cache
def _names(kind: type[Any]) -> tuple[str, ...]:
    return tuple(one.name for one in fields(kind))


# ---- how it is made


def build(facts: Facts) -> Status:
    totals = facts.backends.totals(facts.reading.backends)
    pools = _pools(facts, totals)
    return Status(
        format_version=FORMAT,
        instance=facts.instance,
        at=Moment(facts.now),
        daemon=facts.daemon,
        attached=facts.attached,
        program=next(iter(facts.programs), None),
        previous_program=next(iter(facts.programs[1:]), None),
        applied=_applied(facts.meta),
        applying=facts.meta is not None and facts.meta.phase == abi.Phase.APPLYING,
        attempted=facts.attempt,
        conditions=tuple(map(_condition, facts.conditions)),
        services=_services(facts, {pool.name: pool for pool in pools}),
        pools=pools,
        checker=facts.checker,
        live_flows=sum(facts.reading.live.values()),
        verdicts=_verdicts(facts),
        cpus=_cpus(facts),
        latency=facts.reading.latency,
        refused=facts.refused,
        blocked=tuple(BlockedStatus(b.service, b.why, b.message) for b in facts.blocked),
        drift=facts.drift,
        drains=tuple(_drains(facts)),
        overrides=tuple(map(_override, facts.overrides)),
        suspends=facts.suspends,
        history=facts.history,
        vrrp=_vrrp(facts.vrrp) if facts.vrrp else None,
        peers=tuple(_peer(one, facts.clock) for one in facts.peers),
    )


def _applied(meta: abi.Meta | None) -> Content | None:
    if meta is None or not meta.generation:
        return None
    commit = bytes(meta.commit).partition(b"\0")[0].decode(errors="replace")
    digest = bytes(meta.digest).hex()
    return Content(meta.generation, digest, commit, Moment(meta.applied_at))


def _condition(one: Condition) -> ConditionStatus:
    since = Moment(one.since)
    return ConditionStatus(one.type, one.status, one.reason, one.message, since, one.well)


def build_conditions(found: Iterable[Condition]) -> list[dict[str, Any]]:
    """As the document has them."""
    return [_plain(_condition(one)) for one in found]


def _override(one: Override) -> OverrideStatus:
    times = Moment(one.since), Moment(one.until)
    return OverrideStatus(one.name, one.state, one.reason, one.by, *times)


# ---- beside this node


def _vrrp(found: Vrrp) -> VrrpStatus:
    roles = (
        RoleStatus(one.name, one.role, one.priority, Moment(one.since)) for one in found.instances
    )
    return VrrpStatus(found.running, tuple(roles))


def _peer(one: Peer, clock: float) -> PeerStatus:
    since = one.differing_since
    return PeerStatus(
        name=one.name,
        address=one.address,
        answers=one.identity is not None and not one.trouble,
        agrees=None if one.identity is None else not one.differences,
        differences=one.differences,
        differing_seconds=None if since is None else round(clock - since, 1),
        heard=None if one.heard is None else Moment(one.heard),
        trouble=one.trouble,
        digest=one.identity.digest if one.identity else "",
        commit=one.identity.commit if one.identity else "",
    )


# ---- pools


def _pools(facts: Facts, totals: Mapping[str, Count]) -> tuple[PoolStatus, ...]:
    if facts.config is None:
        return ()
    tables: dict[str, dict[PoolKey, Portrait]] = {}
    names = facts.roster.backend_names()
    for number, key in sorted(facts.roster.pools.items(), key=lambda item: str(item[1])):
        slots = facts.state.tables.get(ids.index(number))
        tables.setdefault(key.pool, {})[key] = portrait(slots, names.get(key.pool, {}))
    used = [facts.config.pools[name] for name in sorted(tables) if name in facts.config.pools]
    return tuple(_pool(facts, pool, tables[pool.name], totals) for pool in used)


def _pool(
    facts: Facts, pool: Pool, tables: Mapping[PoolKey, Portrait], totals: Mapping[str, Count]
) -> PoolStatus:
    shares: dict[int, float] = {}
    for made in tables.values():
        for number, share in made.shares.items():
            shares.setdefault(number, share)
    backends = tuple(
        _backend(facts, pool, backend, shares, totals)
        for _, backend in sorted(pool.backends.items())
        if (pool.name, backend.name) in facts.roster.backends
    )
    return PoolStatus(
        name=pool.name,
        check=pool.check.name if pool.check else None,
        usable=sum(backend.usable and backend.share > 0 for backend in backends),
        tables=tuple(TableStatus(str(key), made.size, made.digest) for key, made in tables.items()),
        backends=backends,
    )


def _backend(
    facts: Facts,
    pool: Pool,
    backend: Backend,
    shares: Mapping[int, float],
    totals: Mapping[str, Count],
) -> BackendStatus:
    number = facts.roster.backends[pool.name, backend.name]
    at = ids.index(number)
    entry = facts.state.backends.get(at) or abi.Backend()
    name = f"{pool.name}/{backend.name}"
    return BackendStatus(
        pool=pool.name,
        name=backend.name,
        id=number,
        address=_place(backend.address, backend.port),
        weight=backend.weight,
        state=backend.state,
        reason=backend.reason,
        override=next((one.state.value for one in facts.overrides if one.name == name), None),
        health=_health(facts, number),
        usable=entry.id == number and is_usable(entry, facts.health.get(at)),
        reachable=entry.ifindex != 0,
        share=round(shares.get(number, 0.0), 6),
        live_flows=facts.reading.live.get(at, 0),
        counters=totals.get(name, facts.reading.backends.get(at, NOTHING)),
        rates=rate(facts.reading.backends.get(at), facts.earlier.backends.get(at), facts.seconds),
    )


_WORDS = {abi.HealthState.UP: "up", abi.HealthState.DOWN: "down"}


def _health(facts: Facts, number: int) -> Health:
    entry = facts.health.get(ids.index(number))
    mine = entry if entry is not None and entry.id == number else None
    state = _WORDS.get(abi.HealthState(mine.state), "unknown") if mine else "unknown"
    told = facts.checked.get(number, Checked("", None, "", "", None))
    return Health(
        state=state,
        since=told.since,
        reason=told.reason,
        detail=told.detail,
        check=told.check,
        latency_ms=told.latency_ms,
        ramp=mine.ramp if mine else 0,
        probes=told.probes,
    )


# ---- services


def _services(facts: Facts, pools: Mapping[str, PoolStatus]) -> tuple[ServiceStatus, ...]:
    totals = facts.services.totals(facts.reading.services)
    parts: dict[str, list[tuple[int, Part]]] = {}
    for number, part in sorted(facts.roster.services.items(), key=lambda item: str(item[1])):
        parts.setdefault(part.service.name, []).append((number, part))
    return tuple(_service(facts, mine, totals, pools) for _, mine in sorted(parts.items()))


def _service(
    facts: Facts,
    parts: list[tuple[int, Part]],
    totals: Mapping[str, Count],
    pools: Mapping[str, PoolStatus],
) -> ServiceStatus:
    service = parts[0][1].service
    serving, fail_open = _serving(facts, parts, pools)
    counts = [
        totals.get(str(part), facts.reading.services.get(ids.index(number), NOTHING))
        for number, part in parts
    ]
    rates = (
        rate(
            facts.reading.services.get(ids.index(number)),
            facts.earlier.services.get(ids.index(number)),
            facts.seconds,
        )
        for number, _ in parts
    )
    return ServiceStatus(
        name=service.name,
        frontends=tuple(_frontends(part for _, part in parts)),
        forward=service.forward,
        balance=service.balance.method,
        pools=service.pools,
        serving=serving,
        fail_open=fail_open,
        short=short_pools(facts, parts),
        counters=total(counts),
        rates=sum_of(rates),
    )


def _frontends(parts: Iterable[Part]) -> Iterable[str]:
    for part in parts:
        for address, port in part.frontends:
            proto = port.proto.name.lower()
            yield f"{_place(address, port.number)}/{proto}"


@lru_cache(1 << 16)
def _place(address: Address, port: int) -> str:
    return address_of(address.packed, port)


def _serving(
    facts: Facts, parts: list[tuple[int, Part]], pools: Mapping[str, PoolStatus]
) -> tuple[str | None, bool]:
    """As the program chooses: the first pool that is not short and has a usable backend."""
    number, part = parts[0]
    entry = facts.state.services.get(ids.index(number))
    for i, key in enumerate(part.pools):
        short = entry is not None and entry.short_pools >> i & 1
        if not short and key.pool in pools and pools[key.pool].usable:
            return key.pool, False
    if part.service.fail_closed:
        return None, False
    return part.pools[0].pool, True


# ---- counters


def _verdicts(facts: Facts) -> tuple[VerdictStatus, ...]:
    now, before = facts.reading.verdicts(), facts.earlier.verdicts()
    return tuple(
        VerdictStatus(
            verdict.name.lower(),
            now[verdict].packets,
            now[verdict].bytes,
            _per_second(facts, now[verdict].packets, before[verdict].packets if before else 0),
        )
        for verdict in abi.Verdict
        if now
    )


def _cpus(facts: Facts) -> tuple[CpuStatus, ...]:
    now = [sum(one.packets for one in each) for each in facts.reading.cpus]
    before = [sum(one.packets for one in each) for each in facts.earlier.cpus] or [0] * len(now)
    return tuple(
        CpuStatus(cpu, packets, _per_second(facts, packets, before[cpu]))
        for cpu, packets in enumerate(now)
    )


def _per_second(facts: Facts, now: int, before: int) -> float | None:
    return round(max(0, now - before) / facts.seconds, 1) if facts.seconds > 0 else None


def _drains(facts: Facts) -> Iterable[Drain]:
    """Draining backends, whether the file still names them or not."""
    for at, entry in sorted(facts.state.backends.items()):
        if entry.flags & abi.BackendFlag.NO_NEW and (entry.until or facts.reading.live.get(at)):
            account = facts.backends.accounts.get(at)
            ends = entry.until not in (0, drain.KEPT)
            left = max(0.0, round((entry.until - facts.tick) * TICK, 1)) if ends else None
            name = account.owner if account else f"#{entry.name:016x}"
            yield Drain(name, facts.reading.live.get(at, 0), left)
