"""ICMP errors and echo requests with unusual headers around and inside them. §8, §9."""

from collections.abc import Callable

import pytest

from bpf.abi import Forward, HealthState, Verdict
from tests.support.bed import BACKENDS, Bed
from tests.support.frames import (
    BALANCER_MAC,
    CLIENT_MAC,
    Segment,
    destination_options,
    eth,
    hop_by_hop,
    icmp,
    ip,
    ipv4,
    ipv6,
    ping,
    pong,
    tcp,
    udp,
    unreachable,
)
from tests.support.scenes import Net, backend, both, from_backend, one, pool, to_backend, to_client

Wrap = Callable[[str, str, Segment, int], bytes]
TAGS = ((0x88A8, 4), (0x8100, 5))


def plain(src: str, dst: str, segment: Segment, ttl: int = 64) -> bytes:
    return ip(src, dst, segment, ttl=ttl)


def loaded(src: str, dst: str, segment: Segment, ttl: int = 64) -> bytes:
    """With options, or extension headers, and a class."""
    if ":" not in dst:
        return ipv4(src, dst, segment, ttl=ttl, options=b"\1" * 16, tos=0x60, df=False)
    chain = (hop_by_hop(16), destination_options())
    return ipv6(src, dst, segment, hop_limit=ttl, extensions=chain, traffic_class=0x60)


BOTH_WRAPS = pytest.mark.parametrize("wrap", [plain, loaded])
SURROUNDINGS = pytest.mark.parametrize(
    ("tags", "padding"), [((), b""), (TAGS, b""), ((), b"\xee" * 7), (TAGS, b"\xee" * 3)]
)


@SURROUNDINGS
@BOTH_WRAPS
@both
def test_an_error_to_a_service(
    bed: Bed, net: Net, wrap: Wrap, tags: tuple[tuple[int, int], ...], padding: bytes
) -> None:
    bed.load(one(net))
    quoted = unreachable(net.version, plain(net.vip, net.client, udp(53, 41000, b"odd")))
    inside = unreachable(net.version, plain(net.backends[0], net.client, udp(8080, 41000, b"odd")))
    bed.expect(
        eth(wrap(net.far, net.vip, quoted, 9), tags=tags) + padding,
        Verdict.ICMP_FORWARDED,
        to_backend(wrap(net.far, net.backends[0], inside, 8), tags=tags) + padding,
    )


@SURROUNDINGS
@BOTH_WRAPS
@both
def test_an_error_from_a_backend(
    bed: Bed, net: Net, wrap: Wrap, tags: tuple[tuple[int, int], ...], padding: bytes
) -> None:
    bed.load(one(net))
    bed.expect(net.frame(udp(41000, 53)), Verdict.FORWARDED)
    quoted = unreachable(net.version, plain(net.client, net.backends[0], udp(41000, 8080), 63))
    outside = unreachable(net.version, plain(net.client, net.vip, udp(41000, 53), 63))
    bed.expect(
        from_backend(wrap(net.backends[0], net.client, quoted, 9), tags=tags) + padding,
        Verdict.ICMP_RETURNED,
        to_client(wrap(net.vip, net.client, outside, 8), tags=tags) + padding,
        at=BACKENDS,
    )


@SURROUNDINGS
@BOTH_WRAPS
@both
def test_an_echo_request(
    bed: Bed, net: Net, wrap: Wrap, tags: tuple[tuple[int, int], ...], padding: bytes
) -> None:
    bed.load(one(net, echo=True))
    bed.expect(
        eth(wrap(net.client, net.vip, ping(net.version), 5), tags=tags) + padding,
        Verdict.ECHO_ANSWERED,
        eth(
            wrap(net.vip, net.client, pong(net.version), 64),
            src=BALANCER_MAC,
            dst=CLIENT_MAC,
            tags=tags,
        )
        + padding,
    )


