"""When a pool is short of backends, and when it has enough again. Pure.

A pool that is short stays so until it has clearly more than its panic share: so one backend that comes and goes at
the edge does not send clients to and fro. What was before is told by the maps: nothing is remembered here.
It waits only while another pool serves: for its own sake nobody is dropped, or sent to backends that are down.
Who has not been checked yet makes no pool short: else twenty new backends would end the service of four sound ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from reconciler.model import Service

MARGIN = 10  # points above panic, where `recover` does not say


@dataclass(frozen=True, slots=True)
class Strength:
    """A pool as its service sees it."""

    usable: int
    members: int
    was_short: bool = False
    unknown: int = 0  # not checked yet, and not taken for healthy


def short(service: Service, pools: Sequence[Strength]) -> tuple[bool, ...]:
    """Which of its pools the service passes over."""
    below = [_is_below(service, pool) for pool in pools]
    waits = [not low and _waits(service, pool) for low, pool in zip(below, pools, strict=True)]
    serves = any(
        pool.usable and not low and not wait
        for pool, low, wait in zip(pools, below, waits, strict=True)
    )
    return tuple(low or (wait and serves) for low, wait in zip(below, waits, strict=True))


def enough(panic: int, members: int) -> int:
    """With fewer usable ones than this a pool is short."""
    return -(-panic * members // 100)


def enough_again(service: Service, members: int) -> int:
    """With as many usable ones as this it no longer is. All but one always suffices, unless the file says otherwise."""
    least = enough(service.panic, members)
    if service.recover is not None:
        return max(least, enough(service.recover, members))
    more = max(enough(min(service.panic + MARGIN, 100), members), least + 1)
    return max(least, min(more, members - 1))


def _is_below(service: Service, pool: Strength) -> bool:
    return pool.usable + pool.unknown < enough(service.panic, pool.members)


def _waits(service: Service, pool: Strength) -> bool:
    again = enough_again(service, pool.members)
    return pool.was_short and service.panic > 0 and pool.usable < again
