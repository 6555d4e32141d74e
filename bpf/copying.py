"""From one map into another of the same shape and another size, as bytes, a batch at a time.

Everything at once, as it is: of maps that packets write meanwhile `carrying` knows more.
"""

from __future__ import annotations

import os
from array import array
from ctypes import byref, c_uint32
from typing import Any

from bpf import errors, libbpf
from bpf.errors import KernelError
from bpf.maps import Buffer, Map, PerCpuMap, occupied
from bpf.mapset import AnyMap
from bpf.tables import TableMap, open_pin

Batch = tuple[Buffer, Buffer]  # keys and values


def order(names: list[str]) -> list[str]:
    """Hops after those that name them; counters last, for they are counted on."""
    last = ("hops", "hop_ids", "cpus", "service_counts", "backend_counts")
    return sorted(names, key=lambda name: last.index(name) + 1 if name in last else 0)


def copy(source: AnyMap, target: AnyMap) -> None:
    """Every entry. What does not fit is an error, but in an LRU, which keeps what is newest."""
    if isinstance(source, TableMap) and isinstance(target, TableMap):
        _copy_tables(source, target)
        return
    assert isinstance(source, Map)  # noqa: S101 -- the same kind
    assert isinstance(target, Map)  # noqa: S101
    each = source.stride * source.cpus if isinstance(source, PerCpuMap) else source.value_size
    for keys, values, count in source.batches(each):
        fits = _fitting(source, target, (keys, values), each, count)
        write(target, keys, values, fits)


def _fitting(
    source: Map[Any, Any], target: Map[Any, Any], batch: Batch, each: int, count: int
) -> int:
    """Of an array's batch, the part that the target has room for; the rest must be empty."""
    if not source.array:
        return count
    keys, values = batch
    indexes = array("I", keys.raw[: 4 * count])
    fits: int = sum(index < target.max_entries for index in indexes)
    if occupied(memoryview(values).cast("B")[fits * each :], each, count - fits):
        raise errors.full(source.name, target.max_entries, source.setting)
    return fits


def write(target: Map[Any, Any], keys: Any, values: Any, count: int) -> None:  # noqa: ANN401 -- buffers
    if not count:
        return
    number, options = c_uint32(count), libbpf.BatchOptions()
    code = libbpf.lib().bpf_map_update_batch(target.fd, keys, values, byref(number), byref(options))
    if code < 0 and errors.is_full(code):
        raise errors.full(target.name, target.max_entries, target.setting)
    if code < 0:
        raise errors.failed(f"map {target.name}: copying {count} entries", code)


def _copy_tables(source: TableMap, target: TableMap) -> None:
    """The same tables under the same numbers, in a larger list."""
    if max(source.indexes(), default=0) >= target.max_entries:
        raise errors.full(source.name, target.max_entries, "pools")
    for index, paths in source._pins().items():  # noqa: SLF001
        wanted = source.number(index)
        for path in paths:
            if source._id_of(path) == wanted and wanted is not None:  # noqa: SLF001
                _put_table(target, index, path)


def _put_table(target: TableMap, index: int, path: Any) -> None:  # noqa: ANN401
    fd = open_pin(path)
    if fd is None:
        raise KernelError(f"{path}: was unpinned meanwhile; try again")
    try:
        target.outer.put(index, fd)
    finally:
        os.close(fd)
