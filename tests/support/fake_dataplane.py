"""The dataplane as dictionaries: the same contract as pinned maps, without a kernel."""

from collections.abc import Iterable, Mapping
from typing import Any

from bpf import abi
from reconciler import ids
from reconciler.dataplane import NUMBERED, Op, Put, State, Where

ROOM = {"frontends": 256, "services": 64, "pools": 64, "backends": 128}


class FakeMaps:
    def __init__(self, state: State = State()) -> None:  # noqa: B008 -- frozen
        self.content: dict[Where, dict[Any, Any]] = {where: dict(state[where]) for where in Where}
        self.free = {where: dict(state.free.get(where, {})) for where in NUMBERED}
        self.health_map: dict[int, abi.Health] = {}
        self.live: dict[int, int] = {}

    def read(self) -> State:
        content = {where.value: dict(entries) for where, entries in self.content.items()}
        return State(**content, free={where: dict(free) for where, free in self.free.items()})

    def apply(self, ops: Iterable[Op]) -> None:
        for op in ops:
            if isinstance(op, Put):
                self._put(op.where, op.key, op.value)
            else:
                self._remove(op.where, op.key)

    def health(self) -> Mapping[int, abi.Health]:
        return dict(self.health_map)

    def flows(self) -> Mapping[int, int]:
        return dict(self.live)

    def room(self) -> Mapping[str, int]:
        return ROOM

    def _put(self, where: Where, key: Any, value: Any) -> None:
        self.content[where][key] = value
        if where in NUMBERED:
            self.free[where].pop(key, None)
        if where is Where.PREFILTER and not value:
            del self.content[where][key]

    def _remove(self, where: Where, key: Any) -> None:
        entry = self.content[where].pop(key, None)
        if entry is not None and where in NUMBERED:
            self.free[where][key] = ids.incarnation(entry.id)
