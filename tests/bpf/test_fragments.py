"""Fragments belong to the address's any-port service; everybody else's pass. §1, §2."""

from collections.abc import Callable

import pytest

from bpf.abi import Forward, ServiceFlag, Verdict
from tests.support.bed import BACKENDS, Bed
from tests.support.frames import (
    TCP,
    UDP,
    Segment,
    cut,
    destination_options,
    eth,
    fragment,
    hop_by_hop,
    ip,
    ipv4,
    ipv6,
    raw,
    tcp,
    udp,
)
from tests.support.scenes import (
    V4,
    V6,
    Net,
    both,
    from_backend,
    one,
    pool,
    to_backend,
    to_client,
)
from tests.support.world import flow_key

NAT, DSR = Forward.NAT, Forward.DSR
BODIES: dict[str, Callable[[int, int], Segment]] = {
    "TCP": lambda a, b: tcp(a, b, "PA", bytes(range(180))),
    "UDP": lambda a, b: udp(a, b, bytes(range(192))),
}
PIECES = pytest.mark.parametrize(
    ("start", "size"), [(0, 104), (104, 48), (152, 200)], ids=["first", "middle", "last"]
)
EVERY = pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)


def any_port(net: Net) -> tuple[tuple[str, int | None, str], ...]:
    return ((net.vip, None, "tcp"), (net.vip, None, "udp"))


@PIECES
@EVERY
@both
def test_the_any_port_service_gets_every_piece(
    bed: Bed, net: Net, body: Callable[[int, int], Segment], start: int, size: int
) -> None:
    """Translated as the whole packet would be: the pieces together are it."""
    bed.load(one(net, frontends=any_port(net)))
    whole = net.packet(body(41000, 1234))
    after = ip(net.client, net.backends[0], body(41000, 1234), ttl=63)
    bed.expect(eth(cut(whole, start, size)), Verdict.FORWARDED, to_backend(cut(after, start, size)))


@PIECES
@EVERY
@both
def test_pieces_of_a_reply_find_the_client(
    bed: Bed, net: Net, body: Callable[[int, int], Segment], start: int, size: int
) -> None:
    bed.load(one(net, frontends=any_port(net), flags=ServiceFlag.DIRECT))  # nothing is derived
    bed.expect(eth(cut(net.packet(body(41000, 1234)), 104, 48)), Verdict.FORWARDED)
    before = ip(net.backends[0], net.client, body(1234, 41000))
    after = ip(net.vip, net.client, body(1234, 41000), ttl=63)
    bed.expect(
        from_backend(cut(before, start, size)),
        Verdict.RETURNED,
        to_client(cut(after, start, size)),
        at=BACKENDS,
    )


@PIECES
@EVERY
@both
def test_fullnat_takes_none(
    bed: Bed, net: Net, body: Callable[[int, int], Segment], start: int, size: int
) -> None:
    """A later piece could not carry the source port."""
    bed.load(one(net, Forward.FULLNAT, frontends=any_port(net)))
    bed.expect(eth(cut(net.packet(body(41000, 1234)), start, size)), Verdict.FRAGMENT)
    assert bed.remembered(net.version) == (0, 0, 0)


@PIECES
@both
def test_fullnat_takes_none_even_for_a_flow_between_ports_0(
    bed: Bed, net: Net, start: int, size: int
) -> None:
    """Its pieces carry ports that nobody reads: they could be another client's."""
    bed.load(one(net, Forward.FULLNAT, frontends=any_port(net)))
    bed.expect(net.frame(udp(0, 0)), Verdict.FORWARDED)
    body = BODIES["UDP"](40000, 1234)
    bed.expect(eth(cut(net.packet(body), start, size)), Verdict.FRAGMENT)


@EVERY
@both
def test_all_pieces_go_to_one_backend_and_are_one_flow(
    bed: Bed, net: Net, body: Callable[[int, int], Segment]
) -> None:
    bed.load(one(net, count=4, frontends=any_port(net)))
    protocol = body(1, 1).protocol
    chosen = set()
    for sport in range(41000, 41005):
        for start, size in ((0, 104), (104, 48), (152, 200)):
            piece = cut(net.packet(body(sport, 1234)), start, size)
            chosen.add(bed.expect(eth(piece), Verdict.FORWARDED).backend)
    assert len(chosen) == 1
    assert list(bed.flows(net.version)) == [flow_key(net.client, 0, net.vip, 0, protocol)]
    assert len(bed.returns(net.version)) == 1
    assert bed.counted("www").flows == 1


@PIECES
@EVERY
@both
def test_without_an_any_port_service_pieces_are_dropped(
    bed: Bed, net: Net, body: Callable[[int, int], Segment], start: int, size: int
) -> None:
    bed.load(one(net, frontends=((net.vip, 1234, "tcp"), (net.vip, 1234, "udp"))))
    piece = cut(net.packet(body(41000, 1234)), start, size)
    bed.expect(eth(piece), Verdict.FRAGMENT)


