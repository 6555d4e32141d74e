"""Packets that do not fit: who is told, how large it may be, and how often. §10."""

from typing import Any

import pytest

from bpf.abi import Forward, Verdict
from tests.support.bed import BACKENDS, ROUTER_MAC, Action, Bed, reconfigured
from tests.support.frames import (
    BALANCER_MAC,
    CLIENT_MAC,
    cut,
    eth,
    hop_by_hop,
    icmp,
    ipv4,
    ipv6,
    tcp,
    too_big,
    udp,
)
from tests.support.scenes import (
    NETS,
    V4,
    V6,
    Net,
    backend,
    both,
    from_backend,
    one,
    pool,
    service,
)
from tests.support.world import World

QUOTED = {4: 528, 6: 1232}
FIXED = {4: 20, 6: 40}


def sized(net: Net, size: int, **fields: Any) -> bytes:
    """A TCP packet of so many bytes, from its IP header on."""
    payload = bytes(i * 5 & 0xFF for i in range(size - FIXED[net.version] - 20))
    return net.packet(tcp(41000, 80, "A", payload), **fields)


def told(net: Net, mtu: int, packet: bytes) -> bytes:
    """The ICMP error that the sender of `packet` gets, from whom it was sent to."""
    error = too_big(net.version, mtu, packet[: QUOTED[net.version]])
    if net.version == 4:
        return ipv4(net.vip, net.client, error, ident=0, df=True)
    return ipv6(net.vip, net.client, error)


def narrow(net: Net, forward: Forward, mtu: int, outer: Net | None = None, **fields: Any) -> World:
    made = pool(outer or net, backends=(backend(outer or net, 1, mtu=mtu),))
    return World((service(net, made, forward=forward, **fields),))


OVERHEADS = [
    (Forward.NAT, None, 0),
    (Forward.FULLNAT, None, 0),
    (Forward.DSR, None, 0),
    (Forward.IPIP, 4, 20),
    (Forward.IPIP, 6, 40),
    (Forward.GUE, 4, 28),
    (Forward.GUE, 6, 48),
]


@pytest.mark.parametrize(
    ("forward", "outer", "overhead"), OVERHEADS, ids=lambda v: getattr(v, "name", str(v))
)
@both
def test_the_sender_is_told_what_would_have_fitted(
    bed: Bed, net: Net, forward: Forward, outer: int | None, overhead: int
) -> None:
    bed.load(narrow(net, forward, 1400, NETS[outer] if outer else None))
    packet = sized(net, 1400 - overhead + 1)
    want = eth(told(net, 1400 - overhead, packet), src=BALANCER_MAC, dst=CLIENT_MAC)
    bed.expect(eth(packet), Verdict.TOO_BIG_ANSWERED, want, action=Action.TX)
    bed.expect(eth(sized(net, 1400 - overhead)), Verdict.FORWARDED)


@pytest.mark.parametrize("tags", [((0x8100, 5),), ((0x88A8, 5), (0x8100, 6))], ids=["tag", "QinQ"])
@both
def test_tags_are_kept(bed: Bed, net: Net, tags: tuple[tuple[int, int], ...]) -> None:
    bed.load(narrow(net, Forward.DSR, 1300))
    packet = sized(net, 1400)
    want = eth(told(net, 1300, packet), src=BALANCER_MAC, dst=CLIENT_MAC, tags=tags)
    bed.expect(eth(packet, tags=tags), Verdict.TOO_BIG_ANSWERED, want)


@both
def test_padding_does_not_count(bed: Bed, net: Net) -> None:
    bed.load(narrow(net, Forward.DSR, 1300))
    bed.expect(eth(sized(net, 1300)) + bytes(50), Verdict.FORWARDED)
    packet = sized(net, 1301)
    want = eth(told(net, 1300, packet), src=BALANCER_MAC, dst=CLIENT_MAC)
    outcome = bed.expect(eth(packet) + bytes(50), Verdict.TOO_BIG_ANSWERED)
    assert outcome.frame == want


def test_options_and_extensions_are_quoted_not_repeated(bed: Bed) -> None:
    four = ipv4(V4.client, V4.vip, tcp(41000, 80, "A", bytes(1400)), options=b"\1" * 40, tos=9)
    six = ipv6(
        V6.client, V6.vip, tcp(41000, 80, "A", bytes(1400)), extensions=(hop_by_hop(32),),
        traffic_class=9, flow_label=77,
    )  # fmt: skip
    for net, packet in ((V4, four), (V6, six)):
        bed.load(narrow(net, Forward.DSR, 1300))
        want = eth(told(net, 1300, packet), src=BALANCER_MAC, dst=CLIENT_MAC)
        bed.expect(eth(packet), Verdict.TOO_BIG_ANSWERED, want)


