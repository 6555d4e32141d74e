"""What follows from health: spare tables, and which pools are short. Pure.

None of it is configuration, so none of it changes a table, an id or a digest.
"""

from collections.abc import Mapping

from bpf import abi
from reconciler import ids, table
from reconciler.compile import Desired, Table
from reconciler.dataplane import State
from reconciler.parts import PoolKey
from reconciler.table import Slots

Health = Mapping[int, abi.Health]


def with_health(desired: Desired, health: Health) -> State:
    """The desired state, with the spare tables and short pools of the present health."""
    usable = {key: _usable(desired, key, made, health) for key, made in desired.tables.items()}
    spares = {
        ids.index(number): _spare(desired, number, key, usable[key])
        for number, key in desired.pools.items()
        if key in desired.tables
    }
    services = {ids.index(number): _service(desired, number, usable) for number in desired.parts}
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


def _usable(desired: Desired, key: PoolKey, made: Table, health: Health) -> list[bool]:
    numbers = (ids.index(desired.backends[key.pool, name]) for name in made.names)
    return [is_usable(desired.state.backends[at], health.get(at)) for at in numbers]


def _spare(desired: Desired, number: int, key: PoolKey, usable: list[bool]) -> Slots:
    if all(usable) or not any(usable):
        return desired.state.tables[ids.index(number)]
    made = desired.tables[key]
    ends = table.walk(made.slots, usable)
    return table.named(ends, [desired.backends[key.pool, name] for name in made.names])


def _service(desired: Desired, number: int, usable: Mapping[PoolKey, list[bool]]) -> abi.Service:
    part = desired.parts[number]
    entry = abi.Service.from_bytes(bytes(desired.state.services[ids.index(number)]))
    for i, key in enumerate(part.pools):
        states = usable.get(key, [])
        if sum(states) * 100 < part.service.panic * len(states):
            entry.short_pools |= 1 << i
    return entry
