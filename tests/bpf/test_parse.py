"""What is malformed, what is merely unusual, and what is none of the program's business: §1."""

import struct
from collections.abc import Callable
from typing import Any

import pytest

from bpf.abi import Forward, Verdict
from tests.support.bed import Bed
from tests.support.frames import (
    ICMP,
    ICMPV6,
    TCP,
    UDP,
    Extension,
    Segment,
    cut,
    destination_options,
    eth,
    fragment,
    hop_by_hop,
    icmp,
    ip,
    ipv4,
    ipv6,
    ping,
    raw,
    routing,
    tcp,
    too_big,
    udp,
)
from tests.support.scenes import V4, V6, Net, backend, both, one, pool, service, to_backend
from tests.support.world import World

NOPS = b"\1\1\1\1"
DOT1Q, QINQ = (0x8100, 5), (0x88A8, 9)


def four(segment: Segment, **fields: object) -> Callable[[str], bytes]:
    return lambda dst: eth(ipv4(V4.client, dst, segment, **fields), ethertype=0x0800)  # type: ignore[arg-type]


def six(segment: Segment, *extensions: Extension, **fields: object) -> Callable[[str], bytes]:
    fields["extensions"] = extensions
    return lambda dst: eth(ipv6(V6.client, dst, segment, **fields), ethertype=0x86DD)  # type: ignore[arg-type]


def either(segment: Segment) -> tuple[Callable[[str], bytes], Callable[[str], bytes]]:
    return four(segment), six(segment)


def error(version: int, quoted: bytes) -> Callable[[str], bytes]:
    builder = four if version == 4 else six
    return builder(too_big(version, 1400, quoted))


SYN = tcp(41000, 80, "S")
QUERY = udp(5000, 53)
REPLY4 = ip(V4.vip, V4.client, tcp(80, 41000))
REPLY6 = ip(V6.vip, V6.client, tcp(80, 41000))

