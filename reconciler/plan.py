"""From what is to what should be. Pure: no clock, no I/O, no logging.

Packets keep arriving between any two operations, so the order is the design:
what is pointed at appears before what points at it, and is let go of before it
disappears. Whoever stops half-way leaves no pointer to nothing, and no packet
that neither the old nor the new state would have sent the same way.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from bpf import abi
from reconciler.dataplane import Op, Put, Remove, State, Where
from reconciler.encode import reply

ORDER = tuple(Where)
# Written twice when they shrink: between the first write and the last, both the
# old and the new frontends and backends must be found through them.
_WIDENED = (Where.PREFILTER, Where.REPLIES4, Where.REPLIES6)


def plan(desired: State, actual: State) -> list[Op]:
    """The operations that turn `actual` into `desired`; none if they agree."""
    grow = [op for where in ORDER for op in _puts(where, desired[where], actual[where])]
    shrink = [op for where in reversed(ORDER) for op in _removals(where, desired, actual)]
    return [*grow, *shrink]


def _puts(where: Where, desired: Mapping[Any, Any], actual: Mapping[Any, Any]) -> Iterator[Op]:
    for key in _ordered(desired):
        wanted, present = desired[key], actual.get(key)
        value = _widened(where, wanted, present) if where in _WIDENED else wanted
        if value != present:
            yield Put(where, key, value)


def _removals(where: Where, desired: State, actual: State) -> Iterator[Op]:
    for key in _ordered(actual[where]):
        if key not in desired[where]:
            yield Remove(where, key)
        elif where in _WIDENED:
            wanted, present = desired[where][key], actual[where][key]
            if _widened(where, wanted, present) != wanted:
                yield Put(where, key, wanted)


def _widened(where: Where, wanted: Any, present: Any) -> Any:  # noqa: ANN401 -- kinds or replies
    """What serves both the old state and the new one."""
    if present is None:
        return wanted
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


def _ordered(entries: Mapping[Any, Any]) -> list[Any]:
    """The same order every time, so that two plans of the same change are equal."""
    return sorted(entries, key=lambda key: key if isinstance(key, int) else bytes(key))
