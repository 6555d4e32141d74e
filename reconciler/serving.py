"""Services, their pools and backends, as the status has them. Pure."""

from collections.abc import Iterable, Mapping
from functools import lru_cache

from bpf import abi
from reconciler import ids
from reconciler.facts import (
    Checked,
    Facts,
)
from reconciler.model import Address, Backend, Pool
from reconciler.names import address_of
from reconciler.parts import Part, PoolKey
from reconciler.portrait import Portrait, portrait
from reconciler.rates import NOTHING, Count, rate, sum_of, total
from reconciler.shortage import short_pools
from reconciler.spare import is_usable
from reconciler.status import BackendStatus, Health, PoolStatus, ServiceStatus, TableStatus

# ---- pools


def pools_of(facts: Facts, totals: Mapping[str, Count]) -> tuple[PoolStatus, ...]:
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


def services_of(facts: Facts, pools: Mapping[str, PoolStatus]) -> tuple[ServiceStatus, ...]:
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
