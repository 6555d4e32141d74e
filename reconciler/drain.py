"""Backends on their way out: they keep their flows for a while, and get no new ones. Pure.

The deadline is in the backend's entry, as a tick of the program's clock, so that a
restart forgets none and a clock that is set moves none. Whoever is gone from the
file is known by entry alone: until the deadline, or the end of its last flow.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bpf import abi
from reconciler import encode
from reconciler.dataplane import State
from reconciler.model import Address, Drain, Then

OVER = 1  # in an entry: its flows were flushed; the file still says drain
KEPT = 0xFFFFFFFF  # in an entry: flows end by themselves
NO_NEW = int(abi.BackendFlag.NO_NEW)


@dataclass(frozen=True, slots=True)
class Leaving:
    """A backend that drains, and what is left of it."""

    name: int  # hashed
    flows: int
    until: int  # tick; KEPT: no deadline; OVER: flushed

    def progress(self, now: int) -> str:
        if self.until == OVER:
            return "drained"
        end = "kept" if self.until == KEPT else f"{(self.until - now) * encode.TICK:.0f} s left"
        return f"{self.flows} live flow{'' if self.flows == 1 else 's'}, {end}"


@dataclass(frozen=True, slots=True)
class Policies:
    """By the hashed name of a pool's entry; the default is for pools that are gone, too."""

    pools: Mapping[int, Drain]
    default: Drain


def begun(entry: abi.Backend | None) -> int:
    """The deadline that the entry has already; 0: none."""
    return entry.until if entry is not None and entry.flags & NO_NEW else 0


def deadline(policy: Drain, before: int, now: int) -> int:
    """When flows end. One that is set already may come nearer, never move away."""
    if policy.then is Then.KEEP:
        return KEPT
    return before if before == OVER else min(before or KEPT, now + lasting(policy.grace))


def lasting(grace: float) -> int:
    """In ticks, from one that may be nearly over: so one more, or flows had less than they were promised."""
    return encode.ticks(grace) + 1


def is_due(until: int, now: int) -> bool:
    """Whether flows are to be flushed now."""
    return until not in (0, OVER, KEPT) and until <= now


def leaving(actual: State) -> set[Address]:
    """Where they are: their next hops matter as long as they have flows."""
    return {
        encode.address(entry.addr, entry.family)
        for entry in actual.backends.values()
        if begun(entry)
    }


def under_way(state: State, flows: Mapping[int, int]) -> Iterator[Leaving]:
    for at, entry in sorted((at, entry) for at, entry in state.backends.items() if begun(entry)):
        yield Leaving(entry.name, flows.get(at, 0), entry.until)


def next_end(drains: tuple[Leaving, ...], now: int) -> float:
    """Seconds until the first deadline."""
    ends = (each.until for each in drains if each.until not in (OVER, KEPT))
    return max(0, min(ends, default=math.inf) - now) * encode.TICK
