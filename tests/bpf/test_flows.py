"""What is remembered of a 5-tuple, what is used again, and what ends it. §3.

Most tests learn a flow while every slot says b1, then let every slot say b2: where the next packet
goes tells whether the flow was used.
"""

from dataclasses import replace
from typing import Any

import pytest

from bpf import abi, kernel
from bpf.abi import BackendFlag, Balance, FlowState, Forward, HealthState, ServiceFlag, Verdict
from tests.support.bed import BACKENDS, Bed
from tests.support.frames import TCP, Segment, ip, tcp, udp
from tests.support.scenes import Net, backend, both, from_backend, one, pool, service
from tests.support.world import Pool, World, flow_key

DSR, NAT, FULLNAT, IPIP = Forward.DSR, Forward.NAT, Forward.FULLNAT, Forward.IPIP
OFF, KEEP = ServiceFlag.FLOWS_OFF, ServiceFlag.KEEP_DOWN
SYN, ACK, QUERY = tcp(41000, 80, "S"), tcp(41000, 80), udp(41000, 53)


def two(net: Net, slot: str = "b1", **fields: Any) -> Pool:
    """b1 and b2, with every slot naming one of them; `fields` are b1's."""
    backends = (backend(net, 1, **fields), backend(net, 2))
    return pool(net, backends=backends, slots=(slot,) * 61)


def learnt(bed: Bed, net: Net, segment: Segment, forward: Forward = DSR, **fields: Any) -> World:
    """A flow of b1's, in a world where new packets go to b2."""
    bed.load(one(net, forward, pools=(two(net),), **fields))
    assert bed.expect(net.frame(segment), Verdict.FORWARDED).backend == "b1"
    return bed.configure(one(net, forward, pools=(two(net, "b2"),), **fields))


def goes_to(bed: Bed, net: Net, segment: Segment) -> str:
    return bed.expect(net.frame(segment), Verdict.FORWARDED).backend


def key(net: Net, protocol: int = TCP) -> Any:
    return flow_key(net.client, 41000, net.vip, 80 if protocol == TCP else 53, protocol)


# ---- learning ----

HASH, ROUND_ROBIN = Balance.HASH, Balance.ROUND_ROBIN
LEARNS = [  # (flows, returns, opening) after one packet
    *((mode, HASH, 0, SYN, (0, 0, 0)) for mode in (DSR, IPIP, Forward.GUE)),
    *((mode, HASH, 0, ACK, (1, 0, 0)) for mode in (DSR, IPIP, Forward.GUE)),
    *((mode, HASH, 0, QUERY, (1, 0, 0)) for mode in (DSR, IPIP, Forward.GUE)),
    (DSR, HASH, 0, tcp(41000, 80, "PA"), (1, 0, 0)),
    (DSR, HASH, 0, tcp(41000, 80, "AUCE"), (1, 0, 0)),
    (DSR, HASH, 0, tcp(41000, 80, "SCE"), (0, 0, 0)),
    *((DSR, HASH, 0, tcp(41000, 80, f), (0, 0, 0)) for f in ("SA", "FA", "F", "R", "RA", "", "P")),
    (DSR, ROUND_ROBIN, 0, SYN, (0, 0, 1)),
    (DSR, Balance.RANDOM, 0, SYN, (0, 0, 1)),
    (DSR, Balance.LEAST_CONNECTIONS, 0, SYN, (0, 0, 1)),
    (DSR, ROUND_ROBIN, 0, ACK, (1, 0, 0)),
    (DSR, ROUND_ROBIN, 0, QUERY, (1, 0, 0)),
    (DSR, ROUND_ROBIN, 0, tcp(41000, 80, "FA"), (0, 0, 0)),
    (NAT, HASH, 0, SYN, (0, 0, 2)),
    (NAT, HASH, 0, ACK, (1, 1, 0)),
    (NAT, HASH, 0, QUERY, (1, 1, 0)),
    *((NAT, HASH, 0, tcp(41000, 80, flags), (0, 0, 0)) for flags in ("SA", "FA", "R", "")),
    (FULLNAT, HASH, 0, SYN, (0, 0, 2)),
    (FULLNAT, HASH, 0, ACK, (1, 1, 0)),
    (FULLNAT, HASH, 0, QUERY, (1, 1, 0)),
    *((mode, HASH, OFF, segment, (0, 0, 0)) for mode in (DSR, NAT) for segment in (SYN, ACK, QUERY)),
    (DSR, ROUND_ROBIN, OFF, SYN, (0, 0, 0)),
    (FULLNAT, HASH, OFF, SYN, (0, 0, 2)),
    (FULLNAT, HASH, OFF, QUERY, (1, 1, 0)),
]  # fmt: skip


