"""What a decoded packet says of itself, by examples."""

import pytest

from reconciler.packet.decode import DEEPEST, decode
from reconciler.packet.text import lines
from tests.support import frames

V4, V6 = ("198.51.100.7", "192.0.2.10"), ("2001:db8::7", "2001:db8::10")


def note(frame: bytes, layer: str, field: str = "checksum") -> str:
    return next(one for one in decode(frame).layers if one.name == layer).note(field)


def test_udp_without_a_checksum_is_right_over_ipv4_and_a_tunnels_privilege_over_ipv6() -> None:
    bare = frames.udp(1, 2, checksum=0)
    assert note(frames.eth(frames.ip(*V4, bare)), "udp") == "none"
    assert note(frames.eth(frames.ip(*V6, bare)), "udp").startswith("none: over IPv6 only tunnels")


def test_udp_whose_checksum_comes_out_as_zero_should_say_ffff() -> None:
    """The first two bytes of the payload are what the checksum would be: it becomes zero."""
    empty = frames.eth(frames.ip(*V4, frames.udp(1, 2, bytes(2))))
    payload = empty[40:42]
    assert note(frames.eth(frames.ip(*V4, frames.udp(1, 2, payload))), "udp") == "exact"
    other = frames.udp(1, 2, payload, checksum=1)
    assert note(frames.eth(frames.ip(*V4, other)), "udp") == "wrong, should be 0xffff"


def test_a_fragment_has_no_checksum_to_check_and_no_ports() -> None:
    whole = frames.ip(*V4, frames.tcp(1, 2, "A", bytes(100)))
    first, later = (frames.eth(frames.cut(whole, *piece)) for piece in ((0, 24), (24, 1 << 14)))
    assert note(first, "tcp") == "not checked: a fragment"
    assert [one.name for one in decode(later).layers] == ["ethernet", "ipv4", "payload"]
    for frame in (first, later):
        ends = decode(frame).tuple
        assert ends is not None
        assert (ends.sport, ends.dport, ends.protocol) == (0, 0, 6)


def test_the_tuple_of_an_error_and_of_what_it_quotes_are_two() -> None:
    quoted = frames.ip(*V4, frames.tcp(41000, 80, "A"))
    found = decode(frames.eth(frames.ip("10.0.0.1", V4[0], frames.too_big(4, 1400, quoted))))
    assert str(found.tuple) == "10.0.0.1 -> 198.51.100.7/icmp"
    assert str(found.quoted) == "198.51.100.7:41000 -> 192.0.2.10:80/tcp"


def test_eight_quoted_bytes_of_tcp_are_enough_for_the_ports() -> None:
    quoted = frames.ip(*V4, frames.tcp(41000, 80, "A"))[:28]
    found = decode(frames.eth(frames.ip("10.0.0.1", V4[0], frames.unreachable(4, quoted))))
    assert str(found.quoted) == "198.51.100.7:41000 -> 192.0.2.10:80/tcp"
    assert found.cut


@pytest.mark.parametrize(
    ("packet", "said"),
    [
        (frames.ipv4(*V4, frames.tcp(1, 2), version=5), "IP version 5 where 4 is said"),
        (frames.ipv4(*V4, frames.tcp(1, 2), ihl=4), "a header of 16 bytes: 20 is the least"),
        (frames.ipv4(*V4, frames.tcp(1, 2), length=19), "below the header's 20"),
        (frames.ipv4(*V4, frames.tcp(1, 2), length=900), "of 900 bytes, the frame has 40 left"),
        (frames.ip(*V4, frames.tcp(1, 2, offset=4)), "a TCP header of 16 bytes: 20 is the least"),
        (frames.ip(*V4, frames.tcp(1, 2, offset=15)), "of 60 bytes, the segment has 20"),
        (frames.ip(*V4, frames.udp(1, 2, length=7)), "a UDP datagram of 7 bytes: 8 is the least"),
        (frames.ip(*V4, frames.udp(1, 2, length=99)), "of 99 bytes, the segment has 13"),
        (frames.ip(*V4, frames.tcp(1, 2, options=b"\x02\x09\x05\xb4")), "option 2 of 9 bytes, 4 are left"),
        (frames.ip(*V4, frames.raw(1, bytes(7))), "the ICMP header needs 8 bytes, there are 7"),
        (frames.ip(*V6, frames.raw(0, b"\x06\x05" + bytes(6))), "the hop-by-hop header needs 48"),
        (frames.ip(*V6, frames.raw(60, b"\x3b\0\x01\x09" + bytes(4))), "option 1 of 9 bytes, 4 are left"),
        (frames.ip(*V6, frames.raw(51, b"\x3b\0" + bytes(10))), "header of 8 bytes: 12 is the least"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_with_its_place(packet: bytes, said: str) -> None:
    found = decode(frames.eth(packet))
    assert said in found.problem
    assert " at byte " in found.problem
    assert not found.cut


def test_layers_end_somewhere() -> None:
    packet = frames.ip(*V4, frames.udp(1, 2))
    for _ in range(100):
        packet = frames.ip(*V4, frames.raw(4, packet))
    assert decode(frames.eth(packet)).problem == f"more than {DEEPEST} layers"


def test_a_tunnel_is_decoded_to_its_end() -> None:
    inner = frames.ip(*V6, frames.tcp(1, 2, "S"))
    for outer in (frames.raw(41, inner), frames.udp(50000, 6080, inner)):
        names = [one.name for one in decode(frames.eth(frames.ip(*V4, outer))).layers]
        assert names[-2:] == ["ipv6", "tcp"]
    headed = b"\x01\x29\0\0" + bytes(4) + inner  # variant 0, a word of fields, IPv6
    found = decode(frames.eth(frames.ip(*V4, frames.udp(50000, 6080, headed))))
    assert [one.name for one in found.layers][2:] == ["udp", "gue", "ipv6", "tcp"]


def test_people_read_a_line_a_layer() -> None:
    packet = frames.ip(*V4, frames.tcp(1, 2, "S", options=b"\x02\x04\x05\xb4"))
    said = list(lines(decode(frames.eth(packet, tags=((0x8100, 7),)))))
    assert [line.split()[0] for line in said] == ["ethernet", "vlan", "ipv4", "tcp"]
    assert "type 0x8100 (802.1Q)" in said[0]
    assert "flags 0x0002 (syn)" in said[3]
    assert "options <mss 1460>" in said[3]
    assert "(exact)" in said[3]