MALFORMED: list[tuple[Any, ...]] = [
    ("version 5", Verdict.BAD_IP_HEADER, four(SYN, version=5)),
    ("version 6 by IPv4's ethertype", Verdict.BAD_IP_HEADER, four(SYN, version=6)),
    ("header of 4 words", Verdict.BAD_IP_HEADER, four(SYN, ihl=4)),
    ("header of 0 words", Verdict.BAD_IP_HEADER, four(SYN, ihl=0)),
    ("header longer than the packet", Verdict.BAD_IP_LENGTH, four(raw(TCP, b""), ihl=15)),
    ("header longer than total length", Verdict.BAD_IP_LENGTH, four(SYN, ihl=11, length=40)),
    ("total length 0", Verdict.BAD_IP_LENGTH, four(SYN, length=0)),
    ("total length below the header", Verdict.BAD_IP_LENGTH, four(SYN, length=19)),
    ("total length below the options", Verdict.BAD_IP_LENGTH, four(SYN, options=NOPS, length=23)),
    ("total length beyond the frame", Verdict.BAD_IP_LENGTH, four(SYN, length=41)),
    ("total length 65535", Verdict.BAD_IP_LENGTH, four(SYN, length=65535)),
    ("IPv6 version 5", Verdict.BAD_IP_HEADER, six(SYN, version=5)),
    ("IPv6 version 4", Verdict.BAD_IP_HEADER, six(SYN, version=4)),
    ("payload beyond the frame", Verdict.BAD_IP_LENGTH, six(SYN, length=21)),
    ("payload 65535", Verdict.BAD_IP_LENGTH, six(SYN, length=65535)),
    ("seven extensions", Verdict.BAD_IP_HEADER, six(SYN, *[destination_options()] * 7)),
    ("extension ends beyond", Verdict.BAD_IP_LENGTH, six(SYN, hop_by_hop(length=5))),
    ("extension of 2048 bytes", Verdict.BAD_IP_LENGTH, six(SYN, routing(length=255))),
    ("extension cut short", Verdict.BAD_IP_LENGTH, six(raw(0, b""), hop_by_hop(), length=4)),
    ("fragment header cut short", Verdict.BAD_IP_LENGTH, six(SYN, fragment(), length=7)),
    ("no byte behind next header 0", Verdict.BAD_IP_LENGTH, six(raw(0, b""))),
    ("TCP without a byte", Verdict.BAD_TCP, *either(raw(TCP, b""))),
    ("TCP of 19 bytes", Verdict.BAD_TCP, *either(raw(TCP, SYN.data[:19]))),
    ("TCP offset 4", Verdict.BAD_TCP, *either(tcp(41000, 80, "S", offset=4))),
    ("TCP offset 0", Verdict.BAD_TCP, *either(tcp(41000, 80, "S", offset=0))),
    ("TCP offset beyond", Verdict.BAD_TCP, *either(tcp(41000, 80, "S", b"abc", offset=6))),
    ("TCP offset 15", Verdict.BAD_TCP, *either(tcp(41000, 80, "A", bytes(39), offset=15))),
    ("TCP behind extensions cut short", Verdict.BAD_TCP, six(raw(TCP, b"abc"), hop_by_hop())),
    ("UDP without a byte", Verdict.BAD_UDP, *either(raw(UDP, b""))),
    ("UDP of 7 bytes", Verdict.BAD_UDP, *either(raw(UDP, QUERY.data[:7]))),
    ("UDP length 7", Verdict.BAD_UDP, *either(udp(5000, 53, length=7))),
    ("UDP length 0", Verdict.BAD_UDP, *either(udp(5000, 53, length=0))),
    ("UDP length beyond", Verdict.BAD_UDP, *either(udp(5000, 53, b"abc", length=12))),
    ("UDP length 65535", Verdict.BAD_UDP, *either(udp(5000, 53, length=65535))),
    ("ICMP of 7 bytes", Verdict.BAD_ICMP, four(raw(ICMP, ping(4).data[:7]))),
    ("ICMPv6 of 7 bytes", Verdict.BAD_ICMP, six(raw(ICMPV6, ping(6).data[:7]))),
    ("error quoting nothing", Verdict.BAD_ICMP, error(4, b"")),
    ("error quoting 19 bytes", Verdict.BAD_ICMP, error(4, REPLY4[:19])),
    ("error quoting 7 bytes of TCP", Verdict.BAD_ICMP, error(4, REPLY4[:27])),
    ("error quoting version 6", Verdict.BAD_ICMP, error(4, b"\x65" + REPLY4[1:])),
    ("error quoting a header of 4 words", Verdict.BAD_ICMP, error(4, b"\x44" + REPLY4[1:])),
    ("error quoting a header beyond", Verdict.BAD_ICMP, error(4, b"\x4f" + REPLY4[1:])),
    ("IPv6 error quoting nothing", Verdict.BAD_ICMP, error(6, b"")),
    ("IPv6 error quoting 39 bytes", Verdict.BAD_ICMP, error(6, REPLY6[:39])),
    ("IPv6 error quoting 7 bytes of TCP", Verdict.BAD_ICMP, error(6, REPLY6[:47])),
    ("IPv6 error quoting version 4", Verdict.BAD_ICMP, error(6, b"\x45" + REPLY6[1:])),
]


def net_of(frame: Callable[[str], bytes]) -> Net:
    """By its ethertype, so that a builder need not say twice which family it is of."""
    try:
        frame(V4.vip)
    except ValueError:
        return V6
    return V4


CASES = [
    pytest.param(net_of(frame), frame, verdict, id=f"{name} (IPv{net_of(frame).version})")
    for name, verdict, *variants in MALFORMED
    for frame in variants
]


@pytest.mark.parametrize(("net", "frame", "verdict"), CASES)
def test_malformed_for_a_service_is_dropped(
    bed: Bed, net: Net, frame: Callable[[str], bytes], verdict: Verdict
) -> None:
    bed.load(one(net))
    bed.expect(frame(net.vip), verdict)
    assert bed.remembered(net.version) == (0, 0, 0)


