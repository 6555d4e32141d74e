"""The reference model as a whole against packets written down by hand, mode by mode.

What goes out is built here field by field: the model rewrites, the expectation is built anew.
"""

from dataclasses import replace
from typing import Any

import pytest

from bpf.abi import Balance, FlowState, Forward, Limit, Verdict
from tests.support import frames
from tests.support.frames import difference, eth, tcp, udp
from tests.support.model import Action, Model, Outcome, Way
from tests.support.scenes import V4, V6, Net, backend, both, one, pool, to_backend, to_client
from tests.support.world import World, slot_of, tuple_hash

NOW = 1000
TO_CLIENT = Way(10, 1500, frames.mac(frames.CLIENT_MAC), frames.mac(frames.BALANCER_MAC))


def fib(family: int, source: bytes, destination: bytes, ifindex: int) -> Way:
    return TO_CLIENT


class Told:
    """A model and the last thing it said."""

    def __init__(self, world: World) -> None:
        self.model = Model(replace(world, backend_ifindex=20).raw())

    def send(self, frame: bytes, *, now: int = NOW, at: int = 10) -> Outcome:
        outcome = self.model.packet(frame, ifindex=at, now=now, fib=fib)
        self.model = self.model.after(outcome)
        return outcome

    def stored(self, name: str) -> list[Any]:
        return list(self.model.store(name).values())


def expect(outcome: Outcome, verdict: Verdict, frame: bytes) -> None:
    assert outcome.verdict == verdict
    assert outcome.action == Action.REDIRECT
    assert difference(outcome.frame, frame) == ""


@both
def test_nat_there_and_back(net: Net) -> None:
    told = Told(one(net))
    there = told.send(net.frame(udp(41000, 53)))
    packet = net.packet(udp(41000, 8080), dst=net.backends[0], ttl=63)
    expect(there, Verdict.FORWARDED, to_backend(packet))
    reply = net.packet(udp(8080, 41000), src=net.backends[0], dst=net.client)
    back = told.send(eth(reply), at=20)
    packet = net.packet(udp(53, 41000), src=net.vip, dst=net.client, ttl=63)
    expect(back, Verdict.RETURNED, to_client(packet))


@both
def test_fullnat_hides_the_client(net: Net) -> None:
    told = Told(one(net, Forward.FULLNAT))
    there = told.send(net.frame(udp(41000, 53)))
    (flow,) = told.stored("flows")
    assert 40000 <= flow.port <= 49999
    packet = net.packet(udp(flow.port, 8080), src=net.nat_source, dst=net.backends[0], ttl=63)
    expect(there, Verdict.FORWARDED, to_backend(packet))
    reply = net.packet(udp(8080, flow.port), src=net.backends[0], dst=net.nat_source)
    packet = net.packet(udp(53, 41000), src=net.vip, dst=net.client, ttl=63)
    expect(told.send(eth(reply), at=20), Verdict.RETURNED, to_client(packet))


@both
def test_dsr_changes_macs_only(net: Net) -> None:
    there = Told(one(net, Forward.DSR)).send(net.frame(tcp(41000, 80, "S"), ttl=1))
    expect(there, Verdict.FORWARDED, to_backend(net.packet(tcp(41000, 80, "S"), ttl=1)))


@pytest.mark.parametrize("inner", [V4, V6])
@pytest.mark.parametrize("outer", [V4, V6])
def test_ipip_puts_a_header_in_front(inner: Net, outer: Net) -> None:
    world = one(inner, Forward.IPIP, pools=(pool(outer),))
    there = Told(world).send(inner.frame(udp(41000, 53), tos=0xB8))
    carried = frames.raw(4 if inner is V4 else 41, inner.packet(udp(41000, 53), tos=0xB8, ttl=63))
    ends = (outer.tunnel_source, outer.backends[0], carried)
    packet = (
        frames.ipv4(*ends, tos=0xB8, ident=0)
        if outer is V4
        else frames.ipv6(*ends, traffic_class=0xB8)
    )
    expect(there, Verdict.FORWARDED, to_backend(packet))


@pytest.mark.parametrize("inner", [V4, V6])
@pytest.mark.parametrize("outer", [V4, V6])
def test_gue_has_a_checksum_where_the_family_asks_for_one(inner: Net, outer: Net) -> None:
    there = Told(one(inner, Forward.GUE, pools=(pool(outer),))).send(inner.frame(udp(41000, 53)))
    sport = frames.headers(there.frame)
    port = int.from_bytes(there.frame[sport.l4_at : sport.l4_at + 2], "big")
    assert port >= 0xC000
    checksum = 0 if outer is V4 else None
    carried = udp(port, 6080, inner.packet(udp(41000, 53), ttl=63), checksum=checksum)
    ends = (outer.tunnel_source, outer.backends[0], carried)
    packet = frames.ipv4(*ends, ident=0) if outer is V4 else frames.ipv6(*ends)
    expect(there, Verdict.FORWARDED, to_backend(packet))