@pytest.mark.parametrize("flags", ["S", "A"], ids=["half-open", "known"])
@pytest.mark.parametrize("forward", [Forward.NAT, Forward.FULLNAT], ids=lambda f: f.name)
@both
def test_any_port_keeps_the_quoted_port(bed: Bed, net: Net, forward: Forward, flags: str) -> None:
    bed.load(one(net, forward, frontends=((net.vip, None, "tcp"),)))
    sent = bed.expect(net.frame(tcp(41000, 1234, flags)), Verdict.FORWARDED).frame
    at = 14 + (20 if net.version == 4 else 40)
    own = int.from_bytes(sent[at : at + 2], "big")
    seen_as = net.client if forward == Forward.NAT else net.nat_source
    before = plain(net.vip, net.client, tcp(1234, 41000))
    after = plain(net.backends[0], seen_as, tcp(1234, own))
    source = net.far if forward == Forward.NAT else net.nat_source
    bed.expect(
        eth(plain(net.far, net.vip, unreachable(net.version, before))),
        Verdict.ICMP_FORWARDED,
        to_backend(plain(source, net.backends[0], unreachable(net.version, after), 63)),
    )


@both
def test_lengths_inside_the_quote_are_not_checked(bed: Bed, net: Net) -> None:
    """Routers shorten what they quote, and some change the lengths in it."""

    def quote(src: str, port: int) -> bytes:
        segment = udp(port, 41000, b"x" * 40, length=9)
        if net.version == 4:
            return ipv4(src, net.client, segment, length=20)
        return ipv6(src, net.client, segment, length=9999)

    bed.load(one(net))
    bed.expect(
        eth(plain(net.far, net.vip, unreachable(net.version, quote(net.vip, 53)))),
        Verdict.ICMP_FORWARDED,
        to_backend(
            plain(
                net.far, net.backends[0], unreachable(net.version, quote(net.backends[0], 8080)), 63
            )
        ),
    )


@both
def test_an_error_about_a_flow_whose_backend_is_down_goes_by_the_table(bed: Bed, net: Net) -> None:
    bed.load(one(net, pools=(pool(net, 2, slots=("b1",) * 61),)))
    bed.expect(net.frame(tcp(41000, 80)), Verdict.FORWARDED)
    bed.configure(one(net, pools=(pool(net, 2, slots=("b2",) * 61),)))
    bed.set_health("web/b1", HealthState.DOWN)
    quoted = plain(net.vip, net.client, tcp(80, 41000))
    frame = eth(plain(net.far, net.vip, unreachable(net.version, quoted)))
    assert bed.expect(frame, Verdict.ICMP_FORWARDED).backend == "b2"


@pytest.mark.parametrize(
    "which", range(4), ids=["blackhole", "unreachable", "prohibit", "no route"]
)
@both
def test_a_backends_error_to_where_no_route_leads(bed: Bed, net: Net, which: int) -> None:
    where = net.nowhere[which]
    bed.load(one(net))
    bed.expect(net.frame(udp(41000, 53), src=where), Verdict.FORWARDED)
    quoted = plain(where, net.backends[0], udp(41000, 8080), 63)
    frame = from_backend(plain(net.backends[0], where, unreachable(net.version, quoted)))
    bed.expect(frame, Verdict.NO_ROUTE, at=BACKENDS)


@both
def test_an_error_of_every_code_keeps_its_code_and_rest(bed: Bed, net: Net) -> None:
    bed.load(one(net, pools=(pool(net, backends=(backend(net, 1, port=0),)),)))
    kind = 3 if net.version == 4 else 1
    for code in (0, 1, 6, 15, 255):
        quoted = plain(net.vip, net.client, tcp(80, 41000))
        inside = plain(net.backends[0], net.client, tcp(80, 41000))
        before, after = (
            icmp(kind, code, quote, rest=0xDEADBEEF, version=net.version)
            for quote in (quoted, inside)
        )
        bed.expect(
            eth(plain(net.far, net.vip, before)),
            Verdict.ICMP_FORWARDED,
            to_backend(plain(net.far, net.backends[0], after, 63)),
        )