@PIECES
@EVERY
@both
def test_pieces_of_a_protocol_without_frontends_pass(
    bed: Bed, net: Net, body: Callable[[int, int], Segment], start: int, size: int
) -> None:
    other = "udp" if body(1, 1).protocol == TCP else "tcp"
    bed.load(one(net, frontends=((net.vip, 1234, other), (net.vip, None, other))))
    bed.expect(eth(cut(net.packet(body(41000, 1234)), start, size)), Verdict.NOT_OURS)


@PIECES
@EVERY
@both
def test_pieces_for_anyone_else_pass(
    bed: Bed, net: Net, body: Callable[[int, int], Segment], start: int, size: int
) -> None:
    bed.load(one(net, frontends=any_port(net)))
    packet = ip(net.client, net.foreign, body(41000, 1234))
    bed.expect(eth(cut(packet, start, size)), Verdict.NOT_OURS)


@both
def test_an_exact_port_beside_any_port_gets_no_pieces(bed: Bed, net: Net) -> None:
    """Nobody can tell the port of a later piece, so all go where the later ones go."""
    made = pool(net, 2, slots=("b2",) * 61)
    bed.load(one(net, DSR, pools=(made,), frontends=((net.vip, 53, "udp"), *any_port(net))))
    for start, size in ((0, 104), (104, 104)):
        piece = cut(net.packet(udp(41000, 53, bytes(192))), start, size)
        bed.expect(eth(piece), Verdict.FORWARDED, to_backend(piece, 2))
    flows = bed.flows(net.version)
    assert [flow.frontend for flow in flows.values()] == [bed.world.id("www/2")]


# ---- malformed pieces ----


def first(net: Net, data: bytes, protocol: int) -> bytes:
    """A first fragment that holds exactly `data`."""
    if net.version == 4:
        return eth(ipv4(net.client, net.vip, raw(protocol, data), df=False, mf=True))
    piece = ipv6(net.client, net.vip, raw(protocol, data), extensions=(fragment(0, more=True),))
    return eth(piece)


def later(net: Net, data: bytes, protocol: int) -> bytes:
    if net.version == 4:
        return eth(ipv4(net.client, net.vip, raw(protocol, data), df=False, fragment_offset=8))
    return eth(ipv6(net.client, net.vip, raw(protocol, data), extensions=(fragment(8),)))


@pytest.mark.parametrize(
    ("data", "protocol", "verdict"),
    [
        (b"", TCP, Verdict.BAD_TCP),
        (tcp(41000, 80).data[:19], TCP, Verdict.BAD_TCP),
        (tcp(41000, 80, offset=4).data, TCP, Verdict.BAD_TCP),
        (tcp(41000, 80, offset=15).data, TCP, Verdict.FORWARDED),  # its options come later
        (tcp(41000, 80).data, TCP, Verdict.FORWARDED),
        (b"", UDP, Verdict.BAD_UDP),
        (udp(41000, 53).data[:7], UDP, Verdict.BAD_UDP),
        (udp(41000, 53, b"", length=7).data, UDP, Verdict.BAD_UDP),
        (udp(41000, 53, b"", length=65535).data, UDP, Verdict.FORWARDED),
    ],
)
@both
def test_what_a_first_piece_must_hold(
    bed: Bed, net: Net, data: bytes, protocol: int, verdict: Verdict
) -> None:
    bed.load(one(net, DSR, frontends=any_port(net)))
    bed.expect(first(net, data, protocol), verdict)


@pytest.mark.parametrize("data", [b"", b"x", bytes(7), bytes(64)], ids=len)
@pytest.mark.parametrize("protocol", [TCP, UDP])
@both
def test_of_a_later_piece_nothing_is_read(bed: Bed, net: Net, data: bytes, protocol: int) -> None:
    bed.load(one(net, frontends=any_port(net)))
    bed.expect(later(net, data, protocol), Verdict.FORWARDED)


def test_headers_behind_a_later_fragment_header_are_not_followed(bed: Bed) -> None:
    """Its protocol is what the fragment header says next, be it an extension header's."""
    bed.load(one(V6, frontends=any_port(V6)))
    packet = ipv6(
        V6.client, V6.vip, udp(41000, 53), extensions=(fragment(8), destination_options())
    )
    bed.expect(eth(packet), Verdict.NOT_OURS)


def test_headers_around_a_first_fragment_header_are(bed: Bed) -> None:
    bed.load(one(V6, DSR, frontends=any_port(V6)))
    packet = ipv6(
        V6.client,
        V6.vip,
        udp(41000, 53),
        extensions=(hop_by_hop(), fragment(0, more=True), destination_options()),
    )
    bed.expect(eth(packet), Verdict.FORWARDED, to_backend(packet))


def test_a_dont_fragment_flag_makes_no_fragment(bed: Bed) -> None:
    bed.load(one(V4))
    for df in (True, False):
        bed.expect(eth(ipv4(V4.client, V4.vip, tcp(41000, 80), df=df)), Verdict.FORWARDED)
    reserved = bytearray(ipv4(V4.client, V4.vip, tcp(41000, 80), df=False))
    reserved[6] |= 0x80
    bed.expect(eth(bytes(reserved)), Verdict.FORWARDED)