def _learning_id(value: object) -> str | None:
    if isinstance(value, Segment) and value.protocol == TCP:
        names = zip("FSRPA", (1, 2, 4, 8, 16), strict=True)
        return "TCP-" + "".join(name for name, bit in names if value.data[13] & bit)
    return "UDP" if isinstance(value, Segment) else getattr(value, "name", None)


@pytest.mark.parametrize(
    ("forward", "balance", "flags", "segment", "remembered"), LEARNS, ids=_learning_id
)
@both
def test_what_one_packet_makes_it_remember(
    bed: Bed,
    net: Net,
    forward: Forward,
    balance: Balance,
    flags: int,
    segment: Segment,
    remembered: tuple[int, int, int],
) -> None:
    bed.load(one(net, forward, balance=balance, flags=flags))
    bed.expect(net.frame(segment), Verdict.FORWARDED)
    new = 1 if any(remembered) else 0
    assert bed.remembered(net.version) == remembered
    assert bed.remembered(10 - net.version) == (0, 0, 0)  # the other family's maps
    assert bed.live("web/b1") == new
    assert bed.counted("www").flows == bed.counted("web/b1").flows == new


@both
def test_a_flow_names_its_backend_frontend_and_time(bed: Bed, net: Net) -> None:
    def attempt() -> tuple[abi.Flow, int]:
        bed.load(one(net, DSR))
        bed.expect(net.frame(ACK), Verdict.FORWARDED)
        return bed.flows(net.version)[key(net)], kernel.now_tick()

    flow, now = bed.within_one_tick(attempt)
    assert flow == abi.Flow(
        backend=bed.world.id("web/b1"), frontend=bed.world.id("www/0"), seen=now
    )


# ---- known flows ----


@pytest.mark.parametrize("forward", Forward, ids=lambda f: f.name)
@pytest.mark.parametrize("segment", [ACK, QUERY], ids=["TCP", "UDP"])
@both
def test_a_known_flow_stays_when_the_table_changes(
    bed: Bed, net: Net, forward: Forward, segment: Segment
) -> None:
    learnt(bed, net, segment, forward)
    assert goes_to(bed, net, segment) == "b1"
    assert bed.counted("www").flows == 1


@pytest.mark.parametrize("flags", ["A", "PA", "FA", "R", "S", "SA", ""])
@both
def test_every_packet_of_a_flow_follows_it(bed: Bed, net: Net, flags: str) -> None:
    learnt(bed, net, ACK)
    assert goes_to(bed, net, tcp(41000, 80, flags)) == "b1"


@pytest.mark.parametrize(
    "other",
    [tcp(41001, 80), tcp(41000, 81), udp(41000, 80)],
    ids=["source port", "port", "protocol"],
)
@both
def test_another_tuple_is_another_flow(bed: Bed, net: Net, other: Segment) -> None:
    frontends = tuple((net.vip, port, p) for port in (80, 81) for p in ("tcp", "udp"))
    learnt(bed, net, ACK, frontends=frontends)
    assert goes_to(bed, net, other) == "b2"
    assert bed.expect(net.frame(ACK, src=net.client2), Verdict.FORWARDED).backend == "b2"


@pytest.mark.parametrize("segment", [ACK, QUERY], ids=["TCP", "UDP"])
@pytest.mark.parametrize(("ticks", "kept"), [(49, True), (50, True), (51, False), (1000, False)])
@both
def test_a_flow_is_forgotten_after_its_services_idle_time(
    bed: Bed, net: Net, segment: Segment, ticks: int, kept: bool
) -> None:
    idle: Any = (
        {"tcp_idle": 50, "udp_idle": 5} if segment is ACK else {"tcp_idle": 5, "udp_idle": 50}
    )

    def attempt() -> str:
        learnt(bed, net, segment, **idle)
        bed.age(ticks)
        return goes_to(bed, net, segment)

    assert bed.within_one_tick(attempt) == ("b1" if kept else "b2")
    assert bed.live("web/b1") + bed.live("web/b2") == 1


