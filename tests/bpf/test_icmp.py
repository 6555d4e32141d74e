"""ICMP errors about our flows, in both directions, and echo requests. §8, §9."""

from typing import Any

import pytest

from bpf.abi import Forward, HealthState, Verdict
from tests.support.bed import BACKENDS, ROUTER_MAC, Action, Bed
from tests.support.checksums import problems
from tests.support.frames import (
    BALANCER_MAC,
    CLIENT_MAC,
    TCP,
    Segment,
    cut,
    eth,
    hop_by_hop,
    icmp,
    ip,
    ipv4,
    ipv6,
    ping,
    pong,
    raw,
    tcp,
    too_big,
    udp,
    unreachable,
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
    to_backend,
    to_client,
)
from tests.support.world import World, tuple_hash

NAT, FULLNAT, DSR, IPIP, GUE = (
    Forward.NAT, Forward.FULLNAT, Forward.DSR, Forward.IPIP, Forward.GUE,
)  # fmt: skip
SEGMENTS = {
    "TCP": (lambda a, b: tcp(a, b, "A", b"data"), 80),
    "UDP": (lambda a, b: udp(a, b), 53),
    "UDP without checksum": (lambda a, b: udp(a, b, checksum=0), 53),
}
KINDS = {4: [(3, 0), (3, 3), (3, 4), (11, 0), (12, 0)], 6: [(1, 4), (2, 0), (3, 0), (4, 1)]}


def error(net: Net, quoted: bytes, kind: tuple[int, int] | None = None, rest: int = 0) -> Segment:
    if kind is None:
        return unreachable(net.version, quoted)
    return icmp(*kind, quoted, rest=rest, version=net.version)


def about(net: Net, segment: Segment, size: int | None = None) -> bytes:
    """An error from a router on the way to the client about what the service sent."""
    quoted = ip(net.vip, net.client, segment, ttl=5)[:size]
    return ip(net.far, net.vip, error(net, quoted))


def translated(net: Net, segment: Segment, size: int | None = None, number: int = 1) -> bytes:
    """The same as b1 gets it in mode nat."""
    where = net.backends[number - 1]
    return ip(net.far, where, error(net, ip(where, net.client, segment, ttl=5)[:size]), ttl=63)


# ---- towards a frontend ----


@pytest.mark.parametrize("version_kind", [(v, k) for v in (4, 6) for k in KINDS[v]], ids=str)
def test_every_kind_of_error_reaches_the_backend(
    bed: Bed, version_kind: tuple[int, tuple[int, int]]
) -> None:
    net, kind = NETS[version_kind[0]], version_kind[1]
    bed.load(one(net))
    before = ip(net.vip, net.client, tcp(80, 41000))
    after = ip(net.backends[0], net.client, tcp(8080, 41000))
    bed.expect(
        eth(ip(net.far, net.vip, error(net, before, kind, 1280))),
        Verdict.ICMP_FORWARDED,
        to_backend(ip(net.far, net.backends[0], error(net, after, kind, 1280), ttl=63)),
    )


@pytest.mark.parametrize("cut_to", [None, 8, 16, 18, 19, 20])
@pytest.mark.parametrize(("make", "port"), SEGMENTS.values(), ids=SEGMENTS)
@both
def test_nat_translates_what_is_quoted_however_much_that_is(
    bed: Bed, net: Net, make: Any, port: int, cut_to: int | None
) -> None:
    bed.load(one(net))
    size = cut_to and cut_to + (20 if net.version == 4 else 40)
    bed.expect(
        eth(about(net, make(port, 41000), size)),
        Verdict.ICMP_FORWARDED,
        to_backend(translated(net, make(8080, 41000), size)),
    )
    assert bed.remembered(net.version) == (0, 0, 0)


@both
def test_half_a_quoted_checksum_is_left_alone(bed: Bed, net: Net) -> None:
    bed.load(one(net))
    size = 17 + (20 if net.version == 4 else 40)
    before = ip(net.vip, net.client, tcp(80, 41000))[:size]
    after = ip(net.backends[0], net.client, tcp(8080, 41000))[: size - 1] + before[-1:]
    bed.expect(
        eth(ip(net.far, net.vip, error(net, before))),
        Verdict.ICMP_FORWARDED,
        to_backend(ip(net.far, net.backends[0], error(net, after), ttl=63)),
    )


