"""Ids: an index and an incarnation. Pure.

An id is never bound to something else: who gets a free index gets it with the
next incarnation, so that slots, flows and health that name the former owner mean
nothing any more. Nobody has to prove that there are none.
"""

import functools
import hashlib
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from bpf.abi import IdLayout

INCARNATIONS = 1 << (32 - IdLayout.INDEX_BITS)
Name = TypeVar("Name", bound=Hashable)
LARGER = (
    "`reconciler upgrade` then goes over to larger maps, under traffic"  # once node.yaml says so
)


class NoRoom(Exception):
    """A map is too small for the configuration."""

    def __init__(self, what: str, needed: int, room: int, lacking: Iterable[Hashable] = ()) -> None:
        self.lacking = frozenset(lacking)  # those that got no place
        super().__init__(
            f"{needed} {what} do not fit: the map has room for {room}."
            f" Raise sizes.{what} in node.yaml; {LARGER}"
        )


def index(number: int) -> int:
    return number & IdLayout.INDEX_MASK


def incarnation(number: int) -> int:
    return number >> IdLayout.INDEX_BITS


def make(at: int, generation: int) -> int:
    return generation << IdLayout.INDEX_BITS | at


def retired(number: int) -> int:
    """What a freed entry carries: the incarnation that it had, and no index, so no id at all."""
    return make(0, incarnation(number))


@functools.lru_cache(maxsize=1 << 17)
def hashed(name: str) -> int:
    """64 bits by which an entry in a map is recognised as the one of that name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") or 1


def assign(
    what: str,
    wanted: Iterable[Name],
    known: Mapping[Name, int],
    free: Mapping[int, int],
    room: int,
    replaced: Collection[object] = frozenset(),
    taken: Collection[int] = (),
) -> dict[Name, int]:
    """An id for each name: the one that it has, else an index that no one has now.

    `known` are all ids in the maps, wanted or not; `free` the incarnations that
    freed indexes had last. Index 0 is never given away. `replaced` names
    get another id than the one that they have. `taken` indexes have an entry,
    be it one of a name that has two: an apply was interrupted.
    """
    names = list(dict.fromkeys(wanted))
    unused = _unused(taken, known, free, room)
    ids: dict[Name, int] = {}
    for name in names:
        number = known.get(name, 0) if name not in replaced else 0
        ids[name] = number or next(unused, 0)
    if lacking := [name for name, number in ids.items() if not number]:
        # Replacements need their own index until what they replace is gone.
        together = len(names) + len(known.keys() - set(names))
        raise NoRoom(what, together, room - 1, lacking)
    return ids


def _unused(
    taken: Collection[int], known: Mapping[Any, int], free: Mapping[int, int], room: int
) -> Iterator[int]:
    """Looks who has what when the first is asked for, which is seldom."""
    owned = {*taken, *map(index, known.values())}
    for at in range(1, room):
        if at not in owned:
            yield make(at, max(1, (free.get(at, 0) + 1) % INCARNATIONS))
