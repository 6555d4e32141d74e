"""What is measured: one row each, with the packet it sends and what must become of it.

A row is a value. Nothing here runs, and nothing depends on what an earlier row did:
each has a service address of its own, so that no two rows share a flow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from itertools import count

from bpf.abi import Forward, ServiceFlag, Verdict
from bpf.mapset import Sizes
from bpf.program import Action
from tests.bench.objects import BenchError
from tests.bench.wrapper import Order, Packet
from tests.support.frames import UDP, eth, ip, tcp, udp
from tests.support.world import Backend, Pool, Service, Settings, World

TABLE = 65537
BACKENDS = 16
INGRESS = 1  # the interface that a test run comes in by: sending out of it again is XDP_TX
CLIENT = {4: "10.0.0.0", 6: "2001:db8:c::"}
SAMPLED = 1023  # latency: one packet in 1024, as a node would have it

SWAP = "wrapper + MAC swap"
SWAP6 = "wrapper + MAC swap, IPv6"
PLAIN_SWAP = "MAC swap"


class Place(Enum):
    """Where a row is measured: a balancer and its maps, so that no crowd is in another's way."""

    FEW = Sizes(), "single flows"
    CROWD = Sizes(), "64k flows"
    TRANSLATED = Sizes(), "64k flows of nat"
    NEW = Sizes(), "strangers, who evict each other"
    MANY = Sizes(flows4=1 << 21), "1M flows"

    @property
    def sizes(self) -> Sizes:
        return self.value[0]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `best` is the best known balancer, in the same multiples."""

    name: str
    packet: Packet
    program: str = "balancer"  # or one of the wrapper's own
    wrapped: bool = True
    action: Action = Action.TX
    grows: int = 0
    verdict: Verdict | None = None
    service: str = ""
    known: bool = False  # its flows are learnt beforehand
    learns: bool = False  # nearly every packet measured is a new flow's
    reply: bool = False  # measured is the reply to the packet
    against: str = SWAP
    beside: str = ""
    mark: float | None = None
    best: float | None = None
    place: Place = Place.FEW

    @property
    def baseline(self) -> bool:
        return self.verdict is None


def _pool(name: str, family: int, port: int = 0) -> Pool:
    """Slots stand in turn: which backend a flow has is of no concern here."""
    start = "10.1.0." if family == 4 else "fd00:1::"
    names = tuple(f"b{i}" for i in range(1, BACKENDS + 1))
    slots = tuple(names[slot % BACKENDS] for slot in range(TABLE))
    backends = tuple(Backend(n, f"{start}{n[1:]}", port=port, mtu=9000) for n in names)
    return Pool(name, backends, size=TABLE, step=17, slots=slots, spares=slots)


POOLS = {4: _pool("four", 4), 6: _pool("six", 6)}
REWRITTEN = {4: _pool("web4", 4, 8080), 6: _pool("web6", 6, 8080)}
_numbers = count(1)


def _address(family: int) -> str:
    """A service address that no other row has."""
    number = next(_numbers)
    return f"192.0.2.{number}" if family == 4 else f"2001:db8::{number:x}"


def _frame(family: int, where: str, protocol: str, flags: str) -> bytes:
    """The smallest Ethernet frame of IPv4, and as much payload over IPv6."""
    segment = tcp(1234, 80, flags, bytes(10)) if protocol == "tcp" else udp(1234, 80, bytes(22))
    return eth(ip(CLIENT[family], where, segment))


@dataclass(frozen=True, slots=True)
class Balanced:
    """A row and the service that it needs."""

    row: Row
    service: Service


def _balanced(
    name: str,
    forward: Forward,
    *,
    family: int = 4,
    to: int | None = None,
    protocol: str = "tcp",
    flags: str = "A",
    off: bool = False,
    flows: int = 1,
    learns: bool = False,
    reply: bool = False,
    mark: float | None = None,
    best: float | None = None,
    beside: str = "",
    place: Place = Place.FEW,
) -> Balanced:
    where, to = _address(family), to or family
    rewriting = forward in (Forward.NAT, Forward.FULLNAT)
    service = Service(
        name,
        ((where, 80, protocol),),
        ((REWRITTEN if rewriting else POOLS)[to],),
        forward=forward,
        flags=ServiceFlag.FLOWS_OFF if off else ServiceFlag(0),
        udp_idle=3600,
        tcp_idle=3600,
    )
    order = Order.RANDOM if flows > 1 else Order.ONE
    row = Row(
        name,
        Packet(_frame(family, where, protocol, flags), order, flows),
        grows=_overhead(forward, to),
        verdict=Verdict.RETURNED if reply else Verdict.FORWARDED,
        service=name,
        known=flags == "A" and not off and not learns,
        learns=learns,
        reply=reply,
        against=SWAP if family == 4 else SWAP6,
        mark=mark,
        best=best,
        beside=beside,
        place=place,
    )
    return Balanced(row, service)


def _overhead(forward: Forward, family: int) -> int:
    outer = 20 if family == 4 else 40
    return {Forward.IPIP: outer, Forward.GUE: outer + 8}.get(forward, 0)


def _cross(forward: Forward, *, protocol: str = "tcp") -> list[Balanced]:
    """The family combinations other than IPv4 in IPv4."""
    return [
        _balanced(
            f"{forward.name.lower()}, {protocol.upper()}, {family} in {to}",
            forward,
            family=family,
            to=to,
            protocol=protocol,
        )
        for family, to in ((4, 6), (6, 4), (6, 6))
    ]


FLOWS64K, FLOWS1M = 1 << 16, 10**6
STRANGERS = 1 << 24  # so many that hardly one is met again
LOOK_UPS = {1: "bare LRU, 1 flow", FLOWS64K: "bare LRU, 64k flows", FLOWS1M: "bare LRU, 1M flows"}

BALANCED = [
    _balanced("ipip, TCP", Forward.IPIP, mark=2.6, best=3.7),
    _balanced("ipip, UDP", Forward.IPIP, protocol="udp", mark=3.0, best=4.4),
    _balanced("gue, TCP", Forward.GUE, mark=3.0, best=8.5),
    _balanced("gue, UDP", Forward.GUE, protocol="udp"),
    _balanced("ipip, TCP, flows: off", Forward.IPIP, off=True, mark=2.3, best=3.3),
    _balanced("nat, TCP", Forward.NAT, mark=3.0),
    _balanced("nat, TCP, reply", Forward.NAT, mark=3.0, reply=True),
    _balanced("nat, UDP", Forward.NAT, protocol="udp"),
    _balanced("nat, UDP, reply", Forward.NAT, protocol="udp", reply=True),
    _balanced("fullnat, TCP", Forward.FULLNAT),
    _balanced("fullnat, TCP, reply", Forward.FULLNAT, reply=True),
    _balanced("dsr, TCP", Forward.DSR),
    _balanced("ipip, SYN, no state", Forward.IPIP, flags="S", best=7.5),
    *_cross(Forward.IPIP),
    *_cross(Forward.GUE),
    _balanced("ipip, UDP, 6 in 6", Forward.IPIP, family=6, protocol="udp"),
    _balanced("ipip, TCP, 6 in 6, flows: off", Forward.IPIP, family=6, off=True),
    _balanced("nat, TCP, IPv6", Forward.NAT, family=6),
    _balanced("nat, TCP, IPv6, reply", Forward.NAT, family=6, reply=True),
    _balanced("dsr, TCP, IPv6", Forward.DSR, family=6),
    _balanced("ipip, TCP, flows: off, 1M sources", Forward.IPIP, off=True, flows=FLOWS1M),
    _balanced(
        "ipip, ACK, learnt, 16M sources",
        Forward.IPIP,
        flows=STRANGERS,
        learns=True,
        place=Place.NEW,
    ),
    _balanced(
        "nat, SYN, learnt, 16M sources",
        Forward.NAT,
        flags="S",
        flows=STRANGERS,
        learns=True,
        place=Place.NEW,
    ),
    _balanced(
        "nat, TCP, 64k flows",
        Forward.NAT,
        flows=FLOWS64K,
        beside=LOOK_UPS[FLOWS64K],
        place=Place.TRANSLATED,
    ),
    _balanced(
        "ipip, TCP, 64k flows",
        Forward.IPIP,
        flows=FLOWS64K,
        mark=8,
        best=13.3,
        beside=LOOK_UPS[FLOWS64K],
        place=Place.CROWD,
    ),
    _balanced(
        "ipip, TCP, 1M flows",
        Forward.IPIP,
        flows=FLOWS1M,
        mark=12,
        best=13.8,
        beside=LOOK_UPS[FLOWS1M],
        place=Place.MANY,
    ),
]

_FOREIGN = {family: _frame(family, _address(family), "tcp", "A") for family in (4, 6)}
_ONE = _FOREIGN[4]


def _own(name: str, program: str, *, flows: int = 1, grows: int = 0, family: int = 4) -> Row:
    """A yardstick behind the wrapper."""
    order = Order.RANDOM if flows > 1 else Order.ONE
    packet = Packet(_FOREIGN[family], order, flows)
    return Row(name, packet, program, grows=grows)


def _look_up(name: str, flows: int) -> Row:
    places = {FLOWS64K: Place.CROWD, FLOWS1M: Place.MANY}
    row = _own(name, "look_up", flows=flows)
    return replace(row, known=True, place=places.get(flows, Place.FEW))


def _foreign(name: str, family: int, mark: float | None = None, best: float | None = None) -> Row:
    return Row(
        name,
        Packet(_FOREIGN[family]),
        wrapped=False,
        action=Action.PASS,
        verdict=Verdict.NOT_OURS,
        against=PLAIN_SWAP,
        mark=mark,
        best=best,
    )


ROWS = [
    Row("PASS", Packet(_ONE), "pass", wrapped=False, action=Action.PASS),
    Row(PLAIN_SWAP, Packet(_ONE), "swap", wrapped=False),
    _own(SWAP, "swap"),
    _own(SWAP6, "swap", family=6),
    _own("wrapper + MAC swap, 1M sources", "swap", flows=FLOWS1M),
    _own("wrapper + adjust_head + Ethernet header", "grow", grows=20),
    *(_look_up(name, flows) for flows, name in LOOK_UPS.items()),
    _foreign("not for a service", 4, 1.6, 2.5),
    _foreign("not for a service, IPv6", 6),
    *(balanced.row for balanced in BALANCED),
]


def named(parts: list[str]) -> list[Row]:
    """The rows with one of these in their names; all when nothing is asked for."""
    found = [r for r in ROWS if not parts or any(part in r.name for part in parts)]
    if not found:
        known = "\n  ".join(r.name for r in ROWS)
        raise BenchError(f"no row has {' or '.join(parts)} in its name. There are:\n  {known}")
    return found


def world() -> World:
    """All services, and strangers' frontends so that a look-up has something to pass by."""
    settings = Settings(sample_mask=SAMPLED, tunnel_source4="10.9.0.1")
    return World(tuple(b.service for b in BALANCED), settings, backend_ifindex=INGRESS)


def opening(row: Row) -> list[bytes]:
    """The packets that make the row's flow a known one, in order."""
    frame = row.packet.frame
    if not row.known:
        return []
    return [frame] if _protocol(frame) == UDP else [_syn(frame), frame]


def _protocol(frame: bytes) -> int:
    return frame[23] if frame[14] >> 4 == 4 else frame[20]


def _syn(frame: bytes) -> bytes:
    at = (34 if frame[14] >> 4 == 4 else 54) + 13
    return frame[:at] + b"\x02" + frame[at + 1 :]
