"""When each probe is due. Pure: the time is an argument, chance is a hash of the target.

Every target keeps to beats of its own: points of time that depend on its name and its interval alone. So targets
are spread over the interval by construction, stay spread through reloads and stalls, and whoever missed a beat
waits for the next instead of catching up in a burst.
"""

import heapq
from hashlib import blake2b
from math import ceil, floor, inf
from typing import Generic, TypeVar

T = TypeVar("T")

SOON = 1.0  # a target that is new, or that a stall overtook, is probed within this many seconds
JITTER = 0.05  # of the interval: enough to leave step with whatever else has the same period
TICK = 0.005  # resolution of the wheel: a start is late by at most this, a wake-up serves all of a tick

_SURE = 1e-6  # of an interval: what a beat that is stored as a float may be off by
_MIX, _WORD, _PRIME = 0x9E3779B97F4A7C15, 0xFFFFFFFFFFFFFFFF, 0x1000003D


def seed(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest())


class Beat:
    """One target's points of time. `jitter` is a share of the interval, at most a half."""

    __slots__ = ("_phase", "_seed", "every", "jitter")

    def __init__(self, seed: int, every: float, jitter: float = JITTER) -> None:
        self._seed = seed
        self.every = every
        self.jitter = jitter
        self._phase = self._share(0)

    def paced(self, every: float) -> "Beat":
        return Beat(self._seed, every, self.jitter)

    def at(self, number: int) -> float:
        """The time of one beat; beats never change places, since the jitter is below their distance."""
        return (number + self._phase + self.jitter * (self._share(number + 1) - 0.5)) * self.every

    def soon(self, now: float) -> float:
        """When to begin: not in one instant with all others, and not a whole interval away."""
        return now + self._phase * min(self.every, SOON)

    def next(self, due: float, now: float) -> float:
        """The beat after the one that was due; if a slow probe overran that, at once; if more was missed, the next."""
        every = self.every
        jitter, phase = self.jitter, self._phase
        number = floor(due / every - phase + jitter * 0.5 + _SURE) + 1
        # As `at` has it, without the calls: each probe that ends comes by here.
        mixed = (self._seed ^ ((number + 1) * _MIX)) * _MIX & _WORD
        share = (mixed ^ mixed >> 29) % _PRIME / _PRIME
        following = (number + phase + jitter * (share - 0.5)) * every
        if following > now:
            return following
        return now if now - due < 2 * every else self._first_after(now)

    def hurried(self, interval: float, now: float) -> float:
        """Off the beat: an interval after the last one ended, so that no two follow at once."""
        return now + interval * (1 + self.jitter * (self._share(floor(now * 1000)) - 0.5))

    def _first_after(self, time: float) -> float:
        number = floor(time / self.every - self._phase)  # by less than a beat too early
        while (at := self.at(number)) <= time:
            number += 1
        return at

    def _share(self, salt: int) -> float:
        """0 to 1, the same for the same target and salt."""
        mixed = (self._seed ^ (salt * _MIX)) * _MIX & _WORD
        return (mixed ^ mixed >> 29) % _PRIME / _PRIME


class Wheel(Generic[T]):
    """What is due when, in ticks. Nothing is ever taken out early: whoever takes things out knows what has gone."""

    __slots__ = ("_slots", "_ticks", "next_due")

    def __init__(self) -> None:
        self._slots: dict[int, list[T]] = {}
        self._ticks: list[int] = []  # a heap of the keys above
        self.next_due = inf

    def add(self, due: float, item: T) -> None:
        tick = ceil(due / TICK)  # rounded up: nothing is early
        if (slot := self._slots.get(tick)) is not None:
            slot.append(item)
            return
        self._slots[tick] = [item]
        heapq.heappush(self._ticks, tick)
        self.next_due = self._ticks[0] * TICK

    def due(self, now: float) -> list[T]:
        """Takes out everything that is due, the oldest first."""
        taken: list[T] = []
        while self.next_due <= now:
            taken += self._slots.pop(heapq.heappop(self._ticks))
            self.next_due = self._ticks[0] * TICK if self._ticks else inf
        return taken
