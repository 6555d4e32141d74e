"""Flows are carried into maps of another size while packets go on writing them, a batch at a time.

First everything, then what was seen since that began, and again; once packets write the new
maps, what the last round has missed. That never overwrites what a packet has noted there since.
Needs no lock. When packets go over is not decided here.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bpf import copying, mapset
from bpf.abi import Flow
from bpf.clock import now_tick
from bpf.maps import NOEXIST, Map

FLOWS = ("flows4", "flows6")
WITH_HOPS = ("returns4", "returns6", "opening4", "opening6")  # their flows name a next hop
CARRIED = (*FLOWS, *WITH_HOPS)
ROUNDS = 3  # after the first, each lasts about as long as reading
MARGIN = 2  # ticks: a CPU may still write by the tick before

Pair = tuple[Map[Any, Any], Map[Any, Any]]  # from, to


def carry(pairs: Iterable[Pair], working: Callable[[], None]) -> int:
    """All of it, while nobody else writes the targets; the tick since when more may have come."""
    both, since = list(pairs)[::-1], 0  # flows last, since they are the first to be caught up
    for _ in range(ROUNDS):
        began = max(1, now_tick() - MARGIN)
        for pair in both:
            _round(*pair, since, working)
        since = began
    return since


def _round(
    source: Map[Any, Any], target: Map[Any, Any], since: int, working: Callable[[], None]
) -> None:
    for keys, values, count in source.batches(source.value_size):
        chosen = _touched(source, values, count, since)
        some = keys, values
        if len(chosen) < count:
            some = _only(keys, source.key.size, chosen), _only(values, source.value_size, chosen)
        copying.write(target, *some, len(chosen))
        working()


def _only(data: Any, size: int, chosen: Sequence[int]) -> Any:  # noqa: ANN401 -- buffers
    return ctypes.create_string_buffer(b"".join(_parts(data, size, chosen)))


def _parts(data: Any, size: int, chosen: Sequence[int]) -> list[bytes]:  # noqa: ANN401 -- a buffer
    return [data[i * size : (i + 1) * size] for i in chosen]


def _touched(source: Map[Any, Any], values: Any, count: int, since: int) -> Sequence[int]:  # noqa: ANN401
    """Which entries of a batch a packet has touched since that tick. What changes one also notes the tick."""
    if not since:
        return range(count)
    words = array("I", values[: count * source.value_size])
    seen = words[_seen_at(source.name) // 4 :: source.value_size // 4]
    return [i for i, tick in enumerate(seen) if tick >= since]


def _seen_at(name: str) -> int:
    """Where in a value the tick is: they are flows, or entries around one."""
    outer = 0 if name in FLOWS else mapset.types(name)[1].flow.offset
    return int(outer + Flow.seen.offset)  # type: ignore[attr-defined]  # a field of the class


# ---- what packets left in the old maps before they went over


def catch_up(pair: Pair, since: int, hops: Hops, working: Callable[[], None]) -> None:
    source, target = pair
    for keys, values, count in source.batches(source.value_size):
        chosen = _touched(source, values, count, since)
        late = zip(
            _parts(keys, source.key.size, chosen),
            _parts(values, source.value_size, chosen),
            strict=True,
        )
        for key, value in late:
            _put_late(target, key, hops.renamed(source.name, value))
        working()


def _put_late(target: Map[Any, Any], key: bytes, value: bytes) -> None:
    """Unless the target knows it, as of then or later: of the same tick the older map's word counts."""
    if target.put_raw(key, value, NOEXIST):
        return
    known = target.get_raw(key)
    if known == value:
        return
    if known is None or _seen(target.name, value) >= _seen(target.name, known):
        target.put_raw(key, value)


def _seen(name: str, value: bytes) -> int:
    at = _seen_at(name)
    return int.from_bytes(value[at : at + 4], "little")


class Hops:
    """Numbers of next hops, which two maps may have dealt differently since they were equal."""

    def __init__(self, source: Map[Any, Any], target: Map[Any, Any]) -> None:
        self._source, self._target = source, target

    def renamed(self, name: str, value: bytes) -> bytes:
        """Without the number where it means another hop there: it is looked up again."""
        if name not in WITH_HOPS:
            return value
        entry = mapset.types(name)[1].from_bytes(value)
        number = entry.flow.hop
        if number and self._source.get(number) != self._target.get(number):
            entry.flow.hop = 0
        return bytes(entry)
