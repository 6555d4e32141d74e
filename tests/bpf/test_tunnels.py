"""ipip and gue in all four combinations of families: headers, checksums, room. §11."""

from typing import Any

import pytest

from bpf.abi import Forward, HashFields, ServiceFlag, Verdict
from tests.support.bed import Bed, reconfigured
from tests.support.frames import (
    TCP,
    UDP,
    Segment,
    cut,
    destination_options,
    eth,
    hop_by_hop,
    ipv4,
    ipv6,
    raw,
    tcp,
    udp,
)
from tests.support.scenes import V4, V6, Net, backend, both, pool, service, to_backend
from tests.support.world import World, tuple_hash

IPIP, GUE = Forward.IPIP, Forward.GUE
GUE_PORT = 6080
OUTER = pytest.mark.parametrize("outer", [V4, V6], ids=["in IPv4", "in IPv6"])


def tunnelled(
    net: Net,
    outer: Net,
    forward: Forward,
    *,
    mtu: int = 1500,
    port: int | None = None,
    **fields: Any,
) -> World:
    """A service of one family whose backend has an address of another, or the same."""
    frontends = ((net.vip, port or 80, "tcp"), (net.vip, port or 53, "udp"))
    if port == 0:
        frontends = ((net.vip, None, "tcp"), (net.vip, None, "udp"))  # type: ignore[assignment]
    made = pool(outer, backends=(backend(outer, 1, mtu=mtu),))
    return World((service(net, made, forward=forward, frontends=frontends, **fields),))


def around(outer: Net, segment: Segment, tos: int) -> bytes:
    """The outer packet."""
    if outer.version == 4:
        return ipv4(outer.tunnel_source, outer.backends[0], segment, tos=tos, ident=0, df=True)
    return ipv6(outer.tunnel_source, outer.backends[0], segment, traffic_class=tos)


def in_ipip(outer: Net, inner: bytes, tos: int = 0) -> bytes:
    return around(outer, raw(4 if inner[0] >> 4 == 4 else 41, inner), tos)


def in_gue(outer: Net, inner: bytes, hashed: int, tos: int = 0) -> bytes:
    checksum = 0 if outer.version == 4 else None
    return around(outer, udp(0xC000 | hashed & 0x3FFF, GUE_PORT, inner, checksum=checksum), tos)


def hash_of(net: Net, sport: int, dport: int, protocol: int) -> int:
    return tuple_hash(net.client, sport, net.vip, dport, protocol)


INNER = {
    "SYN": (tcp(41000, 80, "S"), TCP),
    "odd payload": (tcp(41000, 80, "PA", b"abc", options=b"\1" * 12), TCP),
    "large payload": (tcp(41000, 80, "A", bytes(range(256)) * 5), TCP),
    "UDP": (udp(41000, 53, b"query"), UDP),
    "empty UDP": (udp(41000, 53, b""), UDP),
}


@pytest.mark.parametrize("tags", [(), ((0x8100, 7),)], ids=["untagged", "tagged"])
@pytest.mark.parametrize(("segment", "protocol"), INNER.values(), ids=INNER)
@OUTER
@both
def test_ipip(
    bed: Bed,
    net: Net,
    outer: Net,
    segment: Segment,
    protocol: int,
    tags: tuple[tuple[int, int], ...],
) -> None:
    bed.load(tunnelled(net, outer, IPIP))
    inner = net.packet(segment, ttl=9, tos=0xB9)
    want = in_ipip(outer, net.packet(segment, ttl=8, tos=0xB9), 0xB9)
    bed.expect(eth(inner, tags=tags), Verdict.FORWARDED, to_backend(want, tags=tags))


@pytest.mark.parametrize("tags", [(), ((0x8100, 7),)], ids=["untagged", "tagged"])
@pytest.mark.parametrize(("segment", "protocol"), INNER.values(), ids=INNER)
@OUTER
@both
def test_gue(
    bed: Bed,
    net: Net,
    outer: Net,
    segment: Segment,
    protocol: int,
    tags: tuple[tuple[int, int], ...],
) -> None:
    bed.load(tunnelled(net, outer, GUE))
    inner = net.packet(segment, ttl=9, tos=0x2E)
    hashed = hash_of(net, 41000, 80 if protocol == TCP else 53, protocol)
    want = in_gue(outer, net.packet(segment, ttl=8, tos=0x2E), hashed, 0x2E)
    bed.expect(eth(inner, tags=tags), Verdict.FORWARDED, to_backend(want, tags=tags))


