"""The reference model's parts against values worked out by hand from docs/packet-path.md and the RFCs.

A model that shared a mistake with the program would agree with it: these do not come from either.
"""

from ipaddress import ip_address

import pytest

from bpf.abi import Verdict
from tests.support import frames
from tests.support.checksums import problems
from tests.support.model import hashing, parse, rewrite
from tests.support.model.parse import Packet, Piece, Stop, Tuple

CLIENT, VIP = "198.51.100.7", "192.0.2.10"
CLIENT6, VIP6 = "2001:db8:c::7", "2001:db8:5::10"


def about(source: str, sport: int, destination: str, dport: int, protocol: int) -> Tuple:
    ends = (ip_address(source).packed, ip_address(destination).packed)
    return Tuple(*ends, sport, dport, protocol)


HTTPS = about(CLIENT, 41000, VIP, 443, parse.TCP)


@pytest.mark.parametrize(
    ("packet", "fields", "expected"),
    [
        (HTTPS, hashing.FIVE_TUPLE, 0x774E546E74FE93F8),
        (HTTPS, hashing.SOURCE, 0x9FD11AED0602562E),
        (HTTPS, hashing.SOURCE_PORT, 0xD7DB4E322F420DDA),
        (about(CLIENT6, 41000, VIP6, 443, parse.UDP), hashing.FIVE_TUPLE, 0x4DEF443DB5E8BC86),
    ],
)
def test_a_tuple_hashes_to_the_number_worked_out_by_hand(
    packet: Tuple, fields: int, expected: int
) -> None:
    assert hashing.tuple_hash(packet, fields) == expected


def test_a_sticky_hash_ignores_the_port_and_protocol() -> None:
    other = about(CLIENT, 5, VIP, 80, parse.UDP)
    assert hashing.tuple_hash(HTTPS, hashing.SOURCE) == hashing.tuple_hash(other, hashing.SOURCE)


def test_prefilter_buckets() -> None:
    assert hashing.bucket(ip_address(VIP).packed) == 34557
    assert hashing.bucket(ip_address(VIP6).packed) == 38267


def test_the_slot_is_the_upper_half_of_the_hash_scaled() -> None:
    assert hashing.slot(0, 61) == 0
    assert hashing.slot(0xFFFFFFFF_00000000, 61) == 60
    assert hashing.slot(0x80000000_00000000, 61) == 30
    assert [hashing.slot_hash(slot) for slot in (0, 1, 2)] == [0x00, 0x9E, 0x3C]


# ---- checksums: the example of RFC 1624, section 4 ----


def test_the_worked_example_of_rfc_1624() -> None:
    """HC = 0xDD2F, m = 0x5555, m' = 0x3285: equation 3 gives 0x0000, equation 2 would not."""
    assert rewrite.updated(0xDD2F, b"\x55\x55", b"\x32\x85") == 0


def test_a_change_to_the_same_keeps_a_checksum() -> None:
    assert rewrite.updated(0x1234, b"\xab\xcd", b"\xab\xcd") == 0x1234


# ---- parsing ----


def parsed(frame: bytes) -> Packet:
    return parse.packet(frame, parse.head(frame))


def verdict(frame: bytes) -> Verdict:
    with pytest.raises(Stop) as stop:
        parsed(frame)
    return stop.value.verdict


SYN = frames.tcp(41000, 443, "S", b"data")


def test_an_ipv4_packet_with_options_two_tags_and_padding() -> None:
    packet = frames.ipv4(CLIENT, VIP, SYN, options=b"\x01" * 8)
    frame = frames.eth(packet, tags=((0x88A8, 7), (0x8100, 5))) + b"pad"
    found = parsed(frame)
    assert (found.l3, found.l4, found.end) == (22, 22 + 28, 22 + 28 + 24)
    assert found.tuple == HTTPS
    assert (found.syn, found.plain) == (True, False)


def test_a_third_tag_is_not_ours() -> None:
    frame = frames.eth(frames.ipv4(CLIENT, VIP, SYN), tags=((0x8100, 5),) * 3)
    assert verdict(frame) == Verdict.NOT_OURS


@pytest.mark.parametrize("size", [14, 33, 17])
def test_a_frame_that_ends_before_its_addresses_is_truncated(size: int) -> None:
    frame = frames.eth(frames.ipv4(CLIENT, VIP, SYN))
    assert verdict(frame[:size]) == Verdict.TRUNCATED


