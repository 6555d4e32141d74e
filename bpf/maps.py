"""Typed maps: keys and values are the structures of `bpf.abi`, never bytes.

A map here is a file descriptor and two types. Nothing here decides what ought
to be in one, and nothing opens a kernel object by its id.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from ctypes import byref, c_uint32
from errno import EEXIST, ENOENT, ENOSPC
from typing import Any, Generic, TypeVar, cast

from bpf import errors, libbpf
from bpf.errors import KernelError, NotPermitted
from bpf.layout import Record

K = TypeVar("K")
V = TypeVar("V")

ANY, NOEXIST = 0, 1
BATCH = 16384
CURSOR = 64  # bytes; larger than any key, which is what the kernel keeps there
MMAPABLE = 1 << 10
MAP_FAILED = ctypes.c_void_p(-1).value
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
WORDS = {4: ctypes.c_uint32, 8: ctypes.c_uint64}

Buffer = ctypes.Array[ctypes.c_char]


class Codec(Generic[V]):
    """A type as the kernel sees it: so many bytes."""

    def __init__(self, kind: type[V], size: int) -> None:
        self.size = size
        self.whole = kind is int
        self.kind: Any = WORDS[size] if self.whole else kind

    def pack(self, value: V) -> Any:  # noqa: ANN401 -- something that ctypes points to
        return self.kind(value) if self.whole else value

    def pack_all(self, values: Sequence[V]) -> Buffer:
        if self.whole:
            data = bytes((self.kind * len(values))(*values))
        else:
            data = b"".join(map(bytes, cast("Sequence[bytes]", values)))
        return (ctypes.c_char * len(data)).from_buffer_copy(data)

    def new(self) -> Any:  # noqa: ANN401
        return self.kind()

    def value(self, found: Any) -> V:  # noqa: ANN401
        return cast("V", found.value if self.whole else found)

    def unpack(self, data: bytes) -> V:
        return self.value(self.kind.from_buffer_copy(data))

    def unpack_all(self, data: Buffer, count: int) -> list[V]:
        return list((self.kind * count).from_buffer(data))


class Map(Generic[K, V]):
    """One map. `setting` is the key in node.yaml that says how large it is."""

    def __init__(
        self, name: str, fd: int, types: tuple[type[K], type[V]], setting: str = "", *,
        writable: bool = True,
    ) -> None:  # fmt: skip
        info = libbpf.info(fd, libbpf.MapInfo)
        self.name, self.fd, self.setting, self.writable = name, fd, setting, writable
        self.id, self.max_entries, self.flags = info.id, info.max_entries, info.map_flags
        self.value_size = info.value_size
        self.array = types[0] is int
        self.key: Codec[K] = Codec(types[0], info.key_size)
        self.value: Codec[V] = Codec(types[1], info.value_size)
        self._view: memoryview | None = None
        self._indexes = b""  # the keys of an array, once somebody asked for them

    def __repr__(self) -> str:
        return f"<map {self.name}: {self.max_entries} entries>"

    # ---- one entry ----

    def get(self, key: K) -> V | None:
        found = self.value.new()
        return self.value.value(found) if self._lookup(key, byref(found)) else None

    def put(self, key: K, value: V, *, create: bool = False) -> None:
        """Write an entry; with `create`, only if there is none."""
        self.check_writable()
        packed, data = self.key.pack(key), self.value.pack(value)
        flags = NOEXIST if create else ANY
        code = libbpf.lib().bpf_map_update_elem(self.fd, byref(packed), byref(data), flags)
        if code < 0:
            raise self._failed(f"writing {key}", code)

    def delete(self, key: K) -> bool:
        self.check_writable()
        packed = self.key.pack(key)
        code = libbpf.lib().bpf_map_delete_elem(self.fd, byref(packed))
        if code not in (0, -ENOENT):
            raise self._failed(f"deleting {key}", code)
        return bool(code == 0)

    def _lookup(self, key: K, target: Any) -> bool:  # noqa: ANN401 -- a ctypes reference
        packed = self.key.pack(key)
        code = libbpf.lib().bpf_map_lookup_elem(self.fd, byref(packed), target)
        if code not in (0, -ENOENT):
            raise self._failed(f"reading {key}", code)
        return bool(code == 0)

    def get_raw(self, key: bytes) -> bytes | None:
        """The same as bytes: nothing is made of them."""
        found = ctypes.create_string_buffer(self.value_size)
        code = libbpf.lib().bpf_map_lookup_elem(self.fd, key, found)
        if code not in (0, -ENOENT):
            raise self._failed("reading an entry", code)
        return found.raw if code == 0 else None

    def put_raw(self, key: bytes, value: bytes, flags: int = ANY) -> bool:
        """Whether it was written: with NOEXIST only where there is none."""
        code = libbpf.lib().bpf_map_update_elem(self.fd, key, value, flags)
        if code not in (0, -EEXIST):
            raise self._failed("writing an entry", code)
        return bool(code == 0)

    # ---- many ----

    def items(self) -> list[tuple[K, V]]:
        """Every entry; of an array, every entry that is not all zero."""
        return list(self.scan())

    def scan(self) -> Iterator[tuple[K, V]]:
        """The same, batch by batch: of a large map never all at once."""
        for batch in self.batches(self.value_size):
            yield from self._decode(*batch)

    def put_many(self, entries: Iterable[tuple[K, V]]) -> None:
        self.check_writable()
        pairs = list(entries)
        if not pairs:
            return
        keys = self.key.pack_all([key for key, _ in pairs])
        values = self.value.pack_all([value for _, value in pairs])
        count = c_uint32(len(pairs))
        options = libbpf.BatchOptions()
        code = libbpf.lib().bpf_map_update_batch(
            self.fd, keys, values, byref(count), byref(options)
        )
        if code < 0:
            raise self._failed(f"writing {len(pairs)} entries, {count.value} done", code)

    def delete_many(self, keys: Iterable[K]) -> int:
        """Delete what is there of these; how many that was."""
        self.check_writable()
        wanted, start, deleted = list(keys), 0, 0
        packed = self.key.pack_all(wanted)
        while start < len(wanted):
            done = self._delete_from(packed, start, len(wanted) - start)
            deleted += done
            start += done + 1  # the kernel stops at the first key that is not there
        return deleted

    def _delete_from(self, packed: Buffer, start: int, left: int) -> int:
        count, options = c_uint32(left), libbpf.BatchOptions()
        first = byref(packed, start * self.key.size)
        code = libbpf.lib().bpf_map_delete_batch(self.fd, first, byref(count), byref(options))
        if code not in (0, -ENOENT):
            raise self._failed(f"deleting {left} entries", code)
        return count.value

    def count(self) -> int:
        """How many entries there are; an array has all of them."""
        return sum(count for *_, count in self.batches(self.value_size))

    def batches(self, value_size: int) -> Iterator[tuple[Buffer, Buffer, int]]:
        """Raw keys and values, as the kernel hands them out: of a large map never all at once."""
        cursor, more, room = None, True, min(self.max_entries, BATCH)
        while more:
            following = ctypes.create_string_buffer(CURSOR)
            keys = ctypes.create_string_buffer(max(1, room * self.key.size))
            values = ctypes.create_string_buffer(max(1, room * value_size))
            count, options = c_uint32(room), libbpf.BatchOptions()
            code = libbpf.lib().bpf_map_lookup_batch(
                self.fd, cursor, following, keys, values, byref(count), byref(options)
            )
            if code == -ENOSPC:  # a bucket holds more than there is room for
                room *= 2
                continue
            if code not in (0, -ENOENT):
                raise self._failed("reading all entries", code)
            yield keys, values, count.value
            cursor, more = following, code == 0

    def _decode(self, keys: Buffer, values: Buffer, count: int) -> list[tuple[K, V]]:
        if self.array:
            return [(cast("K", i), v) for i, v in self._present(keys, values, count)]
        decoded = self.value.unpack_all(values, count)
        return list(zip(self.key.unpack_all(keys, count), decoded, strict=True))

    def _present(self, keys: Buffer, values: Buffer, count: int) -> list[tuple[int, V]]:
        """Of an array's entries those that say something."""
        size = self.value_size
        used = occupied(memoryview(values).cast("B"), size, count)
        indexes = array("I", bytes(memoryview(keys)[: 4 * count]))
        decoded = (self.value.kind * count).from_buffer(values)
        return [(indexes[i], cast("V", decoded[i])) for i in used]

    # ---- as bytes, for whoever reads again and again ----

    def raw(self) -> list[tuple[bytes, bytes]]:
        """All keys and all values, batch by batch; at once where they are memory.

        That takes a descriptor that can write, and an array's entries without gaps.
        """
        if self.array and self.writable and self.flags & MMAPABLE and not self.value_size % 8:
            self._indexes = self._indexes or array("I", range(self.max_entries)).tobytes()
            return [(self._indexes, bytes(self.view()))]
        return [
            (
                bytes(memoryview(keys)[: count * self.key.size]),
                bytes(memoryview(values)[: count * self.value_size]),
            )
            for keys, values, count in self.batches(self.value_size)
        ]

    def records(self, raw: list[tuple[bytes, bytes]]) -> Iterator[bytes]:
        """Key and value of each entry; of an array, of each that is not all zero."""
        each, size = self.key.size, self.value_size
        for keys, values in raw:
            count = len(keys) // each
            there = occupied(memoryview(values), size, count) if self.array else range(count)
            for i in there:
                yield keys[i * each : (i + 1) * each] + values[i * size : (i + 1) * size]

    def encoded(self, key: K, value: V) -> bytes:
        return self.key.pack_all([key]).raw + self.value.pack_all([value]).raw

    def decoded(self, record: bytes) -> tuple[K, V]:
        return self.key.unpack(record[: self.key.size]), self.value.unpack(record[self.key.size :])

    # ---- memory ----

    def view(self) -> memoryview:
        """The map itself, as memory: entries are a multiple of eight bytes apart."""
        if self._view is None:
            if not self.flags & MMAPABLE:
                raise KernelError(f"map {self.name} cannot be mapped into memory")
            self._view = mapped(self.fd, round8(self.value_size) * self.max_entries, self.writable)
        return self._view

    def close(self) -> None:
        if self._view is not None:
            self._view = None
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def check_writable(self) -> None:
        if not self.writable:
            raise NotPermitted(f"map {self.name}: the instance was opened read-only")

    def _failed(self, doing: str, code: int) -> KernelError:
        what = f"map {self.name}: {doing}"
        if errors.is_full(code):
            return errors.full(self.name, self.max_entries, self.setting or self.name)
        return errors.failed(what, code)


