"""nat: both directions, the way back to the client, collisions of replies, replies without an entry. §5, §7."""

from array import array
from typing import Any

import pytest

from bpf import abi, kernel
from bpf.abi import FlowState, Forward, ServiceFlag, SettingFlag, Verdict
from tests.support.bed import BACKENDS, CLIENTS, ROUTER_MAC, Action, Bed, reconfigured
from tests.support.frames import TCP, UDP, Segment, eth, ip, ipv4, ipv6, tcp, udp
from tests.support.scenes import (
    Net,
    backend,
    both,
    from_backend,
    one,
    pool,
    port_to_slot,
    service,
    to_backend,
    to_client,
)
from tests.support.world import Pool, World, flow_key

NAT = Forward.NAT


def reply(net: Net, segment: Segment, *, dst: str = "", ttl: int = 64) -> bytes:
    """From b1 to the client."""
    return from_backend(ip(net.backends[0], dst or net.client, segment, ttl=ttl))


def answer(net: Net, segment: Segment, *, dst: str = "", ttl: int = 63) -> bytes:
    """The same as the client sees it."""
    return to_client(ip(net.vip, dst or net.client, segment, ttl=ttl))


# ---- both directions ----

SEGMENTS = {
    "TCP": lambda a, b: tcp(a, b, "A"),
    "TCP with data": lambda a, b: tcp(a, b, "PA", b"odd", options=b"\1\1\1\1"),
    "UDP": lambda a, b: udp(a, b, b"payload"),
    "empty UDP": lambda a, b: udp(a, b, b""),
}


@pytest.mark.parametrize("segment", SEGMENTS.values(), ids=SEGMENTS)
@pytest.mark.parametrize(
    ("port", "backend_port"), [(80, 8080), (80, 0), (80, 80), (None, 8080), (None, 0), (65535, 1)]
)
@both
def test_there_and_back(
    bed: Bed, net: Net, segment: Any, port: int | None, backend_port: int
) -> None:
    frontends = ((net.vip, port, "tcp"), (net.vip, port, "udp"))
    backends = (backend(net, 1, port=backend_port),)
    bed.load(one(net, pools=(pool(net, backends=backends),), frontends=frontends))
    dport = port or 1234
    inside = backend_port if port and backend_port else dport
    bed.expect(
        net.frame(segment(41000, dport)),
        Verdict.FORWARDED,
        to_backend(ip(net.client, net.backends[0], segment(41000, inside), ttl=63)),
    )
    bed.expect(
        reply(net, segment(inside, 41000)),
        Verdict.RETURNED,
        answer(net, segment(dport, 41000)),
        at=BACKENDS,
    )


@both
def test_a_udp_checksum_of_0_stays_0_both_ways(bed: Bed, net: Net) -> None:
    """Over IPv6 too: tunnels may do without one (RFC 6935), and only they do."""
    bed.load(one(net))
    bed.expect(
        net.frame(udp(41000, 53, checksum=0)),
        Verdict.FORWARDED,
        to_backend(ip(net.client, net.backends[0], udp(41000, 8080, checksum=0), ttl=63)),
    )
    bed.expect(
        reply(net, udp(8080, 41000, checksum=0)),
        Verdict.RETURNED,
        answer(net, udp(53, 41000, checksum=0)),
        at=BACKENDS,
    )


@both
def test_a_udp_checksum_that_comes_out_as_0_is_written_as_ffff(bed: Bed, net: Net) -> None:
    """Payloads so chosen that the translated, or the client's own, sum is zero."""
    bed.load(one(net))
    for source, target, ttl in ((net.vip, 53, 64), (net.backends[0], 8080, 63)):
        probe = ip(net.client, source, udp(41000, target, b"\0\0"), ttl=ttl)
        spare = int.from_bytes(probe[-4:-2], "big")
        payload = spare.to_bytes(2, "big")
        whole = ip(net.client, source, udp(41000, target, payload), ttl=ttl)
        assert whole[-4:-2] == b"\xff\xff"
        bed.expect(
            net.frame(udp(41000, 53, payload)),
            Verdict.FORWARDED,
            to_backend(ip(net.client, net.backends[0], udp(41000, 8080, payload), ttl=63)),
        )


@both
def test_the_return_entry_names_the_client_and_the_backend(bed: Bed, net: Net) -> None:
    world = bed.load(one(net))
    bed.expect(net.frame(udp(41000, 53)), Verdict.FORWARDED)
    (entry,) = bed.returns(net.version).items()
    assert entry[0] == flow_key(net.backends[0], 8080, net.client, 41000, UDP)
    assert entry[1].client == flow_key(net.client, 41000, net.vip, 53, UDP)
    assert entry[1].flow.backend == world.id("web/b1")
    assert entry[1].flow.frontend == world.id("www/1")


