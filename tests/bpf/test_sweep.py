"""The sweep: what is over is deleted, what lives is counted anew. In the kernel, and from Python. §6."""

from collections.abc import Callable
from typing import Any

import pytest

from bpf import abi, sweeping
from bpf.abi import FlowState, Forward, Verdict
from tests.support.bed import Bed, reconfigured
from tests.support.frames import TCP, UDP, tcp, udp
from tests.support.scenes import Net, both, one
from tests.support.world import World, flow_key, make_id

NOW = 100_000
TCP_IDLE, UDP_IDLE, CLOSING, REST = 300, 60, 10, 56
CLOSED = FlowState.RESET | FlowState.CLOSED
OPEN = FlowState(0)

Sweeper = Callable[[Bed], abi.Sweep]
SWEEPERS: dict[str, Sweeper] = {
    "in the kernel": lambda bed: bed.instance.sweep(NOW),
    "by batch": lambda bed: sweeping.sweep(bed.maps, NOW),
}
EITHER = pytest.mark.parametrize("sweep", SWEEPERS.values(), ids=SWEEPERS)


def world(net: Net) -> World:
    made = one(net, count=3, tcp_idle=TCP_IDLE, udp_idle=UDP_IDLE)
    return reconfigured(made, closing=CLOSING, rest=REST)


def flow(bed: Bed, age: int, state: FlowState = OPEN, of: int = 1, **ids: int) -> abi.Flow:
    fields = {"backend": bed.world.id(f"web/b{of}"), "frontend": bed.world.id("www/0"), **ids}
    return abi.Flow(seen=NOW - age, state=state, **fields)


def entry(net: Net, value: abi.Flow) -> Any:
    kind = abi.Return4 if net.version == 4 else abi.Return6
    return kind(client=flow_key(net.client, 1, net.vip, 80, TCP), flow=value)


def key(net: Net, number: int = 1, protocol: int = TCP, side: int = 0) -> Any:
    return flow_key(net.client, number, net.vip, 80, protocol, side)


def put(bed: Bed, net: Net, name: str, where: Any, value: Any) -> None:
    getattr(bed.maps, f"{name}{net.version}").put(where, value)


AGES = [  # map, protocol, state, how long it is kept
    ("flows", TCP, OPEN, TCP_IDLE),
    ("flows", UDP, OPEN, UDP_IDLE),
    ("flows", TCP, FlowState.CLIENT_FIN, TCP_IDLE),
    ("flows", TCP, CLOSED, CLOSING),
    ("returns", TCP, OPEN, TCP_IDLE),
    ("returns", UDP, OPEN, UDP_IDLE),
    ("returns", TCP, CLOSED, REST),
    ("opening", TCP, OPEN, CLOSING),
]


@pytest.mark.parametrize(("name", "protocol", "state", "patience"), AGES, ids=str)
@EITHER
@both
def test_how_long_an_entry_is_kept(
    bed: Bed,
    net: Net,
    sweep: Sweeper,
    name: str,
    protocol: int,
    state: FlowState,
    patience: int,
) -> None:
    bed.load(world(net))
    for number, age in enumerate((0, patience, patience + 1, 50_000)):
        value = flow(bed, age, state)
        where = key(net, number, protocol)
        put(bed, net, name, where, value if name == "flows" else entry(net, value))
    report = sweep(bed)
    left = getattr(bed.maps, f"{name}{net.version}").items()
    assert {k.sport for k, _ in left} == {0, 1}
    assert report.expired == 2


@pytest.mark.parametrize(
    "stale",
    [{"frontend": make_id(1, 9)}, {"backend": make_id(1, 9)}, {"frontend": 0}, {"backend": 0}],
    ids=str,
)
@pytest.mark.parametrize("name", ["flows", "returns", "opening"])
@EITHER
@both
def test_an_entry_whose_ids_mean_nothing_goes_at_once(
    bed: Bed, net: Net, sweep: Sweeper, name: str, stale: dict[str, Any]
) -> None:
    bed.load(world(net))
    value = flow(bed, 0, **stale)
    put(bed, net, name, key(net), value if name == "flows" else entry(net, value))
    assert sweep(bed).expired == 1
    assert bed.remembered(net.version) == (0, 0, 0)


