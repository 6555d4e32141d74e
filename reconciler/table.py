"""Tables: which backend each slot names. Pure, and in integers only.

A table follows from the names and weights of a pool's backends and from its size,
and from nothing else: not from ids, order, health or history. So two nodes with
one file have the same tables. table.c does the same faster when it was compiled;
what is here is its reference, and what runs where there is no compiler.
"""

import ctypes
import functools
import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from reconciler.model import Method

if TYPE_CHECKING:
    Slots = array[int]
else:  # not subscriptable before Python 3.12
    Slots = array

FREE = 0xFFFFFFFF


class Fill(Enum):
    """How slots are filled; several methods of choosing share one."""

    CONSISTENT = "consistent"
    MAGLEV = "maglev"
    ROUND_ROBIN = "round-robin"


def fill_of(method: Method) -> Fill:
    by_name = {fill.value: fill for fill in Fill}
    return by_name.get(method.value, Fill.CONSISTENT)


@dataclass(slots=True)
class Member:
    """A backend while slots are handed out."""

    at: int
    skip: int
    weight: int
    room: int
    credit: int = 0


class _Member(ctypes.Structure):
    _fields_ = (
        ("credit", ctypes.c_uint64),
        ("at", ctypes.c_uint32),
        ("skip", ctypes.c_uint32),
        ("weight", ctypes.c_uint32),
        ("room", ctypes.c_uint32),
    )


@functools.cache
def compiled() -> ctypes.CDLL | None:
    """The compiled functions: in the installed package, else in the build folder."""
    here = Path(__file__).resolve().parent
    # Not table.so beside this: Python would take it for the module itself.
    places = (here / "libtable.so", here.parent / "build" / "table.so")
    return next((ctypes.CDLL(str(place)) for place in places if place.exists()), None)


def members(names: Sequence[str], weights: Sequence[int], size: int, fill: Fill) -> list[Member]:
    """Where each backend tries first, how it goes on, and how much it may take."""
    rooms = dues(weights, size) if fill is Fill.CONSISTENT else [size] * len(names)
    made = []
    for name, weight, room in zip(names, weights, rooms, strict=True):
        digest = hashlib.blake2b(name.encode(), digest_size=16, person=b"evenkeel slots").digest()
        at = int.from_bytes(digest[:8], "little") % size
        skip = int.from_bytes(digest[8:], "little") % (size - 1) + 1
        made.append(Member(at, skip, weight, room))
    return made