@pytest.mark.parametrize(("net", "frame", "verdict"), CASES)
def test_malformed_for_anyone_else_passes(
    bed: Bed, net: Net, frame: Callable[[str], bytes], verdict: Verdict
) -> None:
    bed.load(one(net))
    bed.expect(frame(net.foreign), Verdict.NOT_OURS)


@pytest.mark.parametrize(
    ("only", "frame", "verdict"),
    [
        ("udp", raw(TCP, b"short"), Verdict.NOT_OURS),
        ("udp", raw(UDP, b"short"), Verdict.BAD_UDP),
        ("tcp", raw(UDP, b"short"), Verdict.NOT_OURS),
        ("tcp", raw(TCP, b"short"), Verdict.BAD_TCP),
    ],
    ids=["TCP, UDP service", "UDP, UDP service", "UDP, TCP service", "TCP, TCP service"],
)
@both
def test_malformed_segments_of_a_protocol_without_frontends_pass(
    bed: Bed, net: Net, only: str, frame: Segment, verdict: Verdict
) -> None:
    bed.load(one(net, frontends=((net.vip, 80, only),)))
    bed.expect(net.frame(frame), verdict)


# ---- cut short ----

# Each with the size from which on an honest length makes it a right packet again.
WHOLE = {
    "IPv4 TCP": (V4, V4.packet(tcp(41000, 80, "PA", b"data", options=NOPS)), 44),
    "IPv4 UDP": (V4, V4.packet(QUERY), 33),
    "IPv4 options": (V4, ipv4(V4.client, V4.vip, SYN, options=NOPS * 10), 80),
    "IPv4 ping": (V4, V4.packet(ping(4)), 28),
    "IPv4 error": (V4, V4.packet(too_big(4, 1400, REPLY4)), 56),
    "IPv6 TCP": (V6, V6.packet(tcp(41000, 80, "PA", b"data", options=NOPS)), 64),
    "IPv6 UDP": (V6, V6.packet(QUERY), 53),
    "IPv6 extensions": (
        V6,
        ipv6(V6.client, V6.vip, SYN, extensions=(hop_by_hop(16), routing(24), fragment())),
        108,
    ),
    "IPv6 ping": (V6, V6.packet(ping(6)), 48),
    "IPv6 error": (V6, V6.packet(too_big(6, 1400, REPLY6)), 96),
}
PIECES = pytest.mark.parametrize(("net", "packet", "needed"), WHOLE.values(), ids=WHOLE)
SERVED = (Verdict.FORWARDED, Verdict.ECHO_ANSWERED, Verdict.ICMP_FORWARDED)
TAGS = {"untagged": (), "tagged": (DOT1Q,), "QinQ": (QINQ, DOT1Q)}


@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
@PIECES
def test_cut_at_every_byte_it_is_never_forwarded(
    bed: Bed, net: Net, packet: bytes, needed: int, tags: tuple[tuple[int, int], ...]
) -> None:
    bed.load(one(net, echo=True))
    frame = eth(packet, tags=tags)
    header = len(frame) - len(packet) + (20 if net.version == 4 else 40)
    for size in range(14, len(frame)):
        expected = Verdict.TRUNCATED if size < header else Verdict.BAD_IP_LENGTH
        assert bed.send(frame[:size]).verdict == expected, f"cut to {size} bytes"
    assert bed.send(frame).verdict in SERVED


@PIECES
def test_cut_at_every_byte_with_a_length_that_says_so(
    bed: Bed, net: Net, packet: bytes, needed: int
) -> None:
    bed.load(one(net, echo=True))
    fixed, length_at = (20, 2) if net.version == 4 else (40, 4)
    for size in range(fixed, len(packet) + 1):
        short = bytearray(packet[:size])
        struct.pack_into("!H", short, length_at, size if net.version == 4 else size - 40)
        verdict = bed.send(eth(bytes(short))).verdict
        assert (verdict in SERVED) == (size >= needed), f"{verdict!r} with {size} bytes"
        assert verdict in SERVED or verdict.name.startswith("BAD_"), verdict