@pytest.mark.parametrize("forward", [IPIP, GUE], ids=lambda f: f.name)
@OUTER
@both
def test_padding_stays_outside(bed: Bed, net: Net, outer: Net, forward: Forward) -> None:
    """Neither in the outer length nor in its checksum."""
    bed.load(tunnelled(net, outer, forward))
    inner = net.packet(udp(41000, 53, b"x"), ttl=63)
    hashed = hash_of(net, 41000, 53, UDP)
    want = in_ipip(outer, inner) if forward == IPIP else in_gue(outer, inner, hashed)
    frame = net.frame(udp(41000, 53, b"x")) + b"\xff" * 9
    bed.expect(frame, Verdict.FORWARDED, to_backend(want) + b"\xff" * 9)


# ---- what the outer checksum cannot take from the headers alone ----

HARD = {
    "UDP without checksum": lambda ttl: (
        V4, ipv4(V4.client, V4.vip, udp(41000, 53, b"abc", checksum=0), ttl=ttl), 53, UDP,
    ),
    "UDP without checksum, empty": lambda ttl: (
        V4, ipv4(V4.client, V4.vip, udp(41000, 53, b"", checksum=0), ttl=ttl), 53, UDP,
    ),
    "UDP without checksum, 1400 bytes": lambda ttl: (
        V4, ipv4(V4.client, V4.vip, udp(41000, 53, b"\xf7" * 1400, checksum=0), ttl=ttl), 53, UDP,
    ),
    "UDP shorter than its segment": lambda ttl: (
        V4, ipv4(V4.client, V4.vip, udp(41000, 53, b"abcdef", length=11), ttl=ttl), 53, UDP,
    ),
    "options": lambda ttl: (
        V4, ipv4(V4.client, V4.vip, tcp(41000, 80), options=b"\1\2\3\4" * 10, ttl=ttl), 80, TCP,
    ),
    "extension header": lambda ttl: (
        V6, ipv6(V6.client, V6.vip, udp(41000, 53), extensions=(hop_by_hop(24),), hop_limit=ttl),
        53, UDP,
    ),
    "two extension headers": lambda ttl: (
        V6,
        ipv6(
            V6.client, V6.vip, tcp(41000, 80, "PA", b"x"), hop_limit=ttl,
            extensions=(hop_by_hop(8), destination_options(64)),
        ),
        80, TCP,
    ),
}  # fmt: skip


@OUTER
@pytest.mark.parametrize("build", HARD.values(), ids=HARD)
def test_gue_around_what_has_no_checksum_to_trust(bed: Bed, build: Any, outer: Net) -> None:
    net, inner, dport, protocol = build(64)
    bed.load(tunnelled(net, outer, GUE))
    want = in_gue(outer, build(63)[1], hash_of(net, 41000, dport, protocol))
    bed.expect(eth(inner), Verdict.FORWARDED, to_backend(want))


@OUTER
@both
def test_gue_around_fragments(bed: Bed, net: Net, outer: Net) -> None:
    bed.load(tunnelled(net, outer, GUE, port=0))
    before = net.packet(udp(41000, 53, b"\xab\xcd" * 100))
    after = net.packet(udp(41000, 53, b"\xab\xcd" * 100), ttl=63)
    for start, size in ((0, 104), (104, 104)):
        want = in_gue(outer, cut(after, start, size), hash_of(net, 0, 0, UDP))
        bed.expect(eth(cut(before, start, size)), Verdict.FORWARDED, to_backend(want))


@pytest.mark.parametrize("size", [3000, 4001, 6000])
@OUTER
def test_gue_around_more_than_a_page(bed: Bed, outer: Net, size: int) -> None:
    """The bytes to be summed lie beyond the linear part."""
    bed.load(tunnelled(V4, outer, GUE, mtu=9000))
    segment = udp(41000, 53, bytes(i * 7 & 0xFF for i in range(size)), checksum=0)
    want = in_gue(outer, V4.packet(segment, ttl=63), hash_of(V4, 41000, 53, UDP))
    bed.expect(V4.frame(segment), Verdict.FORWARDED, to_backend(want))


def test_an_outer_checksum_of_0_is_written_as_ffff(bed: Bed) -> None:
    """Summed over the bytes: an inner payload makes it come out so."""
    bed.load(tunnelled(V4, V6, GUE))
    hashed = hash_of(V4, 41000, 53, UDP)
    probe = in_gue(V6, V4.packet(udp(41000, 53, b"\0\0", checksum=0), ttl=63), hashed)
    segment = udp(41000, 53, probe[46:48], checksum=0)
    want = in_gue(V6, V4.packet(segment, ttl=63), hashed)
    assert want[46:48] == b"\xff\xff"
    bed.expect(V4.frame(segment), Verdict.FORWARDED, to_backend(want))