@EITHER
@both
def test_flows_of_a_service_that_is_gone_go_at_once(bed: Bed, net: Net, sweep: Sweeper) -> None:
    bed.load(world(net))
    put(bed, net, "flows", key(net), flow(bed, 0))
    put(bed, net, "returns", key(net), entry(net, flow(bed, 0)))
    bed.maps.services.put(bed.world.index("www"), abi.Service())
    assert sweep(bed).expired == 2
    assert bed.remembered(net.version) == (0, 0, 0)


@EITHER
@both
def test_live_flows_are_counted_anew(bed: Bed, net: Net, sweep: Sweeper) -> None:
    """Whatever the counts had drifted to: flows and half-open ones of the client's side, not closed."""
    bed.load(world(net))
    for number in range(5):
        put(bed, net, "flows", key(net, number), flow(bed, 1, of=1))
    put(bed, net, "flows", key(net, 5), flow(bed, 1, CLOSED, of=1))
    put(bed, net, "flows", key(net, 6), flow(bed, 9999, of=2))
    put(bed, net, "opening", key(net, 7), entry(net, flow(bed, 1, of=2)))
    put(bed, net, "opening", key(net, 8, side=1), entry(net, flow(bed, 1, of=2)))
    put(bed, net, "returns", key(net, 9), entry(net, flow(bed, 1, of=3)))
    for name, drifted in (("web/b1", 999), ("web/b2", 0), ("web/b3", 4_000_000_000)):
        bed.maps.live.put(bed.world.index(name), drifted)
    report = sweep(bed)
    assert [bed.live(f"web/b{i}") for i in (1, 2, 3)] == [5, 1, 0]
    assert (report.flows, report.expired) == (6, 1)


@EITHER
@both
def test_sweeping_twice_changes_nothing_more(bed: Bed, net: Net, sweep: Sweeper) -> None:
    bed.load(world(net))
    put(bed, net, "flows", key(net), flow(bed, 1))
    assert sweep(bed).flows == 1
    again = sweep(bed)
    assert (again.flows, again.expired) == (1, 0)
    assert bed.live("web/b1") == 1


@EITHER
def test_without_flows_there_is_nothing_to_do(bed: Bed, sweep: Sweeper) -> None:
    bed.load(World())
    bed.maps.live.put(7, 3)
    report = sweep(bed)
    assert (report.flows, report.expired) == (0, 0)
    assert bed.maps.live.items() == []


@EITHER
@both
def test_an_entry_from_the_near_future_is_young(bed: Bed, net: Net, sweep: Sweeper) -> None:
    """The program may write one between the clock being read and the sweep getting there."""
    bed.load(world(net))
    put(bed, net, "flows", key(net), flow(bed, -1))
    assert sweep(bed).expired == 0
    assert bed.live("web/b1") == 1


@both
def test_what_the_program_wrote_is_what_the_sweep_counts(bed: Bed, net: Net) -> None:
    bed.load(one(net, Forward.NAT, count=3))
    for i in range(30):
        bed.expect(net.frame(tcp(41000 + i, 80, "S")), Verdict.FORWARDED)
        bed.expect(net.frame(udp(41000 + i, 53)), Verdict.FORWARDED)
    for i in range(10):
        bed.expect(net.frame(tcp(41000 + i, 80)), Verdict.FORWARDED)
    for i in range(5):
        bed.expect(net.frame(tcp(41000 + i, 80, "R")), Verdict.FORWARDED)
    before = [bed.live(f"web/b{i}") for i in (1, 2, 3)]
    assert sum(before) == 55
    report = bed.sweep()
    assert [bed.live(f"web/b{i}") for i in (1, 2, 3)] == before
    assert (report.flows, report.expired) == (55, 0)
