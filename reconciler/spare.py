"""What follows from health: spare tables, and which pools are short. Pure.

None of it is configuration, so none of it changes a table, an id or a digest.
"""

from collections.abc import Mapping

from bpf import abi
from reconciler import ids, table
from reconciler.compile import Desired
from reconciler.dataplane import State
from reconciler.memo import Memo
from reconciler.parts import PoolKey
from reconciler.pieces import Table
from reconciler.table import Slots

Health = Mapping[int, abi.Health]
INDEX = int(abi.IdLayout.INDEX_MASK)


def with_health(desired: Desired, health: Health, memo: Memo | None = None) -> State:
    """The desired state, with the spare tables and short pools of the present health."""
    memo = memo or Memo()
    usable = {key: _usable(memo, desired, key, health) for key in desired.tables}
    spares = {
        ids.index(number): _spare(memo, desired, number, key, usable[key])
        for number, key in desired.pools.items()
        if key in desired.tables
    }
    services = {
        ids.index(number): _service(memo, desired, number, usable) for number in desired.parts
    }
    return replaced(desired.state, spares, services)


def replaced(
    state: State, spares: Mapping[int, Slots], services: Mapping[int, abi.Service]
) -> State:
    """A copy with other spare tables and services."""
    fields = {name: getattr(state, name) for name in State.__dataclass_fields__}
    return State(**{**fields, "spares": spares, "services": services})


def is_usable(entry: abi.Backend, health: abi.Health | None) -> bool:
    """As the program sees it, the ramp ignored."""
    if entry.flags & abi.BackendFlag.FORCED_DOWN:
        return False
    if entry.flags & abi.BackendFlag.FORCED_UP:
        return True
    if health is None or health.id != entry.id or health.state == abi.HealthState.UNKNOWN:
        return bool(entry.flags & abi.BackendFlag.ASSUME_UP)
    return health.state == abi.HealthState.UP


def _usable(memo: Memo, desired: Desired, key: PoolKey, health: Health) -> tuple[bool, ...]:
    """Which of the members may be chosen."""
    numbers = [number & INDEX for number in desired.members[key]]
    entries = tuple(map(desired.state.backends.__getitem__, numbers))
    return memo.of(_all_usable, key, entries, tuple(map(health.get, numbers)))


def _all_usable(
    entries: tuple[abi.Backend, ...], health: tuple[abi.Health | None, ...]
) -> tuple[bool, ...]:
    return tuple(map(is_usable, entries, health))


def _spare(
    memo: Memo, desired: Desired, number: int, key: PoolKey, usable: tuple[bool, ...]
) -> Slots:
    if all(usable):
        return desired.state.tables[ids.index(number)]
    entries = (desired.state.backends[at & INDEX] for at in desired.members[key])
    whole = tuple(not entry.flags & abi.BackendFlag.FORCED_DOWN for entry in entries)
    return memo.of(_walked, key, desired.tables[key], usable, whole, desired.members[key])


def _walked(
    made: Table, usable: tuple[bool, ...], whole: tuple[bool, ...], numbers: tuple[int, ...]
) -> Slots:
    """Where no usable one has a slot the pool may be used whole: then who is not forced down counts."""
    there = set(made.slots)
    for some in (usable, whole):
        if any(some[member] for member in there):
            return table.named(table.walk(made.slots, some), numbers)
    return table.named(made.slots, numbers)


def _service(
    memo: Memo, desired: Desired, number: int, usable: Mapping[PoolKey, tuple[bool, ...]]
) -> abi.Service:
    part = desired.parts[number]
    entry = desired.state.services[ids.index(number)]
    short = 0
    for i, key in enumerate(part.pools):
        states = usable.get(key, ())
        if sum(states) * 100 < part.service.panic * len(states):
            short |= 1 << i
    return memo.of(_with_short, entry.id, entry, short) if short else entry


def _with_short(entry: abi.Service, short: int) -> abi.Service:
    changed = abi.Service.from_bytes(bytes(entry))
    changed.short_pools |= short
    return changed
