"""The dataplane over pinned maps. Decides nothing: reads what is there, writes what it is told.

Every reading asks the kernel for everything, and takes time for what has changed
only: entries that say the same are the same objects, also as the ones that were
written, and so is a whole map's content. Nobody may change any of them.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bpf import abi
from bpf.kernel import Instance, KernelError, Map, TableMap, unheard
from bpf.rereading import Rereading
from bpf.via import Via
from reconciler import ids
from reconciler.dataplane import NUMBERED, Op, Put, Remove, State, Where

PLAIN = (Where.SETTINGS, Where.REPLIES4, Where.REPLIES6, Where.FRONTENDS4, Where.FRONTENDS6)


class Unwritten(KernelError):
    """One operation that the kernel refused; those before it are done, and none after it."""

    def __init__(self, op: Op, error: KernelError) -> None:
        super().__init__(str(error))
        self.op = op


class PinnedMaps:
    """An instance's maps, read anew each time: others write them too. `progress` hears of each step of an apply."""

    def __init__(self, instance: Instance, progress: Callable[[], None] = unheard) -> None:
        self.instance, self._progress = instance, progress
        self._maps = maps = instance.maps
        self._plain = {where: Rereading[Any, Any](maps[where.value]) for where in PLAIN}  # type: ignore[arg-type]
        self._numbered = {where: Numbered(maps[where.value]) for where in NUMBERED}  # type: ignore[arg-type]
        self._prefilter = Prefilter(maps.prefilter.view())
        self._health = Rereading(maps.health)
        self.via: Via | None = None  # nobody needs it
        self._probes: Rereading[int, abi.Probe] | None = None
        if instance.pinned:
            self.use(Via.open(instance.name, read_only=not maps.settings.writable))

    def use(self, via: Via | None) -> None:
        """Read and write probes there from now on; None: there are none."""
        if self.via:
            self.via.close()
        self.via = via
        self._probes = Rereading(via.probes) if via else None

    def read(self) -> State:
        content: dict[str, Any] = {where.value: one.read() for where, one in self._plain.items()}
        for where, one in self._numbered.items():
            content[where.value] = one.read()
        content[Where.PROBES.value] = self._probes.read() if self._probes else {}
        return State(
            **content,
            tables=self._maps.tables.items(),
            spares=self._maps.spares.items(),
            prefilter=self._prefilter.read(),
            free={where: one.free for where, one in self._numbered.items()},
        )

    def apply(self, ops: Iterable[Op]) -> None:
        """Operations on the same map that follow each other become one batch."""
        for (_, where), batch in itertools.groupby(ops, key=lambda op: (type(op), op.where)):
            together = list(batch)
            try:
                self._batch(where, together)
            except KernelError:
                self._singly(where, together)
            self._progress()

    def _singly(self, where: Where, ops: Iterable[Op]) -> None:
        """The same once more, to learn which of them the kernel refuses."""
        for op in ops:
            try:
                self._batch(where, [op])
            except KernelError as error:
                raise Unwritten(op, error) from error

    def _batch(self, where: Where, ops: list[Op]) -> None:
        if puts := [(op.key, op.value) for op in ops if isinstance(op, Put)]:
            self._put(where, puts)
        if keys := [op.key for op in ops if isinstance(op, Remove)]:
            self._remove(where, keys)

    def health(self) -> Mapping[int, abi.Health]:
        return self._health.read()

    def flows(self) -> Mapping[int, int]:
        return dict(self._maps.live.items())

    def room(self) -> Mapping[str, int]:
        sizes = self.instance.sizes()
        return {name: getattr(sizes, name) for name in sizes.__dataclass_fields__}

    def _put(self, where: Where, entries: list[tuple[Any, Any]]) -> None:
        if where is Where.PROBES:
            self._put_probes(entries)
            return
        target = self._maps[where.value]
        if where is Where.PREFILTER:
            self._prefilter.write(dict(entries))
            return
        target.put_many(entries)
        if not isinstance(target, TableMap):
            reading = self._plain.get(where) or self._numbered[where].entries
            for key, value in entries:
                reading.expect(key, value)

    def _remove(self, where: Where, keys: list[Any]) -> None:
        if where is Where.PROBES:
            if self.via:
                self.via.probes.delete_many(keys)
            return
        target = self._maps[where.value]
        if where is Where.PREFILTER:
            self._prefilter.write(dict.fromkeys(keys, 0))
        elif where in NUMBERED:
            target.put_many((at, _retired(target.get(at))) for at in keys)
        else:
            target.delete_many(keys)

    def _put_probes(self, entries: list[tuple[int, abi.Probe]]) -> None:
        """What they need is loaded for the first of them; a shadow sends none."""
        if not self.instance.pinned:
            return
        if self.via is None:
            self.use(Via.load(self.instance.name))
        if self.via and self._probes:
            self.via.probes.put_many(entries)
            for mark, entry in entries:
                self._probes.expect(mark, entry)


class Numbered:
    """An array of entries with ids: those that have one, and what freed indexes had last."""

    def __init__(self, source: Map[int, Any]) -> None:
        self.entries = Rereading(source)
        self._seen: dict[int, Any] = {}
        self._present: dict[int, Any] = {}
        self.free: dict[int, int] = {}

    def read(self) -> dict[int, Any]:
        now = self.entries.read()
        if now is not self._seen:
            numbers = {at: entry.id for at, entry in now.items()}
            self._seen = now
            self._present = {at: now[at] for at, number in numbers.items() if ids.index(number)}
            self.free = {at: ids.incarnation(n) for at, n in numbers.items() if not ids.index(n)}
        return self._present


class Prefilter:
    """A bucket for each hash of an address: those that have kinds."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._seen = b""
        self._kinds: dict[int, int] = {}

    def read(self) -> dict[int, int]:
        now = bytes(self._memory)
        if now != self._seen:
            self._seen = now
            self._kinds = {at: kinds for at, kinds in enumerate(now) if kinds}
        return self._kinds

    def write(self, kinds: Mapping[int, int]) -> None:
        for at, value in kinds.items():
            self._memory[at] = value


def _retired(entry: Any) -> Any:  # noqa: ANN401 -- any entry with an id
    return type(entry)(id=ids.retired(entry.id))
