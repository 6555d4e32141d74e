"""Tables of slots: a map of maps, one inner array a pool, each pinned and mapped into memory.

An inner map is found through its pin and recognised by its id; opening it by
the id would need CAP_SYS_ADMIN. Which backend sits in a slot is not decided here.
"""

from __future__ import annotations

import itertools
import os
from array import array
from collections.abc import Iterable
from contextlib import suppress
from ctypes import byref
from dataclasses import dataclass, field
from errno import ENOENT
from functools import cached_property
from pathlib import Path

from bpf import errors, libbpf
from bpf.errors import KernelError, MapFull
from bpf.libbpf import MapCreateOptions
from bpf.maps import MMAPABLE, Map, mapped, round8
from bpf.peeking import Peek, waits

ARRAY = 2  # BPF_MAP_TYPE_ARRAY
INNER_MAP = 1 << 12  # BPF_F_INNER_MAP: sizes may differ
READ_ONLY = 1 << 3  # BPF_F_RDONLY
SLOT = 4
STRIDE = round8(SLOT) // SLOT  # the kernel keeps array entries eight bytes apart
WORD = "I"
ATTEMPTS = 3
AT_ONCE = 128  # new tables on their way into the outer map: each is a file descriptor
Pinned = dict[int, list[Path]]  # by pool


@dataclass(slots=True)
class Inner:
    """One table in memory, which needs no file descriptor any more."""

    id: int
    memory: memoryview
    seen: bytes = b""  # what the memory said when `content` was made of it
    content: array[int] = field(default_factory=lambda: array(WORD))

    @classmethod
    def of(cls, fd: int, *, writable: bool) -> Inner:
        info = libbpf.info(fd, libbpf.MapInfo)
        return cls(info.id, mapped(fd, round8(SLOT) * info.max_entries, writable).cast("I"))

    @property
    def slots(self) -> memoryview:
        return self.memory[::STRIDE]

    def read(self) -> array[int]:
        """The same object as long as the memory says the same; callers must not change it."""
        now = bytes(self.memory)
        if now != self.seen:
            found = array(WORD, memoryview(now).cast("I")[::STRIDE].tobytes())
            self.seen, self.content = now, self.content if found == self.content else found
        return self.content

    def write(self, slots: array[int]) -> None:
        """Only what changed: each slot is one store, and packets read meanwhile."""
        memory = self.slots
        for index, (new, old) in enumerate(zip(slots, memory, strict=True)):
            if new != old:
                memory[index] = new
        self.expect(slots)

    def expect(self, slots: array[int]) -> None:
        """What was written: the next reading is this object if it finds just that."""
        self.seen, self.content = b"", slots