@pytest.mark.parametrize(("make", "port"), SEGMENTS.values(), ids=SEGMENTS)
@both
def test_fullnat_translates_both_ends(bed: Bed, net: Net, make: Any, port: int) -> None:
    bed.load(one(net, FULLNAT))
    bed.expect(eth(about(net, make(port, 41000))), Verdict.NO_FLOW)
    bed.expect(net.frame(make(41000, port)), Verdict.FORWARDED)
    (key,) = bed.returns(net.version)
    quoted = ip(net.backends[0], net.nat_source, make(8080, key.dport), ttl=5)
    bed.expect(
        eth(about(net, make(port, 41000))),
        Verdict.ICMP_FORWARDED,
        to_backend(ip(net.nat_source, net.backends[0], error(net, quoted), ttl=63)),
    )


@both
def test_dsr_changes_nothing_but_the_macs(bed: Bed, net: Net) -> None:
    bed.load(one(net, DSR))
    packet = about(net, tcp(80, 41000))
    bed.expect(eth(packet), Verdict.ICMP_FORWARDED, to_backend(packet))


@pytest.mark.parametrize("forward", [IPIP, GUE], ids=lambda f: f.name)
@pytest.mark.parametrize("outer", [V4, V6], ids=["in IPv4", "in IPv6"])
@both
def test_tunnels_carry_the_error(bed: Bed, net: Net, outer: Net, forward: Forward) -> None:
    """gue's source port is that of the flow, so that the error takes its path."""
    bed.load(World((service(net, pool(outer), forward=forward),)))
    before = about(net, tcp(80, 41000))
    quoted = ip(net.vip, net.client, tcp(80, 41000), ttl=5)
    inner = ip(net.far, net.vip, error(net, quoted), ttl=63)
    hashed = tuple_hash(net.client, 41000, net.vip, 80, TCP)
    carried = raw(4 if net.version == 4 else 41, inner)
    if forward == GUE:
        checksum = 0 if outer.version == 4 else None
        carried = udp(0xC000 | hashed & 0x3FFF, 6080, inner, checksum=checksum)
    if outer.version == 4:
        packet = ipv4(outer.tunnel_source, outer.backends[0], carried, ident=0)
    else:
        packet = ipv6(outer.tunnel_source, outer.backends[0], carried)
    bed.expect(eth(before), Verdict.ICMP_FORWARDED, to_backend(packet))


@pytest.mark.parametrize("flags", ["S", "A"], ids=["half-open", "known"])
@pytest.mark.parametrize("forward", [NAT, FULLNAT], ids=lambda f: f.name)
@both
def test_the_error_follows_its_flow(bed: Bed, net: Net, forward: Forward, flags: str) -> None:
    bed.load(one(net, forward, pools=(pool(net, 2, slots=("b1",) * 61),)))
    bed.expect(net.frame(tcp(41000, 80, flags)), Verdict.FORWARDED)
    bed.configure(one(net, forward, pools=(pool(net, 2, slots=("b2",) * 61),)))
    before = bed.flows(net.version), bed.returns(net.version), bed.opening(net.version)
    outcome = bed.expect(eth(about(net, tcp(80, 41000))), Verdict.ICMP_FORWARDED)
    assert outcome.backend == "b1"
    assert before == (bed.flows(net.version), bed.returns(net.version), bed.opening(net.version))


@both
def test_an_entry_that_no_longer_serves_is_not_deleted_by_an_error(bed: Bed, net: Net) -> None:
    bed.load(one(net, DSR, pools=(pool(net, 2, slots=("b1",) * 30 + ("b2",) * 31),)))
    bed.expect(net.frame(tcp(41000, 80)), Verdict.FORWARDED)
    flows = bed.flows(net.version)
    for name in ("web/b1", "web/b2"):
        bed.set_health(name, HealthState.DOWN)
    bed.expect(eth(about(net, tcp(80, 41000))), Verdict.ICMP_FORWARDED)
    assert bed.flows(net.version) == flows


NOT_OURS = {
    "another port": lambda net: ip(net.far, net.vip, error(net, quoting(net, tcp(81, 41000)))),
    "another protocol": lambda net: ip(net.far, net.vip, error(net, quoting(net, udp(80, 41000)))),
    "quoted source is not the destination": lambda net: ip(
        net.far, net.vip, error(net, ip(net.vip2, net.client, tcp(80, 41000)))
    ),
    "a ping": lambda net: ip(net.far, net.vip, error(net, quoting(net, ping(net.version)))),
    "a fragment, whose port nobody knows": lambda net: ip(
        net.far, net.vip, error(net, cut(quoting(net, tcp(80, 41000, "A", bytes(64))), 0, 48))
    ),
    "another address": lambda net: ip(
        net.far, net.foreign, error(net, ip(net.foreign, net.client, tcp(80, 41000)))
    ),
}