@both
def test_options_and_tags_survive_the_way_back(bed: Bed, net: Net) -> None:
    bed.load(one(net))
    bed.expect(net.frame(tcp(41000, 80)), Verdict.FORWARDED)
    segments = tcp(8080, 41000), tcp(80, 41000)
    if net.version == 4:
        inside = ipv4(net.backends[0], net.client, segments[0], options=b"\1" * 12, tos=3)
        outside = ipv4(net.vip, net.client, segments[1], options=b"\1" * 12, tos=3, ttl=63)
    else:
        inside = ipv6(net.backends[0], net.client, segments[0], traffic_class=3, flow_label=9)
        outside = ipv6(
            net.vip, net.client, segments[1], traffic_class=3, flow_label=9, hop_limit=63
        )
    tags = ((0x8100, 12),)
    bed.expect(
        from_backend(inside, tags=tags) + b"pad",
        Verdict.RETURNED,
        to_client(outside, tags=tags) + b"pad",
        at=BACKENDS,
    )


@pytest.mark.parametrize(
    ("flags", "action"), [(0, Action.TX), (SettingFlag.REDIRECT_ALWAYS, Action.REDIRECT)]
)
@both
def test_out_of_the_interface_it_came_in_by(bed: Bed, net: Net, flags: int, action: Action) -> None:
    world = one(net, pools=(pool(net, backends=(backend(net, 1, ifindex=CLIENTS),)),))
    bed.load(reconfigured(world, flags=flags))
    bed.expect(net.frame(tcp(41000, 80)), Verdict.FORWARDED, action=action)
    bed.expect(
        eth(ip(net.backends[0], net.client, tcp(8080, 41000))),
        Verdict.RETURNED,
        answer(net, tcp(80, 41000)),
        at=CLIENTS,
        action=action,
    )


# ---- the way to the client ----


def flow_of(bed: Bed, net: Net, src: str) -> None:
    bed.load(one(net))
    bed.expect(net.frame(udp(41000, 53), src=src), Verdict.FORWARDED)


@both
def test_a_far_client_is_reached_by_its_router(bed: Bed, net: Net) -> None:
    flow_of(bed, net, net.far)
    bed.expect(
        reply(net, udp(8080, 41000), dst=net.far),
        Verdict.RETURNED,
        to_client(ip(net.vip, net.far, udp(53, 41000), ttl=63), dst=ROUTER_MAC),
        at=BACKENDS,
    )


@both
def test_without_a_neighbour_the_kernel_takes_the_translated_packet(bed: Bed, net: Net) -> None:
    flow_of(bed, net, net.silent)
    outcome = bed.expect(
        reply(net, udp(8080, 41000), dst=net.silent), Verdict.RETURN_PASSED, at=BACKENDS
    )
    assert outcome.frame == from_backend(ip(net.vip, net.silent, udp(53, 41000), ttl=64))


@pytest.mark.parametrize(
    "which", range(4), ids=["blackhole", "unreachable", "prohibit", "no route"]
)
@both
def test_without_a_route_it_is_dropped(bed: Bed, net: Net, which: int) -> None:
    flow_of(bed, net, net.nowhere[which])
    bed.expect(reply(net, udp(8080, 41000), dst=net.nowhere[which]), Verdict.NO_ROUTE, at=BACKENDS)


@pytest.mark.parametrize("ttl", [0, 1])
@both
def test_a_reply_at_the_end_of_its_life_is_dropped(bed: Bed, net: Net, ttl: int) -> None:
    flow_of(bed, net, net.client)
    bed.expect(reply(net, udp(8080, 41000), ttl=ttl), Verdict.TTL_EXPIRED, at=BACKENDS)
    bed.expect(
        reply(net, udp(8080, 41000), ttl=2),
        Verdict.RETURNED,
        answer(net, udp(53, 41000), ttl=1),
        at=BACKENDS,
    )


@both
def test_a_reply_that_is_dropped_teaches_nothing(bed: Bed, net: Net) -> None:
    flow_of(bed, net, net.client)
    bed.age(5)
    before = bed.flows(net.version), bed.returns(net.version)
    bed.expect(reply(net, udp(8080, 41000), ttl=1), Verdict.TTL_EXPIRED, at=BACKENDS)
    assert before == (bed.flows(net.version), bed.returns(net.version))
    bed.expect(reply(net, udp(8080, 41000)), Verdict.RETURNED, at=BACKENDS)
    seen = {f.seen for f in bed.flows(net.version).values()}
    assert seen == {entry.flow.seen for entry in bed.returns(net.version).values()}
    assert seen != {f.seen for f in before[0].values()}