class PerCpuMap(Map[K, V]):
    """An array with a copy for each CPU; its values are sums. All fields are 64 bits wide."""

    def __init__(
        self, name: str, fd: int, types: tuple[type[K], type[V]], setting: str = "", *,
        writable: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(name, fd, types, setting, writable=writable)
        self.cpus: int = libbpf.lib().libbpf_num_possible_cpus()
        self.stride = round8(self.value_size)

    def per_cpu(self, key: K) -> list[V]:
        data = ctypes.create_string_buffer(self.stride * self.cpus)
        if not self._lookup(key, data):
            return []
        parts = [data.raw[i * self.stride :][: self.value_size] for i in range(self.cpus)]
        return [cast("V", self.value.kind.from_buffer_copy(part)) for part in parts]

    def get(self, key: K) -> V | None:
        data = ctypes.create_string_buffer(self.stride * self.cpus)
        return self._sum(memoryview(data).cast("B")) if self._lookup(key, data) else None

    def items(self) -> list[tuple[K, V]]:
        each = self.stride * self.cpus
        return [
            (cast("K", indexes[i]), self._sum(part))
            for keys, values, count in self.batches(each)
            for memory in [memoryview(values).cast("B")]
            for indexes in [memoryview(keys).cast("B").cast("I")]
            for i in occupied(memory, each, count)
            for part in [memory[i * each : (i + 1) * each]]
        ]

    def check_writable(self) -> None:
        raise TypeError(f"map {self.name} is counted in by the program alone")

    def _sum(self, data: memoryview) -> V:
        words = data.cast("Q")
        each = self.stride // 8
        totals = array("Q", map(sum, zip(*(words[i * each :][:each] for i in range(self.cpus)))))  # noqa: B905
        return cast("V", cast("type[Record]", self.value.kind).from_bytes(totals.tobytes()))


def occupied(data: memoryview, size: int, count: int) -> list[int]:
    """Which of `count` entries of `size` bytes are not all zero."""
    whole = bytes(data[: size * count])
    if not whole.strip(b"\0"):
        return []
    nothing = bytes(size)
    return [i for i in range(count) if whole[i * size : (i + 1) * size] != nothing]


def round8(size: int) -> int:
    return -(-size // 8) * 8


def mapped(fd: int, size: int, writable: bool) -> memoryview:
    """A map's memory; it lives as long as the view does, and needs no descriptor.

    Python's own mmap would keep one, and a thousand pools have two thousand tables.
    """
    access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    whole = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    at = LIBC.mmap(None, whole, access, mmap.MAP_SHARED, fd, 0)
    if at == MAP_FAILED:
        raise errors.failed("mapping a map into memory", ctypes.get_errno())
    memory = (ctypes.c_char * size).from_address(at)
    end = weakref.finalize(memory, LIBC.munmap, at, whole)
    end.atexit = False  # type: ignore[misc]  # unknown to typeshed
    view = memoryview(memory).cast("B")
    return view if writable else view.toreadonly()