def quoting(net: Net, segment: Segment) -> bytes:
    return ip(net.vip, net.client, segment)


@pytest.mark.parametrize("packet", NOT_OURS.values(), ids=NOT_OURS)
@both
def test_errors_about_anything_else_pass(bed: Bed, net: Net, packet: Any) -> None:
    bed.load(one(net))
    bed.expect(eth(packet(net)), Verdict.NOT_OURS)


@pytest.mark.parametrize(
    ("fields", "ttl", "verdict"),
    [
        ({"ifindex": 0}, 64, Verdict.NO_NEXT_HOP),
        ({}, 1, Verdict.TTL_EXPIRED),
        ({"mtu": 60}, 64, Verdict.TOO_BIG),
        ({"flags": 2}, 64, Verdict.NO_BACKEND),
    ],
)
@both
def test_why_an_error_is_not_sent(
    bed: Bed, net: Net, fields: dict[str, int], ttl: int, verdict: Verdict
) -> None:
    bed.load(one(net, pools=(pool(net, backends=(backend(net, 1, **fields),)),)))
    quoted = ip(net.vip, net.client, tcp(80, 41000, "A", bytes(30)))
    bed.expect(eth(ip(net.far, net.vip, error(net, quoted), ttl=ttl)), verdict)


def test_quoted_options_and_extensions(bed: Bed) -> None:
    def quoted(net: Net, src: str, port: int) -> bytes:
        if net.version == 4:
            return ipv4(src, net.client, tcp(port, 41000), options=b"\1" * 24)
        return ipv6(src, net.client, tcp(port, 41000), extensions=(hop_by_hop(16),))

    for net in (V4, V6):
        bed.load(one(net))
        bed.expect(
            eth(ip(net.far, net.vip, error(net, quoted(net, net.vip, 80)))),
            Verdict.ICMP_FORWARDED,
            to_backend(
                ip(net.far, net.backends[0], error(net, quoted(net, net.backends[0], 8080)), ttl=63)
            ),
        )


@pytest.mark.parametrize(("start", "size"), [(0, 48), (48, 56)], ids=["first", "later"])
@both
def test_a_quoted_fragment_has_ports_0(bed: Bed, net: Net, start: int, size: int) -> None:
    bed.load(one(net, frontends=((net.vip, None, "udp"),)))
    before = cut(ip(net.vip, net.client, udp(53, 41000, bytes(96))), start, size)
    after = cut(ip(net.backends[0], net.client, udp(53, 41000, bytes(96))), start, size)
    bed.expect(
        eth(ip(net.far, net.vip, error(net, before))),
        Verdict.ICMP_FORWARDED,
        to_backend(ip(net.far, net.backends[0], error(net, after), ttl=63)),
    )


# ---- from a backend ----


@pytest.mark.parametrize("source", ["backend", "router"])
@pytest.mark.parametrize("flags", ["S", "A"], ids=["half-open", "known"])
@both
def test_a_backends_error_comes_back_translated(
    bed: Bed, net: Net, source: str, flags: str
) -> None:
    bed.load(one(net))
    bed.expect(net.frame(tcp(41000, 80, flags)), Verdict.FORWARDED)
    src = net.backends[0] if source == "backend" else net.backends[6]
    seen = net.vip if source == "backend" else src
    before = ip(net.client, net.backends[0], tcp(41000, 8080, flags), ttl=63)
    after = ip(net.client, net.vip, tcp(41000, 80, flags), ttl=63)
    bed.expect(
        from_backend(ip(src, net.client, too_big(net.version, 1280, before))),
        Verdict.ICMP_RETURNED,
        to_client(ip(seen, net.client, too_big(net.version, 1280, after), ttl=63)),
        at=BACKENDS,
    )


@pytest.mark.parametrize("source", ["backend", "router"])
@pytest.mark.parametrize("size", [None, 28])
@both
def test_fullnat_brings_it_to_the_client(bed: Bed, net: Net, source: str, size: int | None) -> None:
    bed.load(one(net, FULLNAT))
    bed.expect(net.frame(udp(41000, 53)), Verdict.FORWARDED)
    (key,) = bed.returns(net.version)
    src = net.backends[0] if source == "backend" else net.backends[6]
    seen = net.vip if source == "backend" else src
    size = size and size + (0 if net.version == 4 else 20)
    before = ip(net.nat_source, net.backends[0], udp(key.dport, 8080), ttl=63)[:size]
    after = ip(net.client, net.vip, udp(41000, 53), ttl=63)[:size]
    bed.expect(
        from_backend(ip(src, net.nat_source, error(net, before))),
        Verdict.ICMP_RETURNED,
        to_client(ip(seen, net.client, error(net, after), ttl=63)),
        at=BACKENDS,
    )