@both
def test_the_next_hop_is_looked_up_once_and_again_when_routes_change(bed: Bed, net: Net) -> None:
    flow_of(bed, net, net.client2)
    old, new = "02:00:00:00:00:08", "02:00:00:00:00:88"

    def neighbour(address: str) -> None:
        bed.namespace.ip(
            f"neigh replace {net.client2} lladdr {address} dev clients nud permanent\n"
        )

    def goes_to() -> bytes:
        frame = reply(net, udp(8080, 41000), dst=net.client2)
        return bed.expect(frame, Verdict.RETURNED, at=BACKENDS).frame[:6]

    try:
        assert goes_to().hex(":") == old
        (entry,) = bed.returns(net.version).values()
        assert entry.flow.hop != 0
        assert entry.flow.hop_epoch == bed.world.settings.hop_epoch
        neighbour(new)
        assert goes_to().hex(":") == old
        bed.configure(reconfigured(bed.world, hop_epoch=bed.world.settings.hop_epoch + 1))
        assert goes_to().hex(":") == new
    finally:
        neighbour(old)


# ---- two flows, one reply tuple ----


def two_frontends(net: Net, *pools: Pool) -> World:
    """Two addresses whose flows are told apart by the backend's address alone."""
    frontends = ((net.vip, 80, "tcp"), (net.vip2, 80, "tcp"))
    return one(net, pools=pools, frontends=frontends)


def in_turn(net: Net, start: int, names: list[str], size: int = 61, step: int = 17) -> Pool:
    """The slots that a retry visits after `start`, in order; all others are b1's."""
    slots = ["b1"] * size
    for k, name in enumerate(names):
        slots[(start + k * step) % size] = name
    return pool(net, 2, size=size, step=step, slots=tuple(slots))


@pytest.mark.parametrize("free_at", range(7), ids=lambda k: f"try {k}")
@both
def test_a_taken_return_key_means_the_next_slot(bed: Bed, net: Net, free_at: int) -> None:
    """At most RETURN_TRIES further slots; then a drop, and nothing is left behind."""
    start = 11
    port = port_to_slot(net, start)
    bed.load(two_frontends(net, in_turn(net, start, ["b1"] * free_at + ["b2"])))
    bed.maps.tables.put(1, array("I", [bed.world.id("web/b1")] * 61))
    bed.expect(net.frame(tcp(port, 80), dst=net.vip2), Verdict.FORWARDED)
    bed.configure(bed.world)
    outcome = bed.send(net.frame(tcp(port, 80)))
    if free_at <= abi.Limit.RETURN_TRIES:
        assert (outcome.verdict, outcome.backend) == (Verdict.FORWARDED, "b2")
        assert bed.remembered(net.version) == (2, 2, 0)
    else:
        assert outcome.verdict == Verdict.RETURN_TAKEN
        assert bed.remembered(net.version) == (1, 1, 0)


@pytest.mark.parametrize("flags", ["S", "A"])
@both
def test_the_replies_of_colliding_flows_come_from_their_own_frontends(
    bed: Bed, net: Net, flags: str
) -> None:
    bed.load(two_frontends(net, pool(net, 2)))
    owners: dict[str, str] = {}
    for vip in (net.vip, net.vip2):
        outcome = bed.expect(net.frame(tcp(41000, 80, flags), dst=vip), Verdict.FORWARDED)
        owners[outcome.backend] = vip
    assert set(owners) == {"b1", "b2"}
    for name, vip in owners.items():
        number = int(name[1:])
        frame = from_backend(ip(net.backends[number - 1], net.client, tcp(8080, 41000)), number)
        out = to_client(ip(vip, net.client, tcp(80, 41000), ttl=63))
        bed.expect(frame, Verdict.RETURNED, out, at=BACKENDS)


