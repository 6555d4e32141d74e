"""What lb.yaml and node.yaml mean, as values. Knows neither YAML nor the kernel.

Everything here is checked already: whoever holds a Config need not ask whether a
pool exists, a weight is in range or an address is one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Any

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Origin:
    """Where something was written: plans name it."""

    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


NOWHERE = Origin()


class Proto(IntEnum):
    TCP = 6
    UDP = 17


class AdminState(StrEnum):
    UP = "up"
    DRAIN = "drain"
    DOWN = "down"


class DriftPolicy(StrEnum):
    """What is done about map entries that others changed."""

    RESTORE = "restore"
    REPORT = "report"
    IGNORE = "ignore"


class Forward(StrEnum):
    NAT = "nat"
    FULLNAT = "fullnat"
    DSR = "dsr"
    IPIP = "ipip"
    GUE = "gue"

    @property
    def translates(self) -> bool:
        """Whether addresses are rewritten, which works within one family only."""
        return self in (Forward.NAT, Forward.FULLNAT)

    @property
    def tunnels(self) -> bool:
        return self in (Forward.IPIP, Forward.GUE)


class Method(StrEnum):
    CONSISTENT = "consistent"
    MAGLEV = "maglev"
    ROUND_ROBIN = "round-robin"
    RANDOM = "random"
    LEAST_CONNECTIONS = "least-connections"

    @property
    def hashes(self) -> bool:
        return self in (Method.CONSISTENT, Method.MAGLEV)


class HashOn(StrEnum):
    FIVE_TUPLE = "5-tuple"
    SOURCE = "source"
    SOURCE_PORT = "source-port"


class CheckType(StrEnum):
    TCP = "tcp"
    HTTP = "http"
    HTTPS = "https"
    UDP = "udp"
    DNS = "dns"
    ICMP = "icmp"


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    type: CheckType
    every: float
    timeout: float
    rise: int
    fall: int
    port: int | None = None
    via_service: bool = False  # to the services' addresses, as clients' packets go
    path: str = "/"
    host: str = ""
    expect: tuple[tuple[int, int], ...] = ((200, 299),)
    options: Mapping[str, Any] = field(default_factory=dict)  # further fields of targets.json


class Then(StrEnum):
    FLUSH = "flush"
    KEEP = "keep"


@dataclass(frozen=True, slots=True)
class Drain:
    """What becomes of the flows of a backend that drains or is removed."""

    grace: float = 300.0
    then: Then = Then.FLUSH


@dataclass(frozen=True, slots=True)
class Backend:
    name: str
    address: Address
    port: int = 0  # 0: the client's
    weight: int = 100
    state: AdminState = AdminState.UP
    reason: str = ""
    origin: Origin = field(default=NOWHERE, compare=False)

    @property
    def takes_new(self) -> bool:
        """Whether slots may name it: weight 0 and draining backends only keep flows."""
        return self.weight > 0 and self.state is not AdminState.DRAIN


@dataclass(frozen=True, slots=True)
class Pool:
    name: str
    backends: Mapping[str, Backend]
    check: Check | None = None
    initial_up: bool = False
    drain: Drain = Drain()
    origin: Origin = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Balance:
    method: Method = Method.CONSISTENT
    hash: HashOn = HashOn.FIVE_TUPLE


@dataclass(frozen=True, slots=True, order=True)
class Port:
    number: int  # 0: any port
    proto: Proto

    def __str__(self) -> str:
        return f"{self.number or '*'}/{self.proto.name.lower()}"


@dataclass(frozen=True, slots=True)
class Service:
    name: str
    addresses: tuple[Address, ...]
    ports: tuple[Port, ...]
    pools: tuple[str, ...]
    forward: Forward = Forward.NAT
    balance: Balance = Balance()
    panic: int = 0  # percent
    recover: int | None = None  # percent; None: a little above panic
    flows: bool = True
    gate: int = 0  # new flows a second; 0: no gate
    echo: bool = False
    direct: bool = False
    fail_closed: bool = False
    keep_down: bool = False
    tcp_idle: float = 300.0
    udp_idle: float = 30.0
    origin: Origin = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Guardrails:
    """A removal is refused when it is more than one and more than this share."""

    removed_services: int = 25  # percent
    removed_backends: int = 34  # percent
    allow_empty: bool = False


@dataclass(frozen=True, slots=True)
class Packet:
    """The first of a client's."""

    source: Address
    sport: int
    destination: Address
    dport: int
    proto: Proto


@dataclass(frozen=True, slots=True)
class Expectation:
    """What has to be true of a packet; what is empty may be anything."""

    service: str = ""
    pool: str = ""
    backend: str = ""  # pool/name
    verdict: str = ""


@dataclass(frozen=True, slots=True)
class Test:
    """What the file says about itself."""

    name: str
    packet: Packet
    expect: Expectation
    at: tuple[int, int] = field(default=(0, 0), compare=False)  # line and column


@dataclass(frozen=True, slots=True)
class Config:
    services: Mapping[str, Service]
    pools: Mapping[str, Pool]
    guardrails: Guardrails = Guardrails()
    drain: Drain = Drain()  # of pools that are not in the file any more
    tests: tuple[Test, ...] = ()


@dataclass(frozen=True, slots=True)
class PeerNode:
    """A node that is to forward alike, and where it says so."""

    name: str
    status: str  # the URL of its status page
    patience: float = 60.0  # seconds for which it may differ or be silent


@dataclass(frozen=True, slots=True)
class Node:
    """What differs from node to node."""

    interfaces: Mapping[str, str]  # name -> auto, native or generic
    table_size: int = 16381
    sizes: Mapping[str, int] = field(default_factory=dict)
    tunnel_source: Mapping[int, Address] = field(default_factory=dict)  # by family
    nat_source: Mapping[int, Address] = field(default_factory=dict)
    nat_ports: tuple[int, int] = (20000, 29999)
    gue_port: int = 6080
    icmp_rate: int = 1000  # a second; 0: no limit
    latency_sample: int = 1024  # one packet in so many; 0: none
    listen: str = "127.0.0.1:9160"  # status and metrics; off: nowhere
    control_group: str = ""  # whose members may command
    drift: DriftPolicy = DriftPolicy.RESTORE
    vrrp_fifo: str = ""  # keepalived's notify FIFO
    peers: tuple[PeerNode, ...] = ()