@both
def test_a_flow_seen_by_a_cpu_that_is_a_tick_ahead_is_young(bed: Bed, net: Net) -> None:
    learnt(bed, net, ACK, tcp_idle=50)
    bed.age(-2)
    assert goes_to(bed, net, ACK) == "b1"


@both
def test_a_packet_makes_its_flow_young_again(bed: Bed, net: Net) -> None:
    learnt(bed, net, ACK, tcp_idle=50)
    for _ in range(3):
        bed.age(40)
        assert goes_to(bed, net, ACK) == "b1"


@pytest.mark.parametrize(
    ("state", "b1", "flags", "segment", "kept"),
    [
        ("DOWN", 0, 0, ACK, False),
        ("DOWN", 0, 0, QUERY, False),
        ("DOWN", 0, KEEP, ACK, True),
        ("DOWN", 0, KEEP, QUERY, True),
        ("DOWN", 0, KEEP, SYN, False),
        ("DOWN", BackendFlag.FORCED_UP, 0, ACK, True),
        ("UP", BackendFlag.FORCED_DOWN, 0, ACK, False),
        ("UP", BackendFlag.FORCED_DOWN, KEEP, ACK, True),
        ("UP", BackendFlag.FORCED_DOWN, KEEP, SYN, False),
        ("UNKNOWN", 0, 0, ACK, True),  # unknown is no reason to leave
        ("UNKNOWN", 0, 0, SYN, True),
        ("UP", BackendFlag.NO_NEW, 0, ACK, True),
        ("UP", BackendFlag.NO_NEW, 0, QUERY, True),
        ("UP", BackendFlag.NO_NEW, 0, SYN, False),
        ("DOWN", BackendFlag.NO_NEW, 0, ACK, False),
        ("UP", 0, 0, SYN, True),
    ],
)
@both
def test_flows_of_a_backend_that_is_down_or_draining(
    bed: Bed, net: Net, state: str, b1: int, flags: int, segment: Segment, kept: bool
) -> None:
    learnt(bed, net, QUERY if segment is QUERY else ACK, flags=flags)
    bed.configure(one(net, DSR, pools=(two(net, "b2", flags=b1),), flags=flags))
    bed.set_health("web/b1", HealthState[state])
    assert goes_to(bed, net, segment) == ("b1" if kept else "b2")


@both
def test_a_health_entry_of_another_life_takes_no_flow_away(bed: Bed, net: Net) -> None:
    world = learnt(bed, net, ACK)
    other = world.id("web/b1") + (1 << abi.IdLayout.INDEX_BITS)
    bed.maps.health.put(world.index("web/b1"), abi.Health(id=other, state=HealthState.DOWN))
    assert goes_to(bed, net, ACK) == "b1"


@pytest.mark.parametrize("what", ["backend", "frontend"])
@both
def test_a_flow_whose_ids_mean_nothing_is_not_used(bed: Bed, net: Net, what: str) -> None:
    """A bump of an incarnation flushes: flows are chosen anew, and the old entry is replaced."""
    learnt(bed, net, ACK)
    if what == "backend":
        bed.configure(one(net, DSR, pools=(two(net, "b2", incarnation=2),)))
    else:
        stale = abi.Flow(backend=bed.world.id("web/b1"), frontend=99, seen=kernel.now_tick())
        getattr(bed.maps, f"flows{net.version}").put(key(net), stale)
    assert goes_to(bed, net, ACK) == "b2"
    assert [flow.backend for flow in bed.flows(net.version).values()] == [bed.world.id("web/b2")]


@both
def test_an_entry_that_is_not_used_is_deleted(bed: Bed, net: Net) -> None:
    """Even by a packet that leaves nothing itself; and it no longer counts as live."""
    learnt(bed, net, ACK)
    assert bed.live("web/b1") == 1
    bed.set_health("web/b1", HealthState.DOWN)
    assert goes_to(bed, net, tcp(41000, 80, "FA")) == "b2"
    assert bed.flows(net.version) == {}
    assert (bed.live("web/b1"), bed.live("web/b2")) == (0, 0)


# ---- the end of a flow ----


