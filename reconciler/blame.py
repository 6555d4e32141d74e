"""Whose a write is: the services that it is made for. Pure.

Answers by what the maps say and are to say. What belongs to no service, or to one
that has no name any more, is everybody's: then nobody is told.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bpf import abi
from reconciler import ids
from reconciler.dataplane import Op, Put, State, Where
from reconciler.encode import FrontendKey
from reconciler.model import Config
from reconciler.parts import backend_hash, part_hash, parts_of

ENTRIES = (Where.POOLS, Where.TABLES, Where.SPARES)
KEYS = (Where.FRONTENDS4, Where.FRONTENDS6)
REPLIES = (Where.REPLIES4, Where.REPLIES6)


def concerned(op: Op, states: Iterable[State], configs: Iterable[Config]) -> frozenset[str]:
    """By name."""
    configs = tuple(configs)
    names = {
        part_hash(part): name
        for config in configs
        for name, service in config.services.items()
        for part in parts_of(service)
    }
    found = {
        names[state.services[at].name]
        for state in states
        for at in _indexes(op, state)
        if at in state.services and state.services[at].name in names
    }
    return frozenset(found | set(_members(op, configs)))


def _members(op: Op, configs: Iterable[Config]) -> Iterator[str]:
    """Who uses the pool that a backend is in: no slot may name it yet."""
    if not isinstance(op, Put) or op.where is not Where.BACKENDS:
        return
    for config in configs:
        pools = {
            pool.name
            for pool in config.pools.values()
            if any(backend_hash(pool.name, name) == op.value.name for name in pool.backends)
        }
        for name, service in config.services.items():
            if not pools.isdisjoint(service.pools):
                yield name


def _indexes(op: Op, state: State) -> set[int]:
    """Of services in this state."""
    if op.where is Where.SERVICES:
        return {op.key}
    if op.where is Where.FRONTENDS:
        return _owners(state, {op.key})
    if op.where in KEYS:
        return _of_key(op.key, state)
    if op.where in REPLIES:
        return _of_reply(op, state)
    if op.where is Where.BACKENDS:
        return _users(state, {at for at, slots in state.tables.items() if _names(slots, op.key)})
    return _users(state, {op.key}) if op.where in ENTRIES else set()


def _owners(state: State, frontends: set[int]) -> set[int]:
    entries = (state.frontends[at] for at in frontends if at in state.frontends)
    return {ids.index(entry.service) for entry in entries}


def _users(state: State, pools: set[int]) -> set[int]:
    return {
        at
        for at, entry in state.services.items()
        if not pools.isdisjoint(map(ids.index, entry.pools[: entry.pool_count]))
    }


def _names(slots: Iterable[int], backend: int) -> bool:
    return any(ids.index(number) == backend for number in set(slots))


def _of_key(key: FrontendKey, state: State) -> set[int]:
    """Of an address and a port; a marker is of all that have the address."""
    own: Mapping[Any, int] = (
        state.frontends4 if isinstance(key, abi.Frontend4Key) else state.frontends6
    )
    found = _owners(state, {ids.index(own.get(key, 0))})
    same = {ids.index(one) for other, one in own.items() if _address(other) == _address(key)}
    return found or _owners(state, same)


def _address(key: FrontendKey) -> object:
    return key.addr if isinstance(key, abi.Frontend4Key) else bytes(key.addr)


def _of_reply(op: Op, state: State) -> set[int]:
    entry = state[op.where].get(op.key)
    if entry is None:
        return set()
    listed = entry.candidate[: min(entry.count, abi.Limit.REPLY_CANDIDATES)]
    return _owners(state, {ids.index(one.frontend) for one in listed})
