"""The addresses of the test bed, and the worlds that most table tests start from. Pure data."""

from dataclasses import dataclass
from typing import Any

import pytest

from bpf.abi import Forward
from tests.support.frames import CLIENT_MAC, TCP, Segment, eth, ip
from tests.support.world import Backend, Pool, Service, Settings, World, slot_of, tuple_hash

BALANCER_MAC, BACKEND_SIDE_MAC = "02:00:00:00:00:01", "02:00:00:00:0b:00"


@dataclass(frozen=True, slots=True)
class Net:
    """One family: the bed's clients, services and backends."""

    version: int
    client: str  # on the clients' link, its neighbour known
    client2: str
    silent: str  # on the clients' link, its neighbour unknown
    far: str  # behind a router
    narrow: str  # behind a router, by a route with MTU 1400
    nowhere: tuple[str, ...]  # blackhole, unreachable, prohibit, no route
    node: str  # an address of the balancer itself
    vip: str
    vip2: str
    foreign: str  # no service's
    backends: tuple[str, ...]
    nat_source: str
    tunnel_source: str

    def packet(self, segment: Segment, *, src: str = "", dst: str = "", **fields: Any) -> bytes:
        """From the client to the service."""
        return ip(src or self.client, dst or self.vip, segment, **fields)

    def frame(self, segment: Segment, *, src: str = "", dst: str = "", **fields: Any) -> bytes:
        return eth(self.packet(segment, src=src, dst=dst, **fields))


V4 = Net(
    version=4,
    client="198.51.100.7",
    client2="198.51.100.8",
    silent="198.51.100.66",
    far="203.0.113.9",
    narrow="203.0.114.9",
    nowhere=("203.0.115.9", "203.0.116.9", "203.0.117.9", "203.0.118.9"),
    node="198.51.100.1",
    vip="192.0.2.10",
    vip2="192.0.2.11",
    foreign="192.0.2.99",
    backends=tuple(f"10.1.0.{10 + i}" for i in range(1, 13)),
    nat_source=Settings().nat_source4,
    tunnel_source=Settings().tunnel_source4,
)
V6 = Net(
    version=6,
    client="2001:db8:c::7",
    client2="2001:db8:c::8",
    silent="2001:db8:c::66",
    far="2001:db8:f::9",
    narrow="2001:db8:f1::9",
    nowhere=("2001:db8:f2::9", "2001:db8:f3::9", "2001:db8:f4::9", "2001:db8:f5::9"),
    node="2001:db8:c::1",
    vip="2001:db8:5::10",
    vip2="2001:db8:5::11",
    foreign="2001:db8:5::99",
    backends=tuple(f"2001:db8:b::{10 + i}" for i in range(1, 13)),
    nat_source=Settings().nat_source6,
    tunnel_source=Settings().tunnel_source6,
)
NETS = {4: V4, 6: V6}
both = pytest.mark.parametrize("net", [V4, V6], ids=["IPv4", "IPv6"])


def backend(net: Net, number: int, **fields: Any) -> Backend:
    """b1, b2, ...: its number is the last byte of its MAC, so that a sent frame tells whose it is."""
    fields = {"port": 8080, "dmac": f"02:00:00:00:0b:{number:02x}", **fields}
    return Backend(f"b{number}", net.backends[number - 1], **fields)


def pool(net: Net, count: int = 1, name: str = "web", **fields: Any) -> Pool:
    """`count` backends alike; or `backends` as given."""
    backends = fields.pop("backends", None) or tuple(backend(net, i + 1) for i in range(count))
    return Pool(name, backends, **fields)


def service(net: Net, *pools: Pool, name: str = "www", **fields: Any) -> Service:
    """At 80/tcp and 53/udp of the family's service address."""
    fields.setdefault("frontends", ((net.vip, 80, "tcp"), (net.vip, 53, "udp")))
    return Service(name, pools=pools or (pool(net),), **fields)


def one(net: Net, forward: Forward = Forward.NAT, count: int = 1, **fields: Any) -> World:
    """One service with one pool "web" of `count` backends."""
    settings = fields.pop("settings", Settings())
    pools = fields.pop("pools", None) or (pool(net, count),)
    return World((service(net, *pools, forward=forward, **fields),), settings)


def to_backend(packet: bytes, number: int = 1, **fields: Any) -> bytes:
    """The frame in which a packet goes to backend number so-and-so."""
    return eth(packet, src=BACKEND_SIDE_MAC, dst=f"02:00:00:00:0b:{number:02x}", **fields)


def from_backend(packet: bytes, number: int = 1, **fields: Any) -> bytes:
    return eth(packet, src=f"02:00:00:00:0b:{number:02x}", dst=BACKEND_SIDE_MAC, **fields)


def to_client(packet: bytes, *, dst: str = CLIENT_MAC, **fields: Any) -> bytes:
    return eth(packet, src=BALANCER_MAC, dst=dst, **fields)


def port_to_slot(
    net: Net, slot: int, *, size: int = 61, dport: int = 80, start: int = 20000
) -> int:
    """The first source port of the client from `start` on whose 5-tuple hash (TCP) names a slot."""
    return next(
        port
        for port in range(start, 65536)
        if slot_of(tuple_hash(net.client, port, net.vip, dport, TCP), size) == slot
    )
