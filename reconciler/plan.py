"""From what is to what should be. Pure: no clock, no I/O, no logging.

Packets keep arriving between any two operations, so the order is the design:
what is pointed at appears before what points at it, and is let go of before it
disappears. Whoever stops half-way leaves no pointer to nothing, and no packet
that neither the old nor the new state would have sent the same way.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bpf import abi
from reconciler.dataplane import Op, Put, Remove, State, Where
from reconciler.encode import FrontendKey, reply

ORDER = tuple(Where)
# Written twice when they shrink: between the first write and the last, both the
# old and the new frontends and backends must be found through them.
_WIDENED = (Where.PREFILTER, Where.REPLIES4, Where.REPLIES6)
_TAKES_AWAY = abi.BackendFlag.FORCED_DOWN
_GIVES = abi.BackendFlag.ASSUME_UP | abi.BackendFlag.FORCED_UP


def plan(desired: State, actual: State) -> list[Op]:
    """The operations that turn `actual` into `desired`; none if they agree."""
    differing = [where for where in ORDER if desired[where] != actual[where]]
    grow = [op for where in differing for op in _puts(where, desired[where], actual[where])]
    switch = list(_switches(desired.frontends, actual.frontends))
    shrink = [op for where in reversed(differing) for op in _removals(where, desired, actual)]
    return [*grow, *switch, *shrink]


def _puts(where: Where, desired: Mapping[Any, Any], actual: Mapping[Any, Any]) -> Iterator[Op]:
    for key in _ordered(_unlike(desired, actual)):
        wanted, present = desired[key], actual.get(key)
        if wanted != present and (value := _first(where, wanted, present)) != present:
            yield Put(where, key, value)


def _switches(
    desired: Mapping[int, abi.Frontend], actual: Mapping[int, abi.Frontend]
) -> Iterator[Op]:
    """Frontends that go over to another service, once everything that is new is in place."""
    for key in _ordered(_unlike(desired, actual)):
        if key in actual and actual[key] != desired[key]:
            yield Put(Where.FRONTENDS, key, desired[key])


def _removals(where: Where, desired: State, actual: State) -> Iterator[Op]:
    wanted_ones, present_ones = desired[where], actual[where]
    for key in reversed(_ordered(_unlike(present_ones, wanted_ones))):
        wanted, present = wanted_ones.get(key), present_ones[key]
        if wanted is None:
            yield Remove(where, key)
        elif wanted == present or where is Where.FRONTENDS:
            continue
        elif _first(where, wanted, present) != wanted:
            yield Put(where, key, wanted)


def _unlike(some: Mapping[Any, Any], others: Mapping[Any, Any]) -> list[Any]:
    """Keys of entries that may differ: what is the same object does not."""
    return [key for key, entry in some.items() if others.get(key) is not entry]


def _first(where: Where, wanted: Any, present: Any) -> Any:  # noqa: ANN401 -- an entry of any map
    """What is written first: `wanted`, unless that would take something away too soon."""
    if present is None:
        return wanted
    if where is Where.FRONTENDS:
        return present
    if where in _WIDENED:
        return _widened(where, wanted, present)
    if where is Where.BACKENDS and _less_usable(wanted, present):
        return present
    return wanted


def _less_usable(wanted: abi.Backend, present: abi.Backend) -> bool:
    """Whoever takes over for this backend must be there before it stops being chosen."""
    stops = wanted.flags & ~present.flags & _TAKES_AWAY
    loses = present.flags & ~wanted.flags & _GIVES
    return wanted.id == present.id and bool(stops or loses)


def _widened(where: Where, wanted: Any, present: Any) -> Any:  # noqa: ANN401 -- kinds or replies
    """What serves both the old state and the new one."""
    if where is Where.PREFILTER:
        return wanted | present
    together = _candidates(wanted) | _candidates(present)
    if max(len(together), wanted.count, present.count) > abi.Limit.REPLY_CANDIDATES:
        # Too many to list: nothing would be derived from the entry. The old one stays
        # until the old frontends have gone.
        return present
    return reply(together)


def _candidates(entry: abi.Reply) -> set[tuple[int, int]]:
    listed = min(entry.count, abi.Limit.REPLY_CANDIDATES)
    return {(c.frontend, c.backend) for c in entry.candidate[:listed]}


def _ordered(keys: Iterable[Any]) -> list[Any]:
    """The same order every time, so that two plans of the same change are equal.

    Exact ports come before any port, and go after it: a packet for a port that gets
    or loses a frontend of its own must not fall through to another between two writes.
    """
    return sorted(keys, key=lambda key: key if isinstance(key, int) else _place(key))


def _place(key: FrontendKey) -> tuple[bool, bytes]:
    return (key.port == 0, bytes(key))