def test_six_extension_headers_are_followed_and_a_seventh_is_not() -> None:
    six = tuple(frames.destination_options() for _ in range(6))
    assert parsed(frames.eth(frames.ipv6(CLIENT6, VIP6, SYN, extensions=six))).l4 == 14 + 40 + 48
    seven = (*six, frames.routing())
    frame = frames.eth(frames.ipv6(CLIENT6, VIP6, SYN, extensions=seven))
    assert verdict(frame) == Verdict.BAD_IP_HEADER


def test_an_atomic_fragment_is_no_fragment() -> None:
    frame = frames.eth(frames.ipv6(CLIENT6, VIP6, SYN, extensions=(frames.fragment(),)))
    assert parsed(frame).piece is Piece.WHOLE


@pytest.mark.parametrize(("source", "target"), [(CLIENT, VIP), (CLIENT6, VIP6)])
def test_fragments_have_no_ports(source: str, target: str) -> None:
    whole = frames.ip(source, target, frames.udp(41000, 53, bytes(100)))
    first, later = (parsed(frames.eth(frames.cut(whole, at, 64))) for at in (0, 64))
    assert (first.piece, later.piece) == (Piece.FIRST, Piece.LATER)
    assert (
        (first.tuple.sport, first.tuple.dport) == (later.tuple.sport, later.tuple.dport) == (0, 0)
    )


@pytest.mark.parametrize(
    ("segment", "expected"),
    [
        (frames.tcp(1, 2, offset=4), Verdict.BAD_TCP),
        (frames.tcp(1, 2, offset=6), Verdict.BAD_TCP),
        (frames.raw(parse.TCP, bytes(19)), Verdict.BAD_TCP),
        (frames.udp(1, 2, b"", length=7), Verdict.BAD_UDP),
        (frames.udp(1, 2, b"", length=9), Verdict.BAD_UDP),
        (frames.raw(parse.UDP, bytes(7)), Verdict.BAD_UDP),
        (frames.raw(parse.ICMP, bytes(7)), Verdict.BAD_ICMP),
        (frames.raw(47, bytes(7)), Verdict.NOT_OURS),
    ],
)
def test_l4_headers_that_lie(segment: frames.Segment, expected: Verdict) -> None:
    assert verdict(frames.eth(frames.ipv4(CLIENT, VIP, segment))) == expected


def test_a_quote_is_found_with_its_ports() -> None:
    quoted = frames.ipv4(VIP, CLIENT, frames.tcp(443, 41000))[:28]
    frame = frames.eth(frames.ipv4("203.0.113.1", VIP, frames.unreachable(4, quoted)))
    quote = parsed(frame).quote
    assert quote is not None
    assert quote.tuple.back() == HTTPS
    assert verdict(frames.eth(frames.ipv4(CLIENT, VIP, frames.unreachable(4, quoted[:27])))) == (
        Verdict.BAD_ICMP
    )


# ---- what is written ----


@pytest.mark.parametrize(("source", "target"), [(CLIENT, VIP), (CLIENT6, VIP6)])
@pytest.mark.parametrize("payload", [b"", b"a", b"\xff\xff", bytes(range(256))])
def test_an_echo_reply_has_right_checksums(source: str, target: str, payload: bytes) -> None:
    version = 6 if ":" in source else 4
    frame = frames.eth(frames.ip(source, target, frames.ping(version, payload), ttl=9))
    expected = frames.eth(
        frames.ip(target, source, frames.pong(version, payload)),
        src=frames.BALANCER_MAC,
        dst=frames.CLIENT_MAC,
    )
    assert rewrite.echo_reply(parsed(frame)) == expected


@pytest.mark.parametrize(("source", "target", "size"), [(CLIENT, VIP, 556), (CLIENT6, VIP6, 1280)])
def test_too_big_quotes_as_much_as_a_minimal_packet_holds(
    source: str, target: str, size: int
) -> None:
    frame = frames.eth(frames.ip(source, target, frames.tcp(1, 2, "A", bytes(1400))))
    answer = rewrite.too_big(parsed(frame), 1234)
    assert len(answer) == 14 + size
    assert problems(answer) == []
    assert frames.describe(answer)["icmp.rest"] == 1234


def test_gue_over_ipv6_sums_the_same_trusted_or_not() -> None:
    """RFC 768 and 1071: a right segment and its pseudo-header cancel out."""
    for source, target in ((CLIENT, VIP), (CLIENT6, VIP6)):
        packet = parsed(frames.eth(frames.ip(source, target, frames.udp(1, 2, b"odd"))))
        inner = packet.frame[packet.l3 : packet.end]
        assert rewrite.trusts_l4(packet)
        assert rewrite.checksum(rewrite._trusted(inner, packet)) == rewrite.checksum(inner)
