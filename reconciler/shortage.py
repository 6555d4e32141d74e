"""Which pools the services pass over, what they lack, and since when. Pure.

What decides is in the maps, and is judged by quorum.py; here it is only told.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from reconciler import ids
from reconciler.facts import Facts, Moment
from reconciler.parts import Part, PoolKey, members
from reconciler.quorum import enough, enough_again
from reconciler.spare import is_usable

Since = Mapping[str, float]  # by part and pool


@dataclass(frozen=True, slots=True)
class ShortPool:
    name: str  # with the family, where each has its own backends
    usable: int
    backends: int  # that may get new flows
    panic_at: int  # with fewer than this it became short
    serves_at: int  # with as many it serves again; with panic_at, if no other pool serves
    since: Moment | None


def short_pools(facts: Facts, parts: Iterable[tuple[int, Part]]) -> tuple[ShortPool, ...]:
    """Of one service."""
    return tuple(_short(facts, part, key) for part, key in _passed_over(facts, parts))


def follow(before: Since, facts: Facts) -> dict[str, float]:
    """With the time at which each was first seen to be short."""
    found = _passed_over(facts, facts.roster.services.items())
    names = sorted(_name(part, key) for part, key in found)
    return {name: before.get(name, facts.now) for name in names}


def _passed_over(facts: Facts, parts: Iterable[tuple[int, Part]]) -> Iterator[tuple[Part, PoolKey]]:
    for number, part in parts:
        entry = facts.state.services.get(ids.index(number))
        if entry is not None and entry.id == number:
            yield from (
                (part, key) for i, key in enumerate(part.pools) if entry.short_pools >> i & 1
            )


def _short(facts: Facts, part: Part, key: PoolKey) -> ShortPool:
    pool = facts.config.pools.get(key.pool) if facts.config else None
    backends = members(pool, key.family) if pool else []
    numbers = [facts.roster.backends.get((key.pool, one.name), 0) for one in backends]
    since = facts.short_since.get(_name(part, key))
    return ShortPool(
        name=key.pool + (f"/ipv{key.family}" if key.family else ""),
        usable=sum(_is_usable(facts, number) for number in numbers),
        backends=len(backends),
        panic_at=enough(part.service.panic, len(backends)),
        serves_at=enough_again(part.service, len(backends)),
        since=None if since is None else Moment(since),
    )


def _is_usable(facts: Facts, number: int) -> bool:
    at = ids.index(number)
    entry = facts.state.backends.get(at)
    return entry is not None and entry.id == number and is_usable(entry, facts.health.get(at))


def _name(part: Part, key: PoolKey) -> str:
    return f"{part} {key}"
