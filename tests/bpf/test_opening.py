"""Half-open flows, kept apart so that a flood evicts nothing else, and the gate for new flows. §3."""

from dataclasses import replace
from typing import Any

import pytest

from bpf import abi, kernel
from bpf.abi import Balance, Forward, HealthState, ServiceFlag, Side, Verdict
from tests.support.bed import BACKENDS, Bed
from tests.support.frames import TCP, Segment, ip, tcp, udp
from tests.support.scenes import Net, backend, both, from_backend, one, pool, service
from tests.support.world import Pool, World, flow_key

DSR, NAT, FULLNAT = Forward.DSR, Forward.NAT, Forward.FULLNAT
SYN, ACK, RST = (tcp(41000, 80, flags) for flags in "SAR")
MODES = pytest.mark.parametrize(
    ("forward", "balance"),
    [(NAT, Balance.HASH), (FULLNAT, Balance.HASH), (DSR, Balance.ROUND_ROBIN)],
    ids=["nat", "fullnat", "dsr round-robin"],
)


def two(net: Net, slot: str = "b1", **fields: Any) -> Pool:
    backends = (backend(net, 1, **fields), backend(net, 2))
    return pool(net, backends=backends, slots=(slot,) * 61)


def opened(bed: Bed, net: Net, forward: Forward, balance: Balance, **fields: Any) -> World:
    """A half-open flow of b1's, in a world where new packets go to b2."""
    bed.load(one(net, forward, pools=(two(net),), balance=balance, **fields))
    assert goes_to(bed, net, SYN) == "b1"
    return bed.configure(one(net, forward, pools=(two(net, "b2"),), balance=balance, **fields))


def goes_to(bed: Bed, net: Net, segment: Segment) -> str:
    return bed.expect(net.frame(segment), Verdict.FORWARDED).backend


@MODES
@both
def test_a_repeated_syn_goes_where_the_first_went(
    bed: Bed, net: Net, forward: Forward, balance: Balance
) -> None:
    opened(bed, net, forward, balance)
    before = bed.remembered(net.version)
    assert goes_to(bed, net, SYN) == "b1"
    assert bed.remembered(net.version) == before
    assert bed.counted("www").flows == bed.live("web/b1") == 1


@MODES
@both
def test_the_first_ack_makes_it_a_flow(
    bed: Bed, net: Net, forward: Forward, balance: Balance
) -> None:
    opened(bed, net, forward, balance)
    assert goes_to(bed, net, ACK) == "b1"
    assert bed.remembered(net.version) == (1, 0 if forward == DSR else 1, 0)
    assert bed.counted("www").flows == bed.live("web/b1") == 1
    assert goes_to(bed, net, tcp(41000, 80, "PA")) == "b1"


@MODES
@both
def test_a_reset_forgets_it(bed: Bed, net: Net, forward: Forward, balance: Balance) -> None:
    opened(bed, net, forward, balance)
    assert goes_to(bed, net, RST) == "b1"
    assert bed.remembered(net.version) == (0, 0, 0)
    assert bed.live("web/b1") == 0
    assert goes_to(bed, net, SYN) == "b2"


@pytest.mark.parametrize("flags", ["F", "FA", "SA", ""])
@MODES
@both
def test_other_packets_leave_it_open(
    bed: Bed, net: Net, forward: Forward, balance: Balance, flags: str
) -> None:
    opened(bed, net, forward, balance)
    before = bed.remembered(net.version)
    assert goes_to(bed, net, tcp(41000, 80, flags)) == "b1"
    assert bed.remembered(net.version) == before


@MODES
@both
def test_the_opening_entries_say_both_sides(
    bed: Bed, net: Net, forward: Forward, balance: Balance
) -> None:
    world = opened(bed, net, forward, balance)
    entries = bed.opening(net.version)
    client = flow_key(net.client, 41000, net.vip, 80, TCP)
    mine = entries[flow_key(net.client, 41000, net.vip, 80, TCP, Side.CLIENT)]
    assert (mine.flow.backend, mine.flow.frontend) == (world.id("web/b1"), world.id("www/0"))
    theirs = [entry for key, entry in entries.items() if key.side == Side.BACKEND]
    assert [entry.client for entry in theirs] == ([] if forward == DSR else [client])


