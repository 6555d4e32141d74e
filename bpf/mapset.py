"""Every map of the program, with its types, and the sizes that node.yaml gives them.

The names and types here are compared with the object's and the pinned maps'
own before anything is read: a difference is an AbiMismatch, never a guess.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from bpf import libbpf
from bpf.abi import (
    Backend,
    Counters,
    Cpu,
    Flow,
    Flow4Key,
    Flow6Key,
    Frontend,
    Frontend4Key,
    Frontend6Key,
    Health,
    Hop,
    Meta,
    Pool,
    Prefilter,
    Reply,
    Return4,
    Return6,
    Service,
    ServiceState,
    Settings,
)
from bpf.maps import Map, PerCpuMap
from bpf.tables import TableMap, open_pin

NAME_BYTES = 15
AnyMap = Map[Any, Any] | TableMap


@dataclass(frozen=True, slots=True)
class Sizes:
    """Entries by kind of map; what node.yaml says under `sizes`."""

    frontends: int = 4096
    services: int = 1024
    pools: int = 1024
    backends: int = 4096
    flows4: int = 262144
    flows6: int = 65536
    returns4: int = 262144
    returns6: int = 65536
    opening4: int = 65536
    opening6: int = 16384
    hops: int = 4096

    def of(self, name: str) -> int | None:
        """How many entries a map gets; None: as many as the program says."""
        setting = SETTING.get(name)
        return getattr(self, setting) if setting else None


# Which setting says how large a map is. A reply entry is one of a backend's ports.
SETTING = {
    "frontends4": "frontends",
    "frontends6": "frontends",
    "frontends": "frontends",
    "services": "services",
    "service_state": "services",
    "service_counts": "services",
    "pools": "pools",
    "tables": "pools",
    "spares": "pools",
    "backends": "backends",
    "health": "backends",
    "live": "backends",
    "recount": "backends",
    "backend_counts": "backends",
    "replies4": "backends",
    "replies6": "backends",
    "flows4": "flows4",
    "flows6": "flows6",
    "returns4": "returns4",
    "returns6": "returns6",
    "opening4": "opening4",
    "opening6": "opening6",
    "hops": "hops",
    "hop_ids": "hops",
}

# What the reconciler and healthcheck write: a shadow instance sees the same.
CONFIGURATION = frozenset({
    "settings", "prefilter", "frontends4", "frontends6", "frontends", "services", "pools",
    "tables", "spares", "backends", "health", "replies4", "replies6", "meta",
})  # fmt: skip

# Mapped into memory: for that the kernel wants a descriptor that can write, even of a reader.
MAPPED = frozenset({"prefilter", "health"})

# healthcheck runs as another user of the same group: it writes one map, and meta says whether it is what it thinks.
SHARED = {"health": 0o660, "meta": 0o640}


class Maps:
    """The maps of one instance, by name."""

    settings: Map[int, Settings]
    prefilter: Map[int, Prefilter]
    frontends4: Map[Frontend4Key, int]
    frontends6: Map[Frontend6Key, int]
    frontends: Map[int, Frontend]
    services: Map[int, Service]
    pools: Map[int, Pool]
    tables: TableMap
    spares: TableMap
    backends: Map[int, Backend]
    health: Map[int, Health]
    live: Map[int, int]
    recount: Map[int, int]
    service_state: Map[int, ServiceState]
    flows4: Map[Flow4Key, Flow]
    flows6: Map[Flow6Key, Flow]
    returns4: Map[Flow4Key, Return4]
    returns6: Map[Flow6Key, Return6]
    opening4: Map[Flow4Key, Return4]
    opening6: Map[Flow6Key, Return6]
    replies4: Map[Frontend4Key, Reply]
    replies6: Map[Frontend6Key, Reply]
    hops: Map[int, Hop]
    hop_ids: Map[Hop, int]
    cpus: PerCpuMap[int, Cpu]
    service_counts: PerCpuMap[int, Counters]
    backend_counts: PerCpuMap[int, Counters]
    meta: Map[int, Meta]

    def __init__(self, maps: dict[str, AnyMap]) -> None:
        self.__dict__.update(maps)

    def __getitem__(self, name: str) -> AnyMap:
        found: AnyMap = getattr(self, name)
        return found

    def close(self) -> None:
        for name in names():
            self[name].close()


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(Maps)


def names() -> list[str]:
    return list(_hints())


def types(name: str) -> tuple[Any, Any]:
    """The key and value types of a map."""
    hint = _hints()[name]
    return (int, int) if hint is TableMap else get_args(hint)


def sizes(name: str) -> tuple[int, int]:
    """Bytes of a key and of a value; whole numbers are 32 bits wide."""
    key, value = (4 if kind is int else ctypes.sizeof(kind) for kind in types(name))
    return key, value


def open_map(name: str, fd: int, directory: Path | None, *, writable: bool = True) -> AnyMap:
    """The typed map behind a file descriptor, which it then owns; `directory` is the instance's."""
    hint, setting = _hints()[name], SETTING.get(name, name)
    if hint is TableMap:
        inner = directory / name if directory else None
        return TableMap(name, fd, inner, setting, writable=writable)
    kind: type[Map[Any, Any]] = get_origin(hint)
    return kind(name, fd, types(name), setting, writable=writable)


def entries_of(path: Path) -> int:
    """How many a pinned hash map has, of whatever version; none where none is pinned."""
    fd = open_pin(path)
    if fd is None:
        return 0
    found: Map[Any, Any] = Map(path.name, fd, types("flows4"))
    try:
        return found.count()
    finally:
        found.close()


def share(name: str, path: Path) -> None:
    """Give the pin of a map the permissions that others of the group need."""
    if mode := SHARED.get(name):
        path.chmod(mode)


def identity(fd: int) -> tuple[str, int, int]:
    """What the kernel calls a map, and its bytes of a key and of a value."""
    found = libbpf.info(fd, libbpf.MapInfo)
    return found.name.decode(), found.key_size, found.value_size


def names_in_kernel(name: str) -> tuple[str, str]:
    """What the kernel calls a map: as much of the name as it keeps, of a map or of a data section."""
    return name[:NAME_BYTES], f".data.{name}"[:NAME_BYTES]