@pytest.mark.parametrize(
    ("stale", "overwritten"),
    [
        ({}, False),
        ({"frontend": 99}, True),
        ({"backend": 99}, True),
        ({"state": FlowState.CLOSED | FlowState.RESET}, False),
        ({"state": FlowState.CLOSED | FlowState.RESET, "age": 56}, False),
        ({"state": FlowState.CLOSED | FlowState.RESET, "age": 57}, True),
        ({"age": 57}, False),
    ],
    ids=str,
)
@both
def test_whose_return_entry_may_be_overwritten(
    bed: Bed, net: Net, stale: dict[str, int], overwritten: bool
) -> None:
    def attempt() -> Verdict:
        world = bed.load(two_frontends(net, pool(net, 1)))
        bed.expect(net.frame(tcp(41000, 80), dst=net.vip2), Verdict.FORWARDED)
        returns = getattr(bed.maps, f"returns{net.version}")
        ((key, entry),) = returns.items()
        entry.flow.frontend = stale.get("frontend", world.id("www/1"))
        entry.flow.backend = stale.get("backend", world.id("web/b1"))
        entry.flow.state = stale.get("state", 0)
        entry.flow.seen = kernel.now_tick() - stale.get("age", 0)
        returns.put(key, entry)
        return bed.send(net.frame(tcp(41000, 80))).verdict

    verdict = bed.within_one_tick(attempt)
    assert verdict == (Verdict.FORWARDED if overwritten else Verdict.RETURN_TAKEN)


@both
def test_a_lost_return_entry_is_asserted_by_the_next_tick(bed: Bed, net: Net) -> None:
    """The LRU evicts halves separately."""
    bed.load(one(net))
    bed.expect(net.frame(tcp(41000, 80)), Verdict.FORWARDED)
    returns = getattr(bed.maps, f"returns{net.version}")
    (key,) = bed.returns(net.version)
    returns.delete(key)
    bed.age(1)
    bed.expect(net.frame(tcp(41000, 80)), Verdict.FORWARDED)
    assert list(bed.returns(net.version)) == [key]
    assert bed.counted("www").flows == 1


@both
def test_a_flow_whose_return_key_another_took_is_chosen_anew(bed: Bed, net: Net) -> None:
    bed.load(two_frontends(net, pool(net, 2, slots=("b1",) * 61)))
    bed.expect(net.frame(tcp(41000, 80)), Verdict.FORWARDED)
    returns = getattr(bed.maps, f"returns{net.version}")
    ((key, entry),) = returns.items()
    entry.client = flow_key(net.client, 41000, net.vip2, 80, TCP)
    entry.flow.frontend = bed.world.id("www/1")
    returns.put(key, entry)
    bed.age(1)
    bed.configure(two_frontends(net, pool(net, 2, slots=("b2",) * 61)))
    assert bed.expect(net.frame(tcp(41000, 80)), Verdict.FORWARDED).backend == "b2"
    assert bed.returns(net.version)[key].client == entry.client


# ---- to the node itself, and by the backend's own address ----


@both
def test_what_a_backend_says_to_the_node_passes(bed: Bed, net: Net) -> None:
    bed.load(one(net))
    for segment in (tcp(8080, 41000), udp(8080, 41000), tcp(41000, 22, "S")):
        bed.expect(reply(net, segment, dst=net.node), Verdict.NOT_OURS, at=BACKENDS)


@both
def test_a_direct_service_still_translates_what_it_forwarded(bed: Bed, net: Net) -> None:
    bed.load(one(net, flags=ServiceFlag.DIRECT))
    bed.expect(reply(net, tcp(8080, 41000)), Verdict.NOT_OURS, at=BACKENDS)
    bed.expect(net.frame(tcp(41000, 80)), Verdict.FORWARDED)
    bed.expect(
        reply(net, tcp(8080, 41000)), Verdict.RETURNED, answer(net, tcp(80, 41000)), at=BACKENDS
    )


@both
def test_services_without_nat_translate_no_replies(bed: Bed, net: Net) -> None:
    bed.load(World((service(net, forward=Forward.DSR),)))
    bed.expect(net.frame(tcp(41000, 80)), Verdict.FORWARDED)
    bed.expect(reply(net, tcp(8080, 41000)), Verdict.NOT_OURS, at=BACKENDS)


@both
def test_numbers_of_next_hops_end_and_none_is_dealt_twice(bed: Bed, net: Net) -> None:
    """Without a number the routes are asked for every reply."""
    bed.load(one(net))
    bed.maps.hop_ids.delete_many([hop for hop, _ in bed.maps.hop_ids.items()])
    bed.maps.hops.put(0, abi.Hop(ifindex=0xFFFFFFFF))
    dealt = bed.maps.hops.items()
    bed.expect(net.frame(tcp(41000, 80, "S")), Verdict.FORWARDED)
    bed.expect(reply(net, tcp(8080, 41000, "SA")), Verdict.RETURNED, at=BACKENDS)
    assert bed.maps.hops.items() == dealt