@both
def test_an_error_from_a_backend_looks_as_if_the_service_had_sent_it(net: Net) -> None:
    told = Told(one(net))
    sent = told.send(net.frame(udp(41000, 53))).frame[14:]
    complaint = frames.unreachable(net.version, sent)
    back = told.send(eth(net.packet(complaint, src=net.backends[0], dst=net.client)), at=20)
    quoted = net.packet(udp(41000, 53), ttl=63)
    expected = net.packet(
        frames.unreachable(net.version, quoted), src=net.vip, dst=net.client, ttl=63
    )
    expect(back, Verdict.ICMP_RETURNED, to_client(expected))


@both
def test_too_big_names_what_would_have_fitted(net: Net) -> None:
    small = pool(net, backends=(backend(net, 1, mtu=1400),))
    frame = net.frame(udp(41000, 53, bytes(1400)))
    told = Told(one(net, pools=(small,)))
    outcome = told.send(frame)
    assert (outcome.verdict, outcome.action) == (Verdict.TOO_BIG_ANSWERED, Action.TX)
    assert frames.describe(outcome.frame)["icmp.rest"] == 1400
    assert told.stored("flows") == []


# ---- flows ----


def test_a_handshake_is_half_open_until_the_clients_ack() -> None:
    told = Told(one(V4))
    told.send(V4.frame(tcp(41000, 80, "S")))
    assert (len(told.stored("opening")), len(told.stored("answering"))) == (1, 1)
    assert told.stored("live") == [1]
    told.send(V4.frame(tcp(41000, 80, "A")))
    assert told.stored("opening") == told.stored("answering") == []
    assert (len(told.stored("flows")), len(told.stored("returns"))) == (1, 1)
    assert told.stored("live") == [1]


def test_both_fins_close_a_flow_once() -> None:
    told = Told(one(V4))
    told.send(V4.frame(tcp(41000, 80, "A")))
    told.send(V4.frame(tcp(41000, 80, "FA")))
    assert told.stored("live") == [1]
    told.send(eth(V4.packet(tcp(8080, 41000, "FA"), src=V4.backends[0], dst=V4.client)), at=20)
    told.send(V4.frame(tcp(41000, 80, "A")))
    (flow,) = told.stored("flows")
    assert flow.state == FlowState.CLIENT_FIN | FlowState.BACKEND_FIN | FlowState.CLOSED
    assert told.stored("live") == [0]


def test_an_idle_flow_is_forgotten() -> None:
    told = Told(one(V4, udp_idle=60))
    told.send(V4.frame(udp(41000, 53)))
    told.send(V4.frame(udp(41000, 53)), now=NOW + 60)
    told.send(V4.frame(udp(41000, 53)), now=NOW + 60 + 61)
    (counts,) = told.stored("service_counts")
    assert (counts.packets, counts.flows) == (3, 2)


def test_the_gate_is_asked_once_a_new_flow() -> None:
    told = Told(one(V4, gate=2))
    verdicts = [told.send(V4.frame(udp(port, 53))).verdict for port in (1, 1, 2, 3)]
    assert verdicts == [Verdict.FORWARDED] * 3 + [Verdict.GATED]
    assert told.send(V4.frame(udp(3, 53)), now=NOW + 1).verdict == Verdict.FORWARDED


def test_two_frontends_one_backend_one_client_port_take_turns_or_are_refused() -> None:
    told = Told(one(V4, frontends=((V4.vip, 80, "tcp"), (V4.vip, 443, "tcp"))))
    assert told.send(V4.frame(tcp(41000, 80, "A"))).verdict == Verdict.FORWARDED
    assert told.send(V4.frame(tcp(41000, 443, "A"))).verdict == Verdict.RETURN_TAKEN


# ---- choosing ----


def test_the_cursor_goes_round() -> None:
    told = Told(one(V4, count=2, balance=Balance.ROUND_ROBIN, pools=(pool(V4, 2, size=2, step=1),)))
    macs = [told.send(V4.frame(udp(port, 53))).frame[5] for port in range(1, 5)]
    assert macs == [1, 2, 1, 2]


def test_every_backend_of_a_random_service_is_an_outcome() -> None:
    told = Told(one(V4, balance=Balance.RANDOM, pools=(pool(V4, 3, size=7, step=3),)))
    found = told.model.outcomes(V4.frame(udp(1, 53)), ifindex=10, now=NOW, fib=fib)
    assert {outcome.frame[5] for outcome in found} == {1, 2, 3}


@pytest.mark.parametrize(
    ("distance", "expected"), [(Limit.WALK_STEPS, 1), (Limit.WALK_STEPS + 1, 2)]
)
def test_the_walk_goes_so_far_and_then_takes_the_spare(distance: int, expected: int) -> None:
    """All slots are empty but one, which is b1's; the spare table is b2's."""
    first = slot_of(tuple_hash(V4.client, 7, V4.vip, 53, frames.UDP), 11)
    slots = tuple("b1" if at == (first + distance) % 11 else "" for at in range(11))
    members = (backend(V4, 1), backend(V4, 2))
    held = pool(V4, backends=members, size=11, step=1, slots=slots, spares=("b2",) * 11)
    assert Told(one(V4, pools=(held,))).send(V4.frame(udp(7, 53))).frame[5] == expected
