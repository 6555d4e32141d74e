"""dsr, and what is checked in every mode before anything is remembered or sent. §3, §11."""

from dataclasses import replace
from typing import Any

import pytest

from bpf.abi import Balance, Forward, SettingFlag, Verdict
from tests.support.bed import CLIENTS, Action, Bed, reconfigured
from tests.support.frames import Segment, cut, eth, hop_by_hop, ipv4, ipv6, tcp, udp
from tests.support.scenes import NETS, V4, V6, Net, backend, both, one, pool, to_backend
from tests.support.world import World

DSR, NAT, FULLNAT, IPIP, GUE = (
    Forward.DSR, Forward.NAT, Forward.FULLNAT, Forward.IPIP, Forward.GUE,
)  # fmt: skip
MODES = pytest.mark.parametrize("forward", Forward, ids=lambda f: f.name)


@pytest.mark.parametrize(
    "segment",
    [
        tcp(41000, 80, "S"),
        tcp(41000, 80, "PA", b"x" * 1000),
        udp(5000, 53),
        udp(5000, 53, checksum=0),
        udp(5000, 53, checksum=0x1234),
    ],
    ids=["SYN", "data", "UDP", "no checksum", "wrong checksum"],
)
@pytest.mark.parametrize("tags", [(), ((0x88A8, 1), (0x8100, 2))], ids=["untagged", "QinQ"])
@both
def test_nothing_but_the_macs_changes(
    bed: Bed, net: Net, segment: Segment, tags: tuple[tuple[int, int], ...]
) -> None:
    bed.load(one(net, DSR))
    packet = net.packet(segment, tos=7)
    bed.expect(eth(packet, tags=tags), Verdict.FORWARDED, to_backend(packet, tags=tags))


@pytest.mark.parametrize("ttl", [0, 1, 2, 255])
@both
def test_dsr_does_not_route_so_the_ttl_stays(bed: Bed, net: Net, ttl: int) -> None:
    bed.load(one(net, DSR))
    packet = net.packet(tcp(41000, 80), ttl=ttl)
    bed.expect(eth(packet), Verdict.FORWARDED, to_backend(packet))


def test_options_and_extensions_stay(bed: Bed) -> None:
    four = ipv4(V4.client, V4.vip, tcp(41000, 80), options=b"\1" * 40)
    six = ipv6(V6.client, V6.vip, tcp(41000, 80), extensions=(hop_by_hop(64),))
    for net, packet in ((V4, four), (V6, six)):
        bed.load(one(net, DSR))
        bed.expect(eth(packet), Verdict.FORWARDED, to_backend(packet))


@pytest.mark.parametrize(
    ("interface", "flags", "action"),
    [
        (None, 0, Action.REDIRECT),
        (CLIENTS, 0, Action.TX),
        (CLIENTS, SettingFlag.REDIRECT_ALWAYS, Action.REDIRECT),
    ],
)
@MODES
@both
def test_the_interface_decides_how_it_is_sent(
    bed: Bed, net: Net, forward: Forward, interface: int | None, flags: int, action: Action
) -> None:
    backends = (backend(net, 1, ifindex=interface),)
    world = one(net, forward, pools=(pool(net, backends=backends),))
    bed.load(reconfigured(world, flags=flags))
    bed.expect(net.frame(tcp(41000, 80)), Verdict.FORWARDED, action=action)


@both
def test_dsr_to_a_backend_whose_address_is_of_the_other_family(bed: Bed, net: Net) -> None:
    """Only the MAC matters: dsr needs nothing of the backend's address."""
    other = NETS[10 - net.version]
    bed.load(one(net, DSR, pools=(pool(net, backends=(backend(other, 1),)),)))
    packet = net.packet(tcp(41000, 80))
    bed.expect(eth(packet), Verdict.FORWARDED, to_backend(packet))


# ---- before anything is remembered ----


def broken(net: Net, forward: Forward, **fields: Any) -> World:
    """One backend b1 with these fields, balanced so that every mode would remember a SYN."""
    pools = (pool(net, backends=(backend(net, 1, **fields),)),)
    return one(net, forward, pools=pools, balance=Balance.ROUND_ROBIN)