@pytest.mark.parametrize("ending", ["FA", "F", "R", "RA"])
@both
def test_where_replies_do_not_pass_the_clients_end_is_the_end(
    bed: Bed, net: Net, ending: str
) -> None:
    learnt(bed, net, ACK)
    goes_to(bed, net, tcp(41000, 80, ending))
    flow = bed.flows(net.version)[key(net)]
    cause = FlowState.RESET if "R" in ending else FlowState.CLIENT_FIN
    assert FlowState(flow.state) == cause | FlowState.CLOSED
    assert bed.live("web/b1") == 0
    goes_to(bed, net, tcp(41000, 80, ending))
    assert bed.live("web/b1") == 0  # taken back once


@pytest.mark.parametrize(
    ("ticks", "flags", "kept"), [(10, "A", True), (11, "A", False), (0, "S", False)]
)
@both
def test_a_closed_flow_is_remembered_for_its_last_packets_only(
    bed: Bed, net: Net, ticks: int, flags: str, kept: bool
) -> None:
    def attempt() -> str:
        learnt(bed, net, ACK)
        goes_to(bed, net, tcp(41000, 80, "R"))
        bed.age(ticks)
        return goes_to(bed, net, tcp(41000, 80, flags))

    assert bed.within_one_tick(attempt) == ("b1" if kept else "b2")


def reply_frame(net: Net, flags: str) -> bytes:
    return from_backend(ip(net.backends[0], net.client, tcp(8080, 41000, flags)))


@pytest.mark.parametrize(
    ("events", "state"),
    [
        (["client FA"], FlowState.CLIENT_FIN),
        (["backend FA"], FlowState.BACKEND_FIN),
        (["client FA", "backend A"], FlowState.CLIENT_FIN),
        (
            ["client FA", "backend FA"],
            FlowState.CLIENT_FIN | FlowState.BACKEND_FIN | FlowState.CLOSED,
        ),
        (
            ["backend FA", "client A", "client FA"],
            FlowState.CLIENT_FIN | FlowState.BACKEND_FIN | FlowState.CLOSED,
        ),
        (["client R"], FlowState.RESET | FlowState.CLOSED),
        (["backend RA"], FlowState.RESET | FlowState.CLOSED),
    ],
    ids=str,
)
@both
def test_nat_follows_both_directions(
    bed: Bed, net: Net, events: list[str], state: FlowState
) -> None:
    """The flow and its return entry agree; a closed one counts as live no more."""
    learnt(bed, net, ACK, NAT)
    for event in events:
        side, flags = event.split()
        if side == "client":
            bed.expect(net.frame(tcp(41000, 80, flags)), Verdict.FORWARDED)
        else:
            bed.expect(reply_frame(net, flags), Verdict.RETURNED, at=BACKENDS)
    flow = bed.flows(net.version)[key(net)]
    (entry,) = bed.returns(net.version).values()
    assert FlowState(flow.state) == state
    assert FlowState(entry.flow.state) == state
    assert bed.live("web/b1") == (0 if state & FlowState.CLOSED else 1)


# ---- table only ----


@both
def test_a_service_without_flows_neither_reads_nor_deletes_any(bed: Bed, net: Net) -> None:
    learnt(bed, net, ACK)
    bed.configure(one(net, DSR, pools=(two(net, "b2"),), flags=OFF))
    before = bed.flows(net.version)
    assert goes_to(bed, net, ACK) == "b2"
    assert goes_to(bed, net, tcp(41000, 80, "R")) == "b2"
    assert bed.flows(net.version) == before


@both
def test_beside_a_service_without_flows_another_keeps_its_own(bed: Bed, net: Net) -> None:
    """One address, two services: that the table is asked first for one costs the other nothing."""

    def world(slot: str) -> World:
        plain = service(net, two(net, slot), forward=DSR, frontends=((net.vip, 80, "tcp"),))
        table = replace(plain, name="table", frontends=((net.vip, 81, "tcp"),), flags=OFF)
        return World((plain, table))

    bed.load(world("b1"))
    for port in (80, 81):
        assert goes_to(bed, net, tcp(41000, port)) == "b1"
    bed.configure(world("b2"))
    assert goes_to(bed, net, tcp(41000, 80)) == "b1"
    assert goes_to(bed, net, tcp(41000, 81)) == "b2"
