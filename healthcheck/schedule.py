"""When each probe is due. Pure: the time is an argument, chance is a hash of the target.

Every target keeps to beats of its own: points of time that depend on its name and its interval alone. So targets
are spread over the interval by construction, stay spread through reloads and stalls, and whoever missed a beat
waits for the next instead of catching up in a burst.
"""

import heapq
from dataclasses import dataclass, field
from hashlib import blake2b
from math import floor, inf
from typing import Generic, TypeVar

T = TypeVar("T")

SOON = 1.0  # a target that is new, or that a stall overtook, is probed within this many seconds
JITTER = 0.05  # of the interval: enough to leave step with whatever else has the same period
TICK = 0.005  # resolution of the wheel: a start is late by at most this, a wake-up serves all of a tick

_MIX = 0x9E3779B97F4A7C15


def seed(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest())


@dataclass(frozen=True, slots=True)
class Beat:
    seed: int
    every: float

    def at(self, number: int) -> float:
        """The time of one beat; beats never change places, since the jitter is far below their distance."""
        return (number + self._share(0) + JITTER * (self._share(number + 1) - 0.5)) * self.every

    def soon(self, now: float) -> float:
        """When to begin: not in one instant with all others, and not a whole interval away."""
        return now + self._share(0) * min(self.every, SOON)

    def next(self, due: float, now: float) -> float:
        """The beat after the one that was due; if a slow probe overran that, at once; if more was missed, the next."""
        following = self._first_after(due + self.every * JITTER)
        if following > now:
            return following
        return now if now - due < 2 * self.every else self._first_after(now)

    def _first_after(self, time: float) -> float:
        number = floor(time / self.every - self._share(0))  # by less than a beat too early
        while (at := self.at(number)) <= time:
            number += 1
        return at

    def _share(self, salt: int) -> float:
        """0 to 1, the same for the same target and salt."""
        mixed = (self.seed ^ (salt * _MIX)) * _MIX & 0xFFFFFFFFFFFFFFFF
        return (mixed ^ mixed >> 29) % 0x1000003D / 0x1000003D


@dataclass(slots=True)
class Wheel(Generic[T]):
    """What is due when, in ticks. Nothing is ever taken out early: whoever takes things out knows what has gone."""

    _slots: dict[int, list[T]] = field(default_factory=dict)
    _ticks: list[int] = field(default_factory=list)  # a heap of the keys above

    def add(self, due: float, item: T) -> None:
        tick = -floor(-due / TICK)  # rounded up: nothing is early
        if tick in self._slots:
            self._slots[tick].append(item)
        else:
            self._slots[tick] = [item]
            heapq.heappush(self._ticks, tick)

    def due(self, now: float) -> list[T]:
        """Takes out everything that is due, the oldest first."""
        taken: list[T] = []
        while self._ticks and self._ticks[0] * TICK <= now:
            taken += self._slots.pop(heapq.heappop(self._ticks))
        return taken

    def next_due(self) -> float:
        return self._ticks[0] * TICK if self._ticks else inf
