"""The frame builder against scapy: what our tests call a right frame is right."""

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether

from tests.support.checksums import problems
from tests.support.frames import (
    cut,
    describe,
    difference,
    eth,
    fragment,
    hop_by_hop,
    ip,
    ipv4,
    ipv6,
    ping,
    tcp,
    too_big,
    udp,
    unreachable,
)

LAYERS = (IP, IPv6, TCP, UDP, ICMP, ICMPv6EchoRequest)
V4, V6 = ("198.51.100.7", "192.0.2.10"), ("2001:db8:c::7", "2001:db8::10")
RIGHT = {
    "tcp4": eth(ip(*V4, tcp(41000, 443, "S"))),
    "tcp6": eth(ip(*V6, tcp(41000, 443, "PA", b"abc"))),
    "udp4": eth(ip(*V4, udp(5000, 53, b"odd"))),
    "udp6": eth(ip(*V6, udp(5000, 53))),
    "udp4 without checksum": eth(ip(*V4, udp(5000, 53, checksum=0))),
    "options": eth(ipv4(*V4, tcp(1, 2, options=b"\1" * 4), options=b"\1" * 8)),
    "extensions": eth(ipv6(*V6, udp(1, 2), extensions=(hop_by_hop(16), fragment()))),
    "tagged": eth(ip(*V4, tcp(1, 2)), tags=((0x88A8, 5), (0x8100, 7))),
    "ping4": eth(ip(*V4, ping(4))),
    "ping6": eth(ip(*V6, ping(6))),
    "error4": eth(ip(*V4, too_big(4, 1400, ip(*V4[::-1], tcp(1, 2)))) ),
    "error6": eth(ip(*V6, unreachable(6, ip(*V6[::-1], udp(1, 2))))),
    "first fragment": eth(cut(ip(*V4, udp(1, 2, bytes(64))), 0, 24)),
    "later fragment": eth(cut(ip(*V6, udp(1, 2, bytes(64))), 24, 48)),
}  # fmt: skip


WHOLE = {
    name: frame
    for name, frame in RIGHT.items()
    if "fragment" not in name and "without" not in name and "error" not in name
}


@pytest.mark.parametrize("frame", WHOLE.values(), ids=WHOLE)
def test_scapy_builds_the_same_frame(frame: bytes) -> None:
    again = Ether(frame)
    for layer in (layer for layer in LAYERS if layer in again):
        for name in {"chksum", "cksum", "len", "plen"} & {f.name for f in layer.fields_desc}:
            delattr(again[layer], name)
    assert difference(bytes(again), frame) == ""


@pytest.mark.parametrize("frame", RIGHT.values(), ids=RIGHT)
def test_a_right_frame_has_no_problems(frame: bytes) -> None:
    assert problems(frame) == []


@pytest.mark.parametrize("at", [24, 36, 50])
def test_a_wrong_checksum_is_found(at: int) -> None:
    frame = bytearray(RIGHT["tcp4"])
    frame[at] ^= 0x40
    assert problems(bytes(frame))


def test_differences_are_told_field_by_field() -> None:
    one, other = RIGHT["tcp4"], eth(ip(*V4, tcp(41000, 444, "S")))
    assert "tcp: got '41000 > 443', want '41000 > 444'" in difference(one, other)
    assert difference(one, one) == ""


def test_a_frame_that_lies_is_described_all_the_same() -> None:
    assert "undecodable" in describe(RIGHT["tcp4"][:30])
