"""The dataplane over pinned maps. Decides nothing: reads what is there, writes what it is told."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bpf import abi
from bpf.kernel import Instance, TableMap
from reconciler import ids
from reconciler.dataplane import NUMBERED, Op, Put, State, Where
from reconciler.table import Slots


def unheard() -> None:
    """For whoever does not ask how far it is."""


class PinnedMaps:
    """An instance's maps, read anew each time: others write them too. `progress` hears of each step of an apply."""

    def __init__(self, instance: Instance, progress: Callable[[], None] = unheard) -> None:
        self.instance, self._progress = instance, progress
        self._maps = instance.maps

    def read(self) -> State:
        numbered = {where: self._maps[where.value].items() for where in NUMBERED}  # type: ignore[union-attr]
        maps = self._maps
        return State(
            settings=dict(maps.settings.items()),
            backends=_present(numbered[Where.BACKENDS]),
            tables=_tables(maps.tables),
            spares=_tables(maps.spares),
            pools=_present(numbered[Where.POOLS]),
            services=_present(numbered[Where.SERVICES]),
            frontends=_present(numbered[Where.FRONTENDS]),
            replies4=dict(maps.replies4.items()),
            replies6=dict(maps.replies6.items()),
            prefilter={at: kinds for at, kinds in enumerate(bytes(maps.prefilter.view())) if kinds},
            frontends4=dict(maps.frontends4.items()),
            frontends6=dict(maps.frontends6.items()),
            free={where: _free(entries) for where, entries in numbered.items()},
        )

    def apply(self, ops: Iterable[Op]) -> None:
        """Operations on the same map that follow each other become one batch."""
        for (kind, where), batch in itertools.groupby(ops, key=lambda op: (type(op), op.where)):
            if kind is Put:
                self._put(where, [(op.key, op.value) for op in batch if isinstance(op, Put)])
            else:
                self._remove(where, [op.key for op in batch])
            self._progress()

    def health(self) -> Mapping[int, abi.Health]:
        return dict(self._maps.health.items())

    def flows(self) -> Mapping[int, int]:
        return dict(self._maps.live.items())

    def room(self) -> Mapping[str, int]:
        sizes = self.instance.sizes()
        return {name: getattr(sizes, name) for name in sizes.__dataclass_fields__}

    def _put(self, where: Where, entries: list[tuple[Any, Any]]) -> None:
        target = self._maps[where.value]
        if isinstance(target, TableMap):
            for at, slots in entries:
                target.put(at, slots)
                self._progress()
        elif where is Where.PREFILTER:
            self._put_kinds(dict(entries))
        else:
            target.put_many(entries)

    def _remove(self, where: Where, keys: list[Any]) -> None:
        target = self._maps[where.value]
        if isinstance(target, TableMap):
            for at in keys:
                target.delete(at)
        elif where is Where.PREFILTER:
            self._put_kinds(dict.fromkeys(keys, 0))
        elif where in NUMBERED:
            target.put_many((at, _retired(target.get(at))) for at in keys)
        else:
            target.delete_many(keys)

    def _put_kinds(self, kinds: Mapping[int, int]) -> None:
        memory = self._maps.prefilter.view()
        for at, value in kinds.items():
            memory[at] = value


def _present(entries: Iterable[tuple[int, Any]]) -> dict[int, Any]:
    return {at: entry for at, entry in entries if ids.index(entry.id)}


def _free(entries: Iterable[tuple[int, Any]]) -> dict[int, int]:
    return {at: ids.incarnation(entry.id) for at, entry in entries if not ids.index(entry.id)}


def _retired(entry: Any) -> Any:  # noqa: ANN401 -- any entry with an id
    return type(entry)(id=ids.retired(entry.id))


def _tables(tables: TableMap) -> dict[int, Slots]:
    found = {at: tables.get(at) for at in tables.indexes()}
    return {at: slots for at, slots in found.items() if slots is not None}
