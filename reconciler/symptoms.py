"""What doctor is told of this host, and what it finds in that. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from reconciler.model import Address, Config, Node


class Level(StrEnum):
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Device:
    """An interface that node.yaml names, as the host has it."""

    name: str
    wanted: str = "auto"
    present: bool = True
    up: bool = True
    kind: str = ""  # veth, bridge, ...; empty: hardware
    driver: str = ""
    mtu: int = 1500
    mode: str = ""  # in which our program runs; empty: not attached
    foreign: str = ""  # somebody else's program
    features: Mapping[str, bool] = field(default_factory=dict)  # ethtool -k, by kernel name
    queues: int = 1
    most_queues: int = 1
    native: bool | None = None  # whether the driver has XDP; None: the kernel does not say
    redirect: bool | None = None  # whether frames redirected to it are sent
    rp_filter: int = 0
    forwards: frozenset[int] = frozenset((4, 6))  # families
    vlans: tuple[str, ...] = ()  # VLAN devices on top of it
    filtered: bool | None = None  # whether checks with `via: service` are turned there


@dataclass(frozen=True, slots=True)
class Reach:
    """How packets get to a backend."""

    backend: str  # pool/name
    address: Address
    out: str = ""  # interface; empty: there is no route
    kind: str = ""
    mtu: int = 0
    via: Address | None = None
    resolved: bool = True
    redirect: bool | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    node: Node
    config: Config | None = None
    release: tuple[int, int] = (6, 18)
    kernel: str = ""
    lacking: tuple[str, ...] = ()  # capabilities
    bpffs: bool = True
    loaded: bool | None = None  # the instance; None: not permitted to know
    jit: int | None = 1  # None: the kernel does not say here
    memlock: int | None = None  # bytes; None: unlimited
    cpus: int = 1
    local_ports: tuple[int, int] = (32768, 60999)
    reserved: tuple[tuple[int, int], ...] = ()
    keepalive: int = 7200  # seconds
    most_neighbours: int | None = None
    clsact: bool | None = None  # whether the kernel has it, and cls_bpf; None: it does not say
    devices: tuple[Device, ...] = ()
    reaches: tuple[Reach, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    level: Level
    name: str  # for scripts: never changes
    about: str
    what: str
    mend: str  # a command, or what to write where

    def document(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def in_sysctl(interface: str) -> str:
    """Its name among a key's dots, which are those of a VLAN's name too."""
    return interface.replace(".", "/")


def warning(name: str, about: str, what: str, mend: str) -> Finding:
    return Finding(Level.WARNING, name, about, what, mend)


def note(name: str, about: str, what: str, mend: str) -> Finding:
    return Finding(Level.NOTE, name, about, what, mend)
