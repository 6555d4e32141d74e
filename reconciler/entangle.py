"""Which pools and services must be replaced rather than changed in place. Pure.

A service switches to what it is to be in one write, and so does a frontend. But
a packet that is about to leave a pool or a service must not meet that pool's or
service's new content on its way out: nobody asked for that. Then the new content
gets a new id, and whoever leaves goes on seeing the old one until it is gone.

Likewise when no one is left to choose in a pool: whoever stays with it learns of
another pool in the same write, and whoever comes to it never meets who was there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bpf import abi
from reconciler import encode, ids
from reconciler.dataplane import State
from reconciler.encode import FrontendKey

FORCED_DOWN = int(abi.BackendFlag.FORCED_DOWN)
Reach = frozenset[tuple[int, int]]  # (pool id, forward)


@dataclass(frozen=True, slots=True)
class Replaced:
    """Hashed names whose id must not be taken over."""

    pools: frozenset[int] = frozenset()
    services: frozenset[int] = frozenset()

    def __or__(self, other: "Replaced") -> "Replaced":
        return Replaced(self.pools | other.pools, self.services | other.services)


def entangled(desired: State, actual: State) -> Replaced:
    """What changes while some packets are still on their way out of it."""
    changed_pools = _changed_pools(desired, actual)
    changed_services = _changed_services(desired, actual)
    pools = _exhausted(desired, actual) | _opened(desired, actual)
    if not changed_pools and not changed_services and not pools:
        return Replaced()
    services: set[int] = set()
    concerned = _leading_to(changed_pools, actual) | changed_services
    for packet in _packets(concerned, actual, desired):
        before, after = _service(actual, packet), _service(desired, packet)
        if before is None:
            continue
        left = _reach(before) - _reach(after)
        pools |= {number for number, _ in left} & changed_pools
        if after is None or after.id != before.id:
            services |= {before.id} & changed_services
    return Replaced(_names(actual.pools, pools), _names(actual.services, services))


def _changed_pools(desired: State, actual: State) -> set[int]:
    """Pools that both have, with new backends in the table."""
    return {
        actual.pools[at].id
        for at in _refilled(desired, actual)
        if set(desired.tables.get(at, ())) - set(actual.tables.get(at, ()))
    }


def _exhausted(desired: State, actual: State) -> set[int]:
    """Pools that both have, with no one to choose in the new table."""
    return {
        actual.pools[at].id
        for at in _refilled(desired, actual)
        if not any(_is_choosable(desired, number) for number in set(desired.tables.get(at, ())))
    }


def _opened(desired: State, actual: State) -> set[int]:
    """Pools that change while a service of theirs begins to use them whole when no one is up.

    Before, nobody would be chosen from the new table; and whoever is in the old one was not asked for after.
    """
    refilled = {actual.pools[at].id for at in _refilled(desired, actual)}
    opened = (
        entry
        for at, entry in actual.services.items()
        if refilled
        and entry.flags & abi.ServiceFlag.FAIL_CLOSED
        and (wanted := desired.services.get(at)) is not None
        and not wanted.flags & abi.ServiceFlag.FAIL_CLOSED
    )
    return {number for entry in opened for number in entry.pools[: entry.pool_count]} & refilled


def _is_choosable(desired: State, number: int) -> bool:
    entry = desired.backends.get(ids.index(number))
    return entry is not None and entry.id == number and not entry.flags & FORCED_DOWN


def _refilled(desired: State, actual: State) -> list[int]:
    """Where pools are that both have, with different tables."""
    return [
        at
        for at, pool in actual.pools.items()
        if at in desired.pools
        and desired.pools[at].id == pool.id
        and _differ(desired.tables.get(at), actual.tables.get(at))
    ]


def _differ(one: object, other: object) -> bool:
    """Arrays alone do not notice that they are the same object."""
    return one is not other and one != other


def _changed_services(desired: State, actual: State) -> set[int]:
    return {
        entry.id
        for at, entry in actual.services.items()
        if (wanted := desired.services.get(at)) is not None
        and wanted is not entry
        and wanted.id == entry.id
        and _essence(wanted) != _essence(entry)
    }


def _essence(entry: abi.Service) -> tuple[Any, ...]:
    """Where the service sends packets, and how."""
    return (entry.forward, entry.flags & abi.ServiceFlag.FAIL_CLOSED, *entry.pools)


def _leading_to(pools: set[int], state: State) -> set[int]:
    """The services that reach any of the pools."""
    if not pools:
        return set()
    return {
        entry.id
        for entry in state.services.values()
        if not pools.isdisjoint(entry.pools[: entry.pool_count])
    }


def _packets(services: set[int], actual: State, desired: State) -> set[FrontendKey]:
    """One for each way in which either state tells packets apart, where these services are met."""
    addresses = {
        encode.address_bytes(entry.addr, entry.family)
        for entry in actual.frontends.values()
        if entry.service in services
    }
    keys: set[FrontendKey] = set()
    for state in (actual, desired) if addresses else ():
        keys.update(key for key in state.frontends4 if key.addr.to_bytes(4) in addresses)
        keys.update(key for key in state.frontends6 if bytes(key.addr) in addresses)
    return keys


def _service(state: State, packet: FrontendKey) -> abi.Service | None:
    """Whose packet it is, as the program finds it."""
    frontend = _frontend(state, packet) or _frontend(state, _any_port(packet))
    if frontend is None:
        return None
    service = state.services.get(ids.index(frontend.service))
    return service if service is not None and service.id == frontend.service else None


def _frontend(state: State, key: FrontendKey) -> abi.Frontend | None:
    keys: Mapping[Any, int] = (
        state.frontends4 if isinstance(key, abi.Frontend4Key) else state.frontends6
    )
    number = keys.get(key, 0)
    entry = state.frontends.get(ids.index(number))
    return entry if entry is not None and entry.id == number else None


def _any_port(key: FrontendKey) -> FrontendKey:
    if isinstance(key, abi.Frontend4Key):
        return abi.Frontend4Key(addr=key.addr, proto=key.proto)
    return abi.Frontend6Key(addr=tuple(key.addr), proto=key.proto)


def _reach(service: abi.Service | None) -> Reach:
    if service is None:
        return frozenset()
    pools = service.pools[: service.pool_count]
    return frozenset((number, service.forward) for number in pools)


def _names(entries: Mapping[int, Any], numbers: set[int]) -> frozenset[int]:
    return frozenset(entry.name for entry in entries.values() if entry.id in numbers)