@MODES
@both
def test_it_is_not_used_once_the_backend_is_down(
    bed: Bed, net: Net, forward: Forward, balance: Balance
) -> None:
    opened(bed, net, forward, balance)
    bed.set_health("web/b1", HealthState.DOWN)
    assert goes_to(bed, net, SYN) == "b2"
    assert (bed.live("web/b1"), bed.live("web/b2")) == (0, 1)


@MODES
@pytest.mark.parametrize(("ticks", "kept"), [(50, True), (51, False)])
@both
def test_it_grows_old_like_a_flow(
    bed: Bed, net: Net, forward: Forward, balance: Balance, ticks: int, kept: bool
) -> None:
    def attempt() -> str:
        opened(bed, net, forward, balance, tcp_idle=50)
        bed.age(ticks)
        return goes_to(bed, net, ACK)

    assert bed.within_one_tick(attempt) == ("b1" if kept else "b2")


@both
def test_a_service_without_flows_does_not_look(bed: Bed, net: Net) -> None:
    opened(bed, net, NAT, Balance.HASH)
    before = bed.opening(net.version)
    off = ServiceFlag.FLOWS_OFF
    bed.configure(one(net, NAT, pools=(two(net, "b2"),), flags=off))
    for segment in (SYN, ACK, RST):
        assert goes_to(bed, net, segment) == "b2"
    assert bed.opening(net.version) == before


@both
def test_each_repetition_makes_it_young_again(bed: Bed, net: Net) -> None:
    opened(bed, net, NAT, Balance.HASH, tcp_idle=50)
    for _ in range(3):
        bed.age(40)
        assert goes_to(bed, net, SYN) == "b1"


@both
def test_the_answer_to_a_syn_comes_back_by_the_opening_entry(bed: Bed, net: Net) -> None:
    opened(bed, net, NAT, Balance.HASH)
    answer = from_backend(ip(net.backends[0], net.client, tcp(8080, 41000, "SA")))
    bed.expect(answer, Verdict.RETURNED, at=BACKENDS)
    assert bed.remembered(net.version) == (0, 0, 2)


@both
def test_a_return_key_taken_meanwhile_means_choosing_anew(bed: Bed, net: Net) -> None:
    """Between SYN and ACK another frontend's flow got the same reply tuple: nobody's is overwritten."""
    opened(bed, net, NAT, Balance.HASH, frontends=((net.vip, 80, "tcp"), (net.vip2, 80, "tcp")))
    reply = flow_key(net.backends[0], 8080, net.client, 41000, TCP)
    other = flow_key(net.client, 41000, net.vip2, 80, TCP)
    kind = abi.Return4 if net.version == 4 else abi.Return6
    ids = {"backend": bed.world.id("web/b1"), "frontend": bed.world.id("www/1")}
    taken = kind(client=other, flow=abi.Flow(seen=kernel.now_tick(), **ids))
    getattr(bed.maps, f"returns{net.version}").put(reply, taken)
    assert goes_to(bed, net, ACK) == "b2"
    assert bed.returns(net.version)[reply] == taken
    assert bed.live("web/b1") + bed.live("web/b2") == 1


@both
def test_a_flood_of_syns_evicts_no_flow(bed: Bed, net: Net) -> None:
    opened(bed, net, NAT, Balance.HASH)
    assert goes_to(bed, net, ACK) == "b1"
    for port in range(5000):
        bed.instance.run(net.frame(tcp(1024 + port, 80, "S")), ifindex=1)
    flows, returns, opening = bed.remembered(net.version)
    assert (flows, returns) == (1, 1)
    assert opening <= 4096
    assert goes_to(bed, net, ACK) == "b1"


@both
def test_hashed_dsr_takes_no_state_from_a_flood(bed: Bed, net: Net) -> None:
    bed.load(one(net, DSR))
    for port in range(200):
        goes_to(bed, net, tcp(1024 + port, 80, "S"))
    assert bed.remembered(net.version) == (0, 0, 0)


