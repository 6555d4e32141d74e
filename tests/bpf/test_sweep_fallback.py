"""The sweep from Python gives what the kernel's own gives: same entries gone, same counts.

Each case is written into two shadows of one configuration; one sweeps in the kernel, one in Python.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bpf import abi, sweeping
from bpf.abi import FlowState, Side
from bpf.kernel import Instance
from tests.support.instances import SMALL, unique

NOW, TCP, UDP = 1_000_000, 6, 17
TCP_IDLE, UDP_IDLE, CLOSING, REST = 100, 30, 10, 60
INCARNATION = 1 << 20
FRONTEND, SERVICE, ONE, TWO = 1 | INCARNATION, 2 | INCARNATION, 3 | INCARNATION, 4 | INCARNATION
STALE_BACKEND, STALE_FRONTEND = ONE + INCARNATION, FRONTEND + INCARNATION
ORPHAN = 2 | INCARNATION  # a frontend whose service is of another incarnation
FLOW_MAPS = ("flows4", "flows6", "opening4", "opening6", "returns4", "returns6")
Sweeping = Callable[[], abi.Sweep]


@pytest.fixture(scope="module")
def instance() -> Iterator[Instance]:
    loaded = Instance.load(unique(), SMALL)
    try:
        maps = loaded.maps
        maps.settings.put(0, abi.Settings(closing=CLOSING, rest=REST))
        maps.frontends.put(1, abi.Frontend(id=FRONTEND, service=SERVICE, family=4))
        maps.frontends.put(2, abi.Frontend(id=ORPHAN, service=SERVICE + INCARNATION))
        maps.services.put(2, abi.Service(id=SERVICE, tcp_idle=TCP_IDLE, udp_idle=UDP_IDLE))
        maps.backends.put_many((i & 0xFFFFF, abi.Backend(id=i)) for i in (ONE, TWO))
        yield loaded
    finally:
        loaded.teardown()


@pytest.fixture(scope="module")
def shadow(instance: Instance) -> Iterator[Instance]:
    with instance.shadow() as made:
        yield made


@pytest.fixture(params=["kernel", "python"])
def sweep(request: pytest.FixtureRequest, shadow: Instance) -> Callable[[], abi.Sweep]:
    """Either sweep, over maps without flows."""
    for name in FLOW_MAPS:
        flows = shadow.maps[name]
        flows.delete_many([key for key, _ in flows.items()])
    shadow.maps.live.put_many([(index, 0) for index, _ in shadow.maps.live.items()])
    if request.param == "python":
        return lambda: sweeping.sweep(shadow.maps, NOW)
    if shadow._sweep < 0:
        pytest.skip("needs a kernel that loads the sweep")
    return lambda: shadow.sweep(NOW)


def flow(idle: int, *, backend: int = ONE, frontend: int = FRONTEND, state: int = 0) -> abi.Flow:
    return abi.Flow(backend=backend, frontend=frontend, seen=NOW - idle, state=state)


def key4(number: int, proto: int = TCP, side: Side = Side.CLIENT) -> abi.Flow4Key:
    return abi.Flow4Key(saddr=number, daddr=1, sport=2, dport=3, proto=proto, side=side)


def key6(number: int, proto: int = TCP, side: Side = Side.CLIENT) -> abi.Flow6Key:
    key = abi.Flow6Key(sport=2, dport=3, proto=proto, side=side)
    key.saddr.v6 = number.to_bytes(16, "big")
    return key


KEPT = {
    "fresh tcp": (flow(0), TCP, 1),
    "tcp just in time": (flow(TCP_IDLE), TCP, 1),
    "udp just in time": (flow(UDP_IDLE), UDP, 1),
    "closed and not counted": (flow(CLOSING, state=FlowState.CLOSED), TCP, 0),
    "half closed": (flow(TCP_IDLE, state=FlowState.CLIENT_FIN), TCP, 1),
}
GONE = {
    "idle tcp": (flow(TCP_IDLE + 1), TCP),
    "idle udp": (flow(UDP_IDLE + 1), UDP),
    "closed for long": (flow(CLOSING + 1, state=FlowState.CLOSED), TCP),
    "of another incarnation of its backend": (flow(0, backend=STALE_BACKEND), TCP),
    "of another incarnation of its frontend": (flow(0, frontend=STALE_FRONTEND), TCP),
    "of a service that is gone": (flow(0, frontend=ORPHAN), TCP),
    "of nothing": (flow(0, backend=0, frontend=0), TCP),
}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("entry", "proto", "live"), KEPT.values(), ids=KEPT)
def test_a_flow_that_stays(
    sweep: Sweeping, shadow: Instance, family: int, entry: abi.Flow, proto: int, live: int
) -> None:
    flows, key = table(shadow, "flows", family), keys(family)(1, proto)
    flows.put(key, entry)
    report = sweep()
    assert (report.expired, report.flows) == (0, live)
    assert flows.items() == [(key, entry)]
    assert shadow.maps.live.get(3) == live


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("entry", "proto"), GONE.values(), ids=GONE)
def test_a_flow_that_goes(
    sweep: Sweeping, shadow: Instance, family: int, entry: abi.Flow, proto: int
) -> None:
    flows = table(shadow, "flows", family)
    flows.put(keys(family)(1, proto), entry)
    report = sweep()
    assert (report.expired, report.flows) == (1, 0)
    assert flows.items() == []


@pytest.mark.parametrize("family", [4, 6])
def test_a_packet_that_came_after_the_sweep_began_keeps_its_flow(
    sweep: Sweeping, shadow: Instance, family: int
) -> None:
    table(shadow, "flows", family).put(keys(family)(1), flow(-1))
    assert sweep().expired == 0


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize(("idle", "expired"), [(CLOSING, 0), (CLOSING + 1, 1)])
def test_opening_entries_live_as_long_as_closing_and_count_once(
    sweep: Sweeping, shadow: Instance, family: int, side: Side, idle: int, expired: int
) -> None:
    value = (abi.Return4 if family == 4 else abi.Return6)(flow=flow(idle))
    table(shadow, "opening", family).put(keys(family)(1, TCP, side), value)
    report = sweep()
    assert report.expired == expired
    assert report.flows == (0 if expired or side is Side.BACKEND else 1)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("entry", "expired"),
    [
        (flow(TCP_IDLE), 0),
        (flow(TCP_IDLE + 1), 1),
        (flow(REST, state=FlowState.CLOSED), 0),
        (flow(REST + 1, state=FlowState.CLOSED), 1),
        (flow(0, backend=STALE_BACKEND), 1),
    ],
)
def test_return_entries_rest_before_they_go_and_count_nothing(
    sweep: Sweeping, shadow: Instance, family: int, entry: abi.Flow, expired: int
) -> None:
    value = (abi.Return4 if family == 4 else abi.Return6)(flow=entry)
    table(shadow, "returns", family).put(keys(family)(1), value)
    report = sweep()
    assert (report.expired, report.flows) == (expired, 0)


def test_live_flows_are_counted_anew_per_backend(sweep: Sweeping, shadow: Instance) -> None:
    maps = shadow.maps
    maps.live.put_many([(3, 999), (4, 7), (5, 1)])  # what eviction has made of them
    maps.flows4.put_many((key4(n), flow(0)) for n in range(20))
    maps.flows6.put_many((key6(n), flow(0, backend=TWO)) for n in range(30))
    maps.flows4.put_many((key4(100 + n), flow(TCP_IDLE + 1, backend=TWO)) for n in range(40))
    report = sweep()
    assert (report.now, report.expired, report.flows) == (NOW, 40, 50)
    assert dict(maps.live.items()) == {3: 20, 4: 30}


@pytest.mark.parametrize(
    ("now", "seen", "ticks"),
    [(5, 3, 2), (3, 5, -2), (1, 0xFFFFFFFF, 2), (0xFFFFFFFF, 1, -2), (0, 0, 0)],
)
def test_ticks_wrap(now: int, seen: int, ticks: int) -> None:
    assert sweeping.idle(now, seen) == ticks


def table(instance: Instance, name: str, family: int) -> Any:
    return instance.maps[f"{name}{family}"]


def keys(family: int) -> Any:
    return key4 if family == 4 else key6