class TableMap:
    """Pool index -> slots. Without a directory the tables live as long as this object."""

    def __init__(
        self, name: str, fd: int, directory: Path | None, setting: str, *, writable: bool = True
    ) -> None:
        self.outer: Map[int, int] = Map(name, fd, (int, int), setting, writable=writable)
        self.name, self.directory, self.writable = name, directory, writable
        self._inner: dict[int, Inner] = {}

    @property
    def fd(self) -> int:
        return self.outer.fd

    @property
    def max_entries(self) -> int:
        return self.outer.max_entries

    def indexes(self) -> list[int]:
        return list(self._ids())

    def number(self, index: int) -> int | None:
        """The id of the table that packets see now."""
        return self._peek.number(index) if self._peek else self.outer.get(index)

    def get(self, index: int) -> array[int] | None:
        inner = self._current(index)
        return None if inner is None else inner.read()

    def items(self) -> dict[int, array[int]]:
        """Every table; read again, one that has not changed is the same object."""
        found = {index: self._known(index, number) for index, number in self._ids().items()}
        unknown = [index for index, inner in found.items() if inner is None]
        pinned = self._pins() if unknown else {}
        found.update((index, self._current(index, pinned)) for index in unknown)
        return {index: inner.read() for index, inner in found.items() if inner}

    def put(self, index: int, slots: array[int]) -> None:
        self.put_many([(index, slots)])

    def put_many(self, entries: Iterable[tuple[int, array[int]]]) -> None:
        """Same size: changed slots are written in place; else full new tables take over."""
        self.outer.check_writable()
        fresh = []
        for index, slots in dict(entries).items():
            inner = self._current(index)
            if inner is not None and len(inner.memory) == len(slots) * STRIDE:
                inner.write(slots)
            else:
                fresh.append((index, slots))
        pinned = self._pins() if fresh else {}
        for start in range(0, len(fresh), AT_ONCE):
            self._replace(fresh[start : start + AT_ONCE], pinned)

    def delete(self, index: int) -> bool:
        return bool(self.delete_many([index]))

    def delete_many(self, indexes: Iterable[int]) -> int:
        """How many of them there were."""
        pinned, deleted = self._pins(), 0
        for index in indexes:
            deleted += self.outer.delete(index)
            self._forget(index)
            self._unpin(pinned.pop(index, []), keep=None)
        return deleted

    def tidy(self) -> None:
        """Unpin tables that no pool names any more: a process was killed in `put`."""
        current = self._ids()
        for index, pins in self._pins().items():
            for path in pins:
                if self._id_of(path) != current.get(index):
                    path.unlink(missing_ok=True)

    def close(self) -> None:
        self._inner.clear()
        if peek := self.__dict__.pop("_peek", None):
            peek.close()
        self.outer.close()

    # ---- the inner maps ----

    def _ids(self) -> dict[int, int]:
        """At once, or one by one: kernels before 6.14 give up on absent entries (EINTR)."""
        if self._peek:
            return self._peek.numbers(self.max_entries)
        try:
            return dict(self.outer.items())
        except KernelError:
            found = ((index, self.outer.get(index)) for index in range(self.max_entries))
            return {index: number for index, number in found if number}

    @cached_property
    def _peek(self) -> Peek | None:
        """Where looking is slow; without the privilege or the types for it, slow it is."""
        with suppress(KernelError):
            return Peek(self.fd) if waits(os.uname().release) else None
        return None

    def _current(self, index: int, pinned: Pinned | None = None) -> Inner | None:
        """The table that packets see now, whoever put it there. `pinned` was listed just before."""
        for _ in range(ATTEMPTS):  # it may be replaced while we look for its pin
            wanted = self.number(index)
            if wanted is None:
                return None
            if inner := self._known(index, wanted) or self._found(index, wanted, pinned):
                return inner
            pinned = None
        raise KernelError(
            f"map {self.name}: the table of pool {index} is not pinned in {self.directory};"
            " somebody unpinned it. Delete the pool's table and write it anew"
        )

    def _known(self, index: int, wanted: int) -> Inner | None:
        inner = self._inner.get(index)
        return inner if inner and inner.id == wanted else None

    def _found(self, index: int, wanted: int, pinned: Pinned | None) -> Inner | None:
        self._forget(index)
        for path in (self._pins() if pinned is None else pinned).get(index, []):
            inner = self._open(path)
            if inner and inner.id == wanted:
                self._inner[index] = inner
                return inner
        return None

    def _replace(self, entries: list[tuple[int, array[int]]], pinned: Pinned) -> None:
        """All are filled and pinned before the first takes over: the kernel waits for packets once."""
        made: dict[int, tuple[int, Inner]] = {}
        try:
            for index, slots in entries:
                made[index] = self._new(index, slots)
                self._pin(index, made[index][0], pinned.setdefault(index, []))
            self._take_over([(index, fd) for index, (fd, _) in made.items()])
        finally:
            for fd, _ in made.values():
                os.close(fd)
        for index, (_, inner) in made.items():
            self._inner[index] = inner
            self._unpin(pinned[index], keep=inner.id)

    def _take_over(self, tables: list[tuple[int, int]]) -> None:
        """At once, or one by one: kernels before 5.19 have no batch for maps of maps."""
        try:
            self.outer.put_many(tables)
        except MapFull:
            raise
        except KernelError:
            for index, fd in tables:
                self.outer.put(index, fd)

    def _new(self, index: int, slots: array[int]) -> tuple[int, Inner]:
        options = MapCreateOptions(map_flags=MMAPABLE | INNER_MAP)
        name = f"{self.name[:6]}_{index}".encode()
        fd = libbpf.lib().bpf_map_create(ARRAY, name, SLOT, SLOT, len(slots), byref(options))
        if fd < 0:
            raise errors.failed(f"map {self.name}: a table of {len(slots)} slots", fd)
        inner = Inner.of(fd, writable=True)
        inner.slots[:] = memoryview(slots)
        inner.expect(slots)
        return fd, inner

    def _open(self, path: Path) -> Inner | None:
        fd = open_pin(path)  # for writing too, or the kernel would not map it
        if fd is None:
            return None
        try:
            return Inner.of(fd, writable=self.writable)
        finally:
            os.close(fd)

    def _forget(self, index: int) -> None:
        self._inner.pop(index, None)

    # ---- their pins: 7-1, 7-2 for the first and second table of pool 7 ----

    def _pins(self) -> Pinned:
        """All at once: with a thousand pools, a listing for each would take seconds."""
        found: Pinned = {}
        for path in self.directory.iterdir() if self.directory else ():
            found.setdefault(int(path.name.partition("-")[0]), []).append(path)
        return found

    def _pin(self, index: int, fd: int, pinned: list[Path]) -> None:
        """Under a name that is not taken."""
        if self.directory is None:
            return
        taken = {path.name for path in pinned}
        names = (f"{index}-{number}" for number in itertools.count(1))
        path = self.directory / next(name for name in names if name not in taken)
        pin(fd, path)
        pinned.append(path)

    def _unpin(self, pinned: list[Path], keep: int | None) -> None:
        """All of them but the table that is to be kept."""
        for path in list(pinned):
            if keep is None or (len(pinned) > 1 and self._id_of(path) != keep):
                path.unlink(missing_ok=True)
                pinned.remove(path)

    def _id_of(self, path: Path) -> int:
        fd = open_pin(path, read_only=True)
        if fd is None:
            return 0
        try:
            return libbpf.info(fd, libbpf.MapInfo).id
        finally:
            os.close(fd)


def pin(fd: int, path: Path) -> None:
    code = libbpf.lib().bpf_obj_pin(fd, os.fsencode(path))
    if code < 0:
        raise errors.failed(f"{path}: pinning", code)


def open_pin(path: Path, *, read_only: bool = False) -> int | None:
    """A file descriptor for what is pinned there; None when nothing is."""
    options = libbpf.GetOptions(file_flags=READ_ONLY if read_only else 0)
    fd: int = libbpf.lib().bpf_obj_get_opts(os.fsencode(path), byref(options))
    if fd == -ENOENT:
        return None
    if fd < 0:
        raise errors.failed(f"{path}: opening", fd)
    return fd