# ---- the gate ----

ROUND_ROBIN = Balance.ROUND_ROBIN
GATES = [
    (DSR, Balance.HASH, "ACK", Verdict.FORWARDED),
    (Forward.IPIP, Balance.HASH, "UDP", Verdict.FORWARDED),
    (Forward.GUE, Balance.HASH, "UDP", Verdict.FORWARDED),
    (DSR, ROUND_ROBIN, "SYN", Verdict.GATED),
    (DSR, ROUND_ROBIN, "UDP", Verdict.GATED),
    (NAT, Balance.HASH, "SYN", Verdict.GATED),
    (NAT, Balance.HASH, "ACK", Verdict.GATED),
    (NAT, Balance.HASH, "UDP", Verdict.GATED),
    (FULLNAT, Balance.HASH, "SYN", Verdict.GATED),
    (FULLNAT, Balance.HASH, "UDP", Verdict.GATED),
]


def new(net: Net, kind: str, number: int) -> bytes:
    port = 42000 + number
    if kind == "UDP":
        return net.frame(udp(port, 53))
    return net.frame(tcp(port, 80, kind[0]))


@pytest.mark.parametrize(
    ("forward", "balance", "kind", "over"), GATES, ids=lambda v: getattr(v, "name", v)
)
@both
def test_over_the_gate_nothing_is_learnt(
    bed: Bed, net: Net, forward: Forward, balance: Balance, kind: str, over: Verdict
) -> None:
    def attempt() -> list[Verdict]:
        bed.load(one(net, forward, balance=balance, gate=3))
        return [bed.send(new(net, kind, i)).verdict for i in range(5)]

    assert bed.within_one_tick(attempt) == [Verdict.FORWARDED] * 3 + [over] * 2
    assert bed.counted("www").flows == bed.live("web/b1") == 3
    bed.expect(new(net, kind, 0), Verdict.FORWARDED)  # known: the gate is for new ones


@both
def test_without_a_gate_there_is_no_limit(bed: Bed, net: Net) -> None:
    bed.load(one(net, NAT, gate=0))
    for i in range(50):
        bed.expect(new(net, "SYN", i), Verdict.FORWARDED)


@both
def test_the_next_tick_opens_the_gate_again(bed: Bed, net: Net) -> None:
    def attempt() -> list[Verdict]:
        world = bed.load(one(net, NAT, gate=2))
        verdicts = [bed.send(new(net, "SYN", i)).verdict for i in range(3)]
        state = bed.maps.service_state.get(world.index("www"))
        state.gate -= 1 << 32  # as if that had been a tick ago
        bed.maps.service_state.put(world.index("www"), state)
        return verdicts + [bed.send(new(net, "SYN", i)).verdict for i in range(3, 6)]

    let, no = Verdict.FORWARDED, Verdict.GATED
    assert bed.within_one_tick(attempt) == [let, let, no, let, let, no]


@both
def test_packets_that_need_no_entry_pass_no_gate(bed: Bed, net: Net) -> None:
    def attempt() -> None:
        bed.load(one(net, NAT, gate=1))
        bed.expect(new(net, "SYN", 0), Verdict.FORWARDED)
        bed.expect(net.frame(tcp(41999, 80, "FA")), Verdict.FORWARDED)

    bed.within_one_tick(attempt)


@both
def test_a_gate_is_one_services_own(bed: Bed, net: Net) -> None:
    def attempt() -> None:
        one_, other = (
            service(net, two(net), name=name, frontends=((net.vip, port, "tcp"),), gate=1)
            for name, port in (("one", 80), ("other", 81))
        )
        bed.load(World((one_, replace(other, flags=ServiceFlag(0)))))
        bed.expect(net.frame(tcp(41000, 80, "S")), Verdict.FORWARDED)
        bed.expect(net.frame(tcp(41001, 80, "S")), Verdict.GATED)
        bed.expect(net.frame(tcp(41002, 81, "S")), Verdict.FORWARDED)
        bed.expect(net.frame(tcp(41003, 81, "S")), Verdict.GATED)

    bed.within_one_tick(attempt)