def test_frames_beyond_a_page_are_answered_or_dropped_but_not_forwarded(bed: Bed) -> None:
    for net in (V4, V6):
        bed.load(narrow(net, Forward.DSR, 1500))
        packet = sized(net, 8000)
        outcome = bed.send(eth(packet))
        assert outcome.verdict in (Verdict.TOO_BIG_ANSWERED, Verdict.TOO_BIG)
        if outcome.verdict == Verdict.TOO_BIG_ANSWERED:
            want = eth(told(net, 1500, packet), src=BALANCER_MAC, dst=CLIENT_MAC)
            assert outcome.frame == want


# ---- who cannot be told ----


def test_without_df_it_is_dropped(bed: Bed) -> None:
    bed.load(narrow(V4, Forward.NAT, 1300))
    packet = ipv4(V4.client, V4.vip, tcp(41000, 80, "A", bytes(1400)), df=False)
    bed.expect(eth(packet), Verdict.TOO_BIG)


@pytest.mark.parametrize("offset", [0, 1], ids=["one byte short", "just enough"])
@both
def test_a_packet_too_short_to_quote_is_dropped(bed: Bed, net: Net, offset: int) -> None:
    size = QUOTED[net.version] - 1 + offset
    bed.load(narrow(net, Forward.DSR, 500))
    outcome = bed.send(eth(sized(net, size)))
    assert outcome.verdict == (Verdict.TOO_BIG_ANSWERED if offset else Verdict.TOO_BIG)


@both
def test_padding_does_not_make_it_long_enough(bed: Bed, net: Net) -> None:
    bed.load(narrow(net, Forward.DSR, 500))
    bed.expect(eth(sized(net, QUOTED[net.version] - 1)) + bytes(64), Verdict.TOO_BIG)


@both
def test_no_error_about_an_error(bed: Bed, net: Net) -> None:
    bed.load(narrow(net, Forward.DSR, 600))
    quoted = sized(net, 1200)
    back = net.packet(tcp(80, 41000), src=net.vip, dst=net.client)
    error = icmp(3, 3, back + quoted) if net.version == 4 else icmp(1, 4, back + quoted, version=6)
    bed.expect(net.frame(error), Verdict.TOO_BIG)


@both
def test_nothing_is_remembered_of_it(bed: Bed, net: Net) -> None:
    bed.load(narrow(net, Forward.NAT, 1300))
    bed.expect(eth(sized(net, 1400)), Verdict.TOO_BIG_ANSWERED)
    assert bed.remembered(net.version) == (0, 0, 0)
    assert bed.counted("www").packets == bed.counted("www").flows == 0


@both
def test_a_fragment_that_does_not_fit(bed: Bed, net: Net) -> None:
    """IPv4 fragments carry no DF: a drop. IPv6: the sender is told."""
    bed.load(narrow(net, Forward.DSR, 1300, frontends=((net.vip, None, "udp"),)))
    piece = cut(net.packet(udp(5000, 53, bytes(4000))), 0, 1400)
    verdict = Verdict.TOO_BIG if net.version == 4 else Verdict.TOO_BIG_ANSWERED
    bed.expect(eth(piece), verdict)


# ---- at most so many ----


@both
def test_errors_are_limited_to_so_many_a_tick(bed: Bed, net: Net) -> None:
    def attempt() -> list[Verdict]:
        bed.load(reconfigured(narrow(net, Forward.DSR, 1300), icmp_rate=3))
        return [bed.send(eth(sized(net, 1400))).verdict for _ in range(5)]

    answered, limited = Verdict.TOO_BIG_ANSWERED, Verdict.TOO_BIG_LIMITED
    assert bed.within_one_tick(attempt) == [answered] * 3 + [limited] * 2


@both
def test_rate_0_is_no_limit(bed: Bed, net: Net) -> None:
    bed.load(reconfigured(narrow(net, Forward.DSR, 1300), icmp_rate=0))
    for _ in range(20):
        bed.expect(eth(sized(net, 1400)), Verdict.TOO_BIG_ANSWERED)


# ---- replies ----


@both
def test_a_reply_that_does_not_fit_the_way_to_the_client(bed: Bed, net: Net) -> None:
    """The route has MTU 1400: the backend is told so, from the client's address."""
    bed.load(one(net))
    bed.expect(net.frame(tcp(41000, 80), src=net.narrow), Verdict.FORWARDED)

    def reply(size: int) -> bytes:
        payload = bytes(size - FIXED[net.version] - 20)
        return net.packet(tcp(8080, 41000, "A", payload), src=net.backends[0], dst=net.narrow)

    error = too_big(net.version, 1400, reply(1401)[: QUOTED[net.version]])
    if net.version == 4:
        packet = ipv4(net.narrow, net.backends[0], error, ident=0)
    else:
        packet = ipv6(net.narrow, net.backends[0], error)
    want = eth(packet, src="02:00:00:00:0b:00", dst="02:00:00:00:0b:01")
    bed.expect(from_backend(reply(1401)), Verdict.TOO_BIG_ANSWERED, want, at=BACKENDS)
    out = bed.expect(from_backend(reply(1400)), Verdict.RETURNED, at=BACKENDS).frame
    assert out[:6].hex(":") == ROUTER_MAC