def test_an_outer_checksum_from_the_headers_alone_that_is_0(bed: Bed) -> None:
    """With a trusted inner checksum only the outer source port, a hash, can make it come out so."""
    bed.load(tunnelled(V4, V6, GUE))

    def sent(src: str, sport: int, outer_port: int) -> bytes:
        return in_gue(V6, V4.packet(tcp(sport, 80), src=src, ttl=63), outer_port)

    def missing(src: str) -> int:
        """By how much the outer port must rise for the sum to be all ones."""
        return int.from_bytes(sent(src, 1, 0)[46:48], "big")

    src = next(s for s in (f"{i}.0.113.9" for i in range(1, 224)) if missing(s) < 0x4000)
    sport = next(
        port
        for port in range(1, 65536)
        if tuple_hash(src, port, V4.vip, 80, TCP) & 0x3FFF == missing(src)
    )
    want = sent(src, sport, missing(src))
    assert want[46:48] == b"\xff\xff"
    bed.expect(V4.frame(tcp(sport, 80), src=src), Verdict.FORWARDED, to_backend(want))


# ---- ports, flows, room ----


@pytest.mark.parametrize(
    "fields", [HashFields.SOURCE, HashFields.SOURCE_PORT], ids=lambda f: f.name
)
@both
def test_gues_source_port_is_of_the_5_tuple_whatever_is_hashed(
    bed: Bed, net: Net, fields: HashFields
) -> None:
    bed.load(tunnelled(net, V4, GUE, hash=fields))
    for sport in (41000, 41001, 5):
        want = in_gue(V4, net.packet(udp(sport, 53), ttl=63), hash_of(net, sport, 53, UDP))
        bed.expect(net.frame(udp(sport, 53)), Verdict.FORWARDED, to_backend(want))


@both
def test_gues_port_is_the_settings(bed: Bed, net: Net) -> None:
    bed.load(reconfigured(tunnelled(net, V4, GUE), gue_port=5555))
    out = bed.expect(net.frame(udp(41000, 53)), Verdict.FORWARDED).frame
    assert out[36:38] == (5555).to_bytes(2, "big")


@pytest.mark.parametrize("flags", [0, ServiceFlag.FLOWS_OFF], ids=["flows", "no flows"])
@pytest.mark.parametrize("forward", [IPIP, GUE], ids=lambda f: f.name)
@OUTER
@both
def test_a_known_flow_is_sent_like_a_new_one(
    bed: Bed, net: Net, outer: Net, forward: Forward, flags: int
) -> None:
    bed.load(tunnelled(net, outer, forward, flags=flags))
    first = bed.expect(net.frame(tcp(41000, 80)), Verdict.FORWARDED).frame
    assert bed.expect(net.frame(tcp(41000, 80)), Verdict.FORWARDED).frame == first


@pytest.mark.parametrize("forward", [IPIP, GUE], ids=lambda f: f.name)
@OUTER
@both
def test_the_mtu_counts_the_outer_headers(bed: Bed, net: Net, outer: Net, forward: Forward) -> None:
    overhead = (20 if outer.version == 4 else 40) + (8 if forward == GUE else 0)
    mtu = 1500
    fits = mtu - overhead - (40 if net.version == 4 else 60)
    bed.load(tunnelled(net, outer, forward, mtu=mtu))
    out = bed.expect(net.frame(tcp(41000, 80, "A", bytes(fits))), Verdict.FORWARDED).frame
    assert len(out) == 14 + mtu
    outcome = bed.send(net.frame(tcp(41000, 80, "A", bytes(fits + 1))))
    assert outcome.verdict == Verdict.TOO_BIG_ANSWERED


@both
def test_backends_of_both_families_in_one_pool(bed: Bed, net: Net) -> None:
    """Each is reached through a tunnel of its own family."""
    backends = (backend(V4, 1), backend(V6, 2))
    made = pool(net, backends=backends)
    bed.load(World((service(net, made, forward=IPIP),)))
    versions = {}
    for sport in range(41000, 41020):
        outcome = bed.expect(net.frame(tcp(sport, 80)), Verdict.FORWARDED)
        versions[outcome.backend] = outcome.frame[14] >> 4
    assert versions == {"b1": 4, "b2": 6}
