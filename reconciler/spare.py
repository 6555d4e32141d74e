"""What follows from health: spare tables, and which pools are short. Pure.

None of it is configuration, so none of it changes a table, an id or a digest.
"""

from collections.abc import Mapping
from typing import NamedTuple

from bpf import abi
from reconciler import ids, quorum, table
from reconciler.compile import Desired
from reconciler.dataplane import State
from reconciler.memo import Memo
from reconciler.parts import PoolKey
from reconciler.pieces import Table
from reconciler.quorum import Strength
from reconciler.table import Slots

Health = Mapping[int, abi.Health]
Services = Mapping[int, abi.Service]
INDEX = int(abi.IdLayout.INDEX_MASK)
NEVER: Services = {}
FORCED_DOWN = int(abi.BackendFlag.FORCED_DOWN)  # plain: arithmetic of enums is slow


class Seen(NamedTuple):
    """Which of a pool's members may be chosen, and how many have not been checked yet."""

    usable: tuple[bool, ...]
    unknown: int

    def strength(self, *, was_short: bool) -> Strength:
        return Strength(sum(self.usable), len(self.usable), was_short, self.unknown)


NOBODY = Seen((), 0)


def with_health(
    desired: Desired, health: Health, memo: Memo | None = None, before: Services = NEVER
) -> State:
    """The desired state, with the spare tables and short pools of the present health.

    `before` is what the maps say of services now: a pool that is short there has to recover.
    """
    memo = memo or Memo()
    seen = {key: _seen(memo, desired, key, health) for key in desired.tables}
    spares = {
        ids.index(number): _spare(memo, desired, number, key, seen[key].usable)
        for number, key in desired.pools.items()
        if key in desired.tables
    }
    services = {
        ids.index(number): _service(memo, desired, number, seen, before) for number in desired.parts
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
    if entry.flags & FORCED_DOWN:
        return False
    if entry.flags & abi.BackendFlag.FORCED_UP:
        return True
    if _is_unchecked(entry, health):
        return bool(entry.flags & abi.BackendFlag.ASSUME_UP)
    return health is not None and health.state == abi.HealthState.UP


def _is_unchecked(entry: abi.Backend, health: abi.Health | None) -> bool:
    return health is None or health.id != entry.id or health.state == abi.HealthState.UNKNOWN


def is_unknown(entry: abi.Backend, health: abi.Health | None) -> bool:
    """Nothing speaks for it yet, and nothing against it."""
    decided = abi.BackendFlag.FORCED_DOWN | abi.BackendFlag.FORCED_UP | abi.BackendFlag.ASSUME_UP
    return not entry.flags & decided and _is_unchecked(entry, health)


def _seen(memo: Memo, desired: Desired, key: PoolKey, health: Health) -> Seen:
    numbers = [number & INDEX for number in desired.members[key]]
    entries = tuple(map(desired.state.backends.__getitem__, numbers))
    return memo.of(_all_seen, key, entries, tuple(map(health.get, numbers)))


def _all_seen(entries: tuple[abi.Backend, ...], health: tuple[abi.Health | None, ...]) -> Seen:
    usable = tuple(map(is_usable, entries, health))
    return Seen(usable, 0 if all(usable) else sum(map(is_unknown, entries, health)))


def _spare(
    memo: Memo, desired: Desired, number: int, key: PoolKey, usable: tuple[bool, ...]
) -> Slots:
    if all(usable):
        return desired.state.tables[ids.index(number)]
    entries = (desired.state.backends[at & INDEX] for at in desired.members[key])
    whole = tuple(not entry.flags & FORCED_DOWN for entry in entries)
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
    memo: Memo,
    desired: Desired,
    number: int,
    seen: Mapping[PoolKey, Seen],
    before: Services,
) -> abi.Service:
    part = desired.parts[number]
    entry = desired.state.services[ids.index(number)]
    were = short_pools(before.get(ids.index(number)), number)
    pools = [
        seen.get(key, NOBODY).strength(was_short=pool in were)
        for key, pool in zip(part.pools, entry.pools, strict=False)
    ]
    short = sum(is_short << i for i, is_short in enumerate(quorum.short(part.service, pools)))
    return memo.of(_with_short, entry.id, entry, short) if short else entry


def short_pools(entry: abi.Service | None, number: int) -> frozenset[int]:
    """Ids of the pools that the service of this number passes over."""
    if entry is None or entry.id != number or not entry.short_pools:
        return frozenset()
    pools = enumerate(entry.pools[: entry.pool_count])
    return frozenset(pool for i, pool in pools if entry.short_pools >> i & 1)


def _with_short(entry: abi.Service, short: int) -> abi.Service:
    changed = abi.Service.from_bytes(bytes(entry))
    changed.short_pools |= short
    return changed