@pytest.mark.parametrize(
    ("client", "ttl", "size", "verdict"),
    [
        ("far", 64, 0, Verdict.ICMP_RETURNED),
        ("silent", 64, 0, Verdict.RETURN_PASSED),
        ("client", 1, 0, Verdict.TTL_EXPIRED),
        ("narrow", 64, 1390, Verdict.TOO_BIG),
    ],
)
@both
def test_the_way_of_an_error_to_the_client(
    bed: Bed, net: Net, client: str, ttl: int, size: int, verdict: Verdict
) -> None:
    where = getattr(net, client)
    bed.load(one(net))
    bed.expect(net.frame(udp(41000, 53), src=where), Verdict.FORWARDED)
    quoted = ip(where, net.backends[0], udp(41000, 8080, bytes(size)), ttl=63)
    frame = from_backend(ip(net.backends[0], where, error(net, quoted), ttl=ttl))
    outcome = bed.expect(frame, verdict, at=BACKENDS)
    if client == "far":
        assert outcome.frame[:6].hex(":") == ROUTER_MAC


@both
def test_an_error_teaches_nothing(bed: Bed, net: Net) -> None:
    """Neither that the flow lives, nor a next hop."""
    bed.load(one(net))
    bed.expect(net.frame(udp(41000, 53)), Verdict.FORWARDED)
    bed.age(5)
    before = bed.flows(net.version), bed.returns(net.version)
    quoted = ip(net.client, net.backends[0], udp(41000, 8080), ttl=63)
    frame = from_backend(ip(net.backends[0], net.client, error(net, quoted)))
    bed.expect(frame, Verdict.ICMP_RETURNED, at=BACKENDS)
    assert before == (bed.flows(net.version), bed.returns(net.version))


@both
def test_a_backends_error_about_no_flow_passes(bed: Bed, net: Net) -> None:
    bed.load(one(net))
    quoted = ip(net.client, net.backends[0], tcp(41000, 8080), ttl=63)
    frame = from_backend(ip(net.backends[0], net.client, error(net, quoted)))
    bed.expect(frame, Verdict.NOT_OURS, at=BACKENDS)


# ---- echo ----


@pytest.mark.parametrize("payload", [b"", b"x", b"ping", bytes(range(200)), b"\xff" * 1400])
@pytest.mark.parametrize("tags", [(), ((0x8100, 3),)], ids=["untagged", "tagged"])
@both
def test_an_echo_request_is_answered_if_a_service_says_so(
    bed: Bed, net: Net, payload: bytes, tags: tuple[tuple[int, int], ...]
) -> None:
    bed.load(one(net, echo=True))
    request = net.packet(ping(net.version, payload), ttl=3, tos=5)
    reply = ip(net.vip, net.client, pong(net.version, payload), tos=5)
    want = eth(reply, src=BALANCER_MAC, dst=CLIENT_MAC, tags=tags)
    bed.expect(eth(request, tags=tags) + b"pad", Verdict.ECHO_ANSWERED, want + b"pad")
    bed.expect(eth(request, tags=tags), Verdict.ECHO_ANSWERED, want, action=Action.TX)


@both
def test_other_echoes_are_the_nodes(bed: Bed, net: Net) -> None:
    bed.load(one(net, echo=True))
    kind = 8 if net.version == 4 else 128
    bed.expect(net.frame(ping(net.version), dst=net.foreign), Verdict.NOT_OURS)
    bed.expect(net.frame(icmp(kind, 1, version=net.version)), Verdict.NOT_OURS)
    bed.expect(net.frame(pong(net.version)), Verdict.NOT_OURS)
    bed.load(one(net, echo=False))
    bed.expect(net.frame(ping(net.version)), Verdict.NOT_OURS)


@both
def test_a_wrong_echo_checksum_stays_wrong(bed: Bed, net: Net) -> None:
    bed.load(one(net, echo=True))
    kind = 8 if net.version == 4 else 128
    wrong = icmp(kind, 0, b"ping", version=net.version, checksum=0x1111)
    out = bed.expect(net.frame(wrong), Verdict.ECHO_ANSWERED).frame
    assert problems(out) == ["icmp.checksum"]