@both
def test_tags_cut_short(bed: Bed, net: Net) -> None:
    bed.load(one(net))
    frame = eth(net.packet(SYN), tags=(QINQ, DOT1Q))
    for size in (14, 15, 17, 18, 21):
        bed.expect(frame[:size], Verdict.TRUNCATED)


# ---- unusual but right ----


def unusual4(segment: Callable[[int], Segment], **fields: object) -> Callable[..., bytes]:
    return lambda to, dport, ttl: ipv4(V4.client, to, segment(dport), ttl=ttl, **fields)  # type: ignore[arg-type]


def unusual6(*extensions: Extension, **fields: object) -> Callable[..., bytes]:
    return lambda to, dport, ttl: ipv6(
        V6.client,
        to,
        tcp(41000, dport, "S"),
        hop_limit=ttl,
        extensions=extensions,
        **fields,  # type: ignore[arg-type]
    )


def syn(dport: int) -> Segment:
    return tcp(41000, dport, "S")


UNUSUAL = {
    "options": (V4, unusual4(syn, options=NOPS * 10)),
    "type of service": (V4, unusual4(syn, tos=0xB9, df=False, ident=0)),
    "TCP options": (V4, unusual4(lambda to: tcp(41000, to, "S", b"fast open", options=NOPS * 10))),
    "odd payload": (V4, unusual4(lambda to: tcp(41000, to, "PA", b"abc"))),
    "UDP": (V4, unusual4(lambda to: udp(41000, to, b"abc"))),
    "traffic class and label": (V6, unusual6(traffic_class=0xB8, flow_label=0xABCDE)),
    "hop-by-hop": (V6, unusual6(hop_by_hop())),
    "six extensions": (
        V6,
        unusual6(
            hop_by_hop(16),
            destination_options(24),
            routing(),
            fragment(),
            destination_options(),
            routing(16),
        ),
    ),
    "one long extension": (V6, unusual6(hop_by_hop(256))),
    "fragment header of a whole packet": (V6, unusual6(fragment())),
}