def refused(bed: Bed, net: Net, verdict: Verdict, **packet: Any) -> None:
    for segment in (tcp(41000, 80, "S"), tcp(41000, 80), udp(5000, 53)):
        bed.expect(net.frame(segment, **packet), verdict)
    assert bed.remembered(net.version) == (0, 0, 0)
    assert bed.counted("www").flows == bed.live("web/b1") == 0


@MODES
@both
def test_without_a_next_hop_it_is_dropped(bed: Bed, net: Net, forward: Forward) -> None:
    bed.load(broken(net, forward, ifindex=0))
    refused(bed, net, Verdict.NO_NEXT_HOP)


@pytest.mark.parametrize("ttl", [0, 1])
@pytest.mark.parametrize("forward", [NAT, FULLNAT, IPIP, GUE], ids=lambda f: f.name)
@both
def test_a_packet_at_the_end_of_its_life_is_dropped(
    bed: Bed, net: Net, forward: Forward, ttl: int
) -> None:
    bed.load(broken(net, forward))
    refused(bed, net, Verdict.TTL_EXPIRED, ttl=ttl)


@pytest.mark.parametrize("forward", [NAT, FULLNAT, IPIP, GUE], ids=lambda f: f.name)
@both
def test_a_packet_with_one_hop_left_is_sent(bed: Bed, net: Net, forward: Forward) -> None:
    bed.load(broken(net, forward))
    out = bed.expect(net.frame(tcp(41000, 80, "S"), ttl=2), Verdict.FORWARDED).frame
    inner = {NAT: 0, FULLNAT: 0, IPIP: 1, GUE: 1}[forward]
    overhead = (
        (28 if forward == GUE else 20) if net.version == 4 else (48 if forward == GUE else 40)
    )
    at = 14 + inner * overhead + (8 if net.version == 4 else 7)
    assert out[at] == 1


@pytest.mark.parametrize("forward", [NAT, FULLNAT], ids=lambda f: f.name)
@both
def test_translation_between_families_is_misconfigured(
    bed: Bed, net: Net, forward: Forward
) -> None:
    bed.load(broken(NETS[10 - net.version], forward))
    world = one(net, forward, pools=bed.world.pools, balance=Balance.ROUND_ROBIN)
    bed.load(world)
    refused(bed, net, Verdict.MISCONFIGURED)


@pytest.mark.parametrize("outer", [4, 6], ids=["IPv4 outside", "IPv6 outside"])
@pytest.mark.parametrize("forward", [IPIP, GUE], ids=lambda f: f.name)
@both
def test_a_tunnel_without_a_source_address_is_misconfigured(
    bed: Bed, net: Net, forward: Forward, outer: int
) -> None:
    world = broken(NETS[outer], forward)
    service = replace(world.services[0], frontends=((net.vip, 80, "tcp"), (net.vip, 53, "udp")))
    bed.load(reconfigured(World((service,)), **{f"tunnel_source{outer}": ""}))
    refused(bed, net, Verdict.MISCONFIGURED)


@both
def test_a_mode_that_does_not_exist_is_misconfigured(bed: Bed, net: Net) -> None:
    world = bed.load(one(net, DSR))
    entry = bed.maps.services.get(world.index("www"))
    for mode in (0, 6, 255):
        entry.forward = mode
        bed.maps.services.put(world.index("www"), entry)
        outcome = bed.send(net.frame(udp(5000, 53)))
        assert outcome.action == Action.DROP, outcome.verdict


@pytest.mark.parametrize(
    ("fields", "ttl", "verdict"),
    [
        ({"ifindex": 0, "mtu": 30}, 1, Verdict.NO_NEXT_HOP),
        ({"mtu": 30}, 1, Verdict.TTL_EXPIRED),
        ({"mtu": 30}, 2, Verdict.TOO_BIG),
    ],
)
@both
def test_the_first_reason_is_the_verdict(
    bed: Bed, net: Net, fields: dict[str, int], ttl: int, verdict: Verdict
) -> None:
    bed.load(broken(net, NAT, **fields))
    bed.expect(net.frame(tcp(41000, 80), ttl=ttl), verdict)


@both
def test_fragments_keep_their_bytes(bed: Bed, net: Net) -> None:
    bed.load(one(net, DSR, frontends=((net.vip, None, "udp"),)))
    whole = net.packet(udp(5000, 53, bytes(200)))
    for piece in (cut(whole, 0, 104), cut(whole, 104, 104)):
        bed.expect(eth(piece), Verdict.FORWARDED, to_backend(piece))