def dues(weights: Sequence[int], size: int) -> list[int]:
    """Whole slots by weight: what rounding leaves goes to the largest remainders."""
    total = sum(weights)
    shares = [size * weight // total for weight in weights]
    remainders = [(-(size * weight % total), i) for i, weight in enumerate(weights)]
    for _, i in sorted(remainders)[: size - sum(shares)]:
        shares[i] += 1
    return shares


@functools.lru_cache(maxsize=4096)
def fill(how: Fill, size: int, names: tuple[str, ...], weights: tuple[int, ...]) -> Slots:
    """For each slot an index into `names`, which are sorted; weights are positive.

    The size is prime. Callers share the result: they must not change it.
    """
    library = compiled()
    if library is None:
        return fill_plainly(how, size, names, weights)
    slots = array("I", bytes(4 * size))
    if how is Fill.ROUND_ROBIN:
        behind = (ctypes.c_int64 * len(names))()
        library.deal(
            _view(slots), size, (ctypes.c_uint32 * len(names))(*weights), behind, len(names)
        )
        return slots
    made = (_Member * len(names))(
        *(_Member(0, m.at, m.skip, m.weight, m.room) for m in members(names, weights, size, how))
    )
    library.fill(_view(slots), size, made, len(names), int(how is Fill.MAGLEV))
    return _scattered(library, slots)


def _scattered(library: ctypes.CDLL, slots: Slots) -> Slots:
    size = len(slots)
    result, scratch = array("I", bytes(4 * size)), array("I", bytes(4 * size))
    library.scatter(_view(result), _view(slots), _view(scratch), size)
    return result


def fill_plainly(how: Fill, size: int, names: Sequence[str], weights: Sequence[int]) -> Slots:
    """The reference: table.c's fill() and deal(), in plain Python."""
    if how is Fill.ROUND_ROBIN:
        return _deal(size, weights)
    made = members(names, weights, size, how)
    slots = array("I", [FREE]) * size
    most, left = _heaviest(made), size
    while left:
        for number, member in enumerate(made):
            if not left or not _has_turn(member, most):
                continue
            slot = _try_next(member, size)
            while how is Fill.MAGLEV and slots[slot] != FREE:
                slot = _try_next(member, size)
            if slots[slot] != FREE:
                continue
            slots[slot] = number
            left -= 1
            member.room -= 1
            if not member.room:
                most = _heaviest(made)
    return array("I", (slots[pow(i, -1, size) if i else 0] for i in range(size)))


def _heaviest(made: Sequence[Member]) -> int:
    return max((member.weight for member in made if member.room), default=1)


def _has_turn(member: Member, most: int) -> bool:
    if not member.room:
        return False
    member.credit += member.weight
    if member.credit < most:
        return False
    member.credit -= most
    return True


def _try_next(member: Member, size: int) -> int:
    slot = member.at
    member.at = (slot + member.skip) % size
    return slot


def _deal(size: int, weights: Sequence[int]) -> Slots:
    """Whoever is furthest behind its share is next; noise varies the order of equals."""
    count = len(weights)
    weights = [weight << 16 for weight in weights]  # fine enough for noise
    total, behind = sum(weights), [0] * count
    slots = array("I")
    for slot in range(size):
        behind = [b + w for b, w in zip(behind, weights, strict=True)]
        tickets = [
            b + (w * _noise(slot * count + i) >> 32)
            for i, (b, w) in enumerate(zip(behind, weights, strict=True))
        ]
        following = tickets.index(max(tickets))
        behind[following] -= total
        slots.append(following)
    return slots


def _noise(x: int) -> int:
    x &= FREE
    x = (x ^ x >> 16) * 0x7FEB352D & FREE
    x = (x ^ x >> 15) * 0x846CA68B & FREE
    return x ^ x >> 16


def step(size: int) -> int:
    """How far the walk goes at once: about the golden section of a prime size."""
    return max(1, size * 618 // 1000)


def walk(slots: Slots, usable: Sequence[bool]) -> Slots:
    """For each slot the member that the whole walk ends at; no one usable: the table itself."""
    library = compiled()
    size = len(slots)
    if library is None:
        return walk_plainly(slots, usable)
    ends = array("I", bytes(4 * size))
    library.walk(_view(ends), _view(slots), size, step(size), bytes(usable))
    return ends


def walk_plainly(slots: Slots, usable: Sequence[bool]) -> Slots:
    """The reference: table.c's walk(), in plain Python."""
    size, found, slot = len(slots), FREE, 0
    ends = array("I", slots)
    for _ in range(2 * size):
        if usable[slots[slot]]:
            found = slots[slot]
        ends[slot] = slots[slot] if found == FREE else found
        slot = (slot - step(size)) % size
    return ends


def named(slots: Slots, ids: Sequence[int]) -> Slots:
    """The table as the maps hold it: members become ids."""
    library = compiled()
    if library is None:
        return array("I", (ids[member] for member in slots))
    result = array("I", bytes(4 * len(slots)))
    library.name(_view(result), _view(slots), len(slots), (ctypes.c_uint32 * len(ids))(*ids))
    return result


def digest(slots: Slots, names: Sequence[str]) -> str:
    """Of the names in the slots, so that nodes whose ids differ can be compared."""
    content = hashlib.sha256(b"\0".join(name.encode() for name in names))
    content.update(b"\0\0" + slots.tobytes())
    return content.hexdigest()[:16]


def moved(before: Slots, after: Slots) -> int:
    """How many slots name something else; all of them when the size differs."""
    if len(before) != len(after):
        return len(after)
    return sum(map(int.__ne__, before, after))


def shares(slots: Slots) -> dict[int, int]:
    """How many slots each member, or id, has."""
    return dict(Counter(slots))


def _view(slots: Slots) -> ctypes.Array[ctypes.c_uint32]:
    return (ctypes.c_uint32 * len(slots)).from_buffer(slots)