@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
@pytest.mark.parametrize("padding", [b"", b"padding"], ids=["exact", "padded"])
@pytest.mark.parametrize(("net", "packet"), UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_packets_are_translated_and_otherwise_kept(
    bed: Bed,
    net: Net,
    packet: Callable[..., bytes],
    tags: tuple[tuple[int, int], ...],
    padding: bytes,
) -> None:
    bed.load(one(net, frontends=((net.vip, 80, "tcp"), (net.vip, 80, "udp"))))
    bed.expect(
        eth(packet(net.vip, 80, 64), tags=tags) + padding,
        Verdict.FORWARDED,
        to_backend(packet(net.backends[0], 8080, 63), tags=tags) + padding,
    )


@both
def test_udp_shorter_than_its_segment_is_forwarded(bed: Bed, net: Net) -> None:
    bed.load(one(net, Forward.DSR))
    packet = net.packet(udp(5000, 53, b"more than it says", length=10))
    bed.expect(eth(packet), Verdict.FORWARDED, to_backend(packet))


@pytest.mark.parametrize("forward", [Forward.NAT, Forward.DSR, Forward.IPIP], ids=lambda f: f.name)
def test_a_wrong_header_checksum_stays_wrong(bed: Bed, forward: Forward) -> None:
    """It is updated, never computed: the receiver is the one who drops it."""
    bed.load(one(V4, forward))
    right = bed.expect(eth(ipv4(V4.client, V4.vip, tcp(41000, 80))), Verdict.FORWARDED).frame
    (sum_,) = struct.unpack_from("!H", ipv4(V4.client, V4.vip, tcp(41000, 80)), 10)
    wrong = eth(ipv4(V4.client, V4.vip, tcp(41000, 80), checksum=sum_ - 0x100))
    out = bed.expect(wrong, Verdict.FORWARDED).frame
    at = 24 if forward != Forward.IPIP else 44
    (before,), (after,) = struct.unpack_from("!H", right, at), struct.unpack_from("!H", out, at)
    assert (before - after) % 0xFFFF == 0x100


# ---- not ours ----

FOREIGN = {
    "ARP": eth(bytes(28), ethertype=0x0806),
    "LLC": eth(bytes(46), ethertype=46),
    "MPLS": eth(bytes(46), ethertype=0x8847),
    "three tags": eth(V4.packet(SYN), tags=(QINQ, DOT1Q, DOT1Q)),
    "other tag": eth(V4.packet(SYN), tags=((0x9100, 5),)),
    "GRE": V4.frame(raw(47, bytes(20))),
    "ESP": V6.frame(raw(50, bytes(20))),
    "SCTP": V4.frame(raw(132, bytes(20))),
    "no next header": V6.frame(raw(59, b"")),
    "IPIP to a service": V4.frame(raw(4, V4.packet(SYN))),
    "ICMPv6 over IPv4": V4.frame(raw(ICMPV6, ping(6).data)),
    "ICMP over IPv6": V6.frame(raw(ICMP, ping(4).data)),
    "ICMP timestamp": V4.frame(icmp(13)),
    "ICMP reply": V4.frame(icmp(0, 0, b"ping")),
    "ICMP redirect": V4.frame(icmp(5, 0, REPLY4)),
    "neighbour solicitation": V6.frame(icmp(135, 0, bytes(16), version=6)),
    "router advertisement": V6.frame(icmp(134, 0, bytes(16), version=6)),
    "ping fragment": eth(cut(V4.packet(ping(4, bytes(64))), 0, 32)),
    "later ping fragment": eth(cut(V6.packet(ping(6, bytes(64))), 32, 32)),
    "error quoting a ping": V4.frame(too_big(4, 1400, ip(V4.vip, V4.client, ping(4)))),
    "TCP port without a frontend": V4.frame(tcp(41000, 81, "S")),
    "IPv6 TCP port without a frontend": V6.frame(tcp(41000, 81, "S")),
    "UDP to a TCP port": V4.frame(udp(41000, 80)),
    "TCP to a UDP port": V6.frame(tcp(41000, 53)),
    "another address": V4.frame(SYN, dst=V4.foreign),
    "another IPv6 address": V6.frame(SYN, dst=V6.foreign),
    "broadcast": V4.frame(QUERY, dst="255.255.255.255"),
    "multicast": V6.frame(QUERY, dst="ff02::1"),
}


@pytest.mark.parametrize("frame", FOREIGN.values(), ids=FOREIGN)
def test_what_is_for_no_frontend_passes_untouched(bed: Bed, frame: bytes) -> None:
    both_families = World(
        (
            service(V4, name="four", echo=True),
            service(V6, pool(V6, name="six"), name="six", echo=True),
        )
    )
    bed.load(both_families)
    bed.expect(frame, Verdict.NOT_OURS)


def test_without_any_service_everything_passes(bed: Bed) -> None:
    bed.load(World())
    for frame in (V4.frame(SYN), V6.frame(QUERY), eth(WHOLE["IPv6 extensions"][1])):
        bed.expect(frame, Verdict.NOT_OURS)


@both
def test_frames_longer_than_a_page_are_forwarded_whole(bed: Bed, net: Net) -> None:
    """What lies behind the linear part is neither read nor lost."""
    payload = bytes(range(256)) * 24
    bed.load(one(net, pools=(pool(net, backends=(backend(net, 1, mtu=9000),)),)))
    bed.expect(
        net.frame(tcp(41000, 80, "A", payload)),
        Verdict.FORWARDED,
        to_backend(ip(net.client, net.backends[0], tcp(41000, 8080, "A", payload), ttl=63)),
    )
