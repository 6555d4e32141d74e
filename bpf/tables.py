"""Tables of slots: a map of maps, one inner array a pool, each pinned and mapped into memory.

An inner map is found through its pin and recognised by its id; opening it by
the id would need CAP_SYS_ADMIN. Which backend sits in a slot is not decided here.
"""

from __future__ import annotations

import os
from array import array
from ctypes import byref
from dataclasses import dataclass
from errno import ENOENT
from pathlib import Path

from bpf import errors, libbpf
from bpf.errors import KernelError
from bpf.libbpf import MapCreateOptions
from bpf.maps import MMAPABLE, Map, mapped, round8

ARRAY = 2  # BPF_MAP_TYPE_ARRAY
INNER_MAP = 1 << 12  # BPF_F_INNER_MAP: sizes may differ
READ_ONLY = 1 << 3  # BPF_F_RDONLY
SLOT = 4
STRIDE = round8(SLOT) // SLOT  # the kernel keeps array entries eight bytes apart
WORD = "I"
ATTEMPTS = 3


@dataclass(slots=True)
class Inner:
    """One table in memory."""

    fd: int
    id: int
    slots: memoryview

    @classmethod
    def of(cls, fd: int, *, writable: bool) -> Inner:
        info = libbpf.info(fd, libbpf.MapInfo)
        memory = mapped(fd, round8(SLOT) * info.max_entries, writable).cast("I")
        return cls(fd, info.id, memory[::STRIDE])

    def write(self, slots: array[int]) -> None:
        """Only what changed: each slot is one store, and packets read meanwhile."""
        for index, (new, old) in enumerate(zip(slots, self.slots, strict=True)):
            if new != old:
                self.slots[index] = new

    def close(self) -> None:
        os.close(self.fd)


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

    def get(self, index: int) -> array[int] | None:
        inner = self._current(index)
        return None if inner is None else array(WORD, inner.slots.tobytes())

    def put(self, index: int, slots: array[int]) -> None:
        """Same size: changed slots are written in place; else a full new table takes over."""
        self.outer.check_writable()
        inner = self._current(index)
        if inner is not None and len(inner.slots) == len(slots):
            inner.write(slots)
        else:
            self._replace(index, slots)

    def delete(self, index: int) -> bool:
        was_there = self.outer.delete(index)
        self._forget(index)
        self._unpin(index, keep=None)
        return was_there

    def tidy(self) -> None:
        """Unpin tables that no pool names any more: a process was killed in `put`."""
        current = self._ids()
        for index, pins in self._pins().items():
            for path in pins:
                if self._id_of(path) != current.get(index):
                    path.unlink(missing_ok=True)

    def close(self) -> None:
        for index in list(self._inner):
            self._forget(index)
        self.outer.close()

    # ---- the inner maps ----

    def _ids(self) -> dict[int, int]:
        """One by one: kernels before 6.14 give up on a batch with absent entries (EINTR)."""
        found = ((index, self.outer.get(index)) for index in range(self.max_entries))
        return {index: number for index, number in found if number}

    def _current(self, index: int) -> Inner | None:
        """The table that packets see now, whoever put it there."""
        for _ in range(ATTEMPTS):  # it may be replaced while we look for its pin
            wanted = self.outer.get(index)
            if wanted is None:
                return None
            if inner := self._known(index, wanted) or self._found(index, wanted):
                return inner
        raise KernelError(
            f"map {self.name}: the table of pool {index} is not pinned in {self.directory};"
            " somebody unpinned it. Delete the pool's table and write it anew"
        )

    def _known(self, index: int, wanted: int) -> Inner | None:
        inner = self._inner.get(index)
        return inner if inner and inner.id == wanted else None

    def _found(self, index: int, wanted: int) -> Inner | None:
        self._forget(index)
        for path in self._pins().get(index, []):
            inner = self._open(path)
            if inner and inner.id == wanted:
                self._inner[index] = inner
                return inner
            if inner:
                inner.close()
        return None

    def _replace(self, index: int, slots: array[int]) -> None:
        inner = self._new(index, slots)
        self._pin(index, inner)
        self.outer.put(index, inner.fd)
        self._forget(index)
        self._inner[index] = inner
        self._unpin(index, keep=inner.id)

    def _new(self, index: int, slots: array[int]) -> Inner:
        options = MapCreateOptions(map_flags=MMAPABLE | INNER_MAP)
        name = f"{self.name[:6]}_{index}".encode()
        fd = libbpf.lib().bpf_map_create(ARRAY, name, SLOT, SLOT, len(slots), byref(options))
        if fd < 0:
            raise errors.failed(f"map {self.name}: a table of {len(slots)} slots", fd)
        inner = Inner.of(fd, writable=True)
        inner.slots[:] = memoryview(slots)
        return inner

    def _open(self, path: Path) -> Inner | None:
        fd = open_pin(path)  # for writing too, or the kernel would not map it
        return None if fd is None else Inner.of(fd, writable=self.writable)

    def _forget(self, index: int) -> None:
        inner = self._inner.pop(index, None)
        if inner:
            inner.close()

    # ---- their pins: 7-1, 7-2 for the first and second table of pool 7 ----

    def _pins(self) -> dict[int, list[Path]]:
        found: dict[int, list[Path]] = {}
        for path in self.directory.iterdir() if self.directory else ():
            found.setdefault(int(path.name.partition("-")[0]), []).append(path)
        return found

    def _pin(self, index: int, inner: Inner) -> None:
        if self.directory is None:
            return
        used = {path.name for path in self._pins().get(index, [])}
        number = next(n for n in range(1, len(used) + 2) if f"{index}-{n}" not in used)
        pin(inner.fd, self.directory / f"{index}-{number}")

    def _unpin(self, index: int, keep: int | None) -> None:
        for path in self._pins().get(index, []):
            if keep is None or self._id_of(path) != keep:
                path.unlink(missing_ok=True)

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
