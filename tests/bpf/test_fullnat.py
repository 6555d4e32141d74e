"""fullnat: the node's address as source, a port of its own for each flow. §3, §5, §7."""

from typing import Any

import pytest

from bpf import abi, kernel
from bpf.abi import FlowState, Forward, Verdict
from tests.support.bed import BACKENDS, CLIENTS, Action, Bed, reconfigured
from tests.support.frames import TCP, UDP, Segment, describe, ip, tcp, udp
from tests.support.scenes import (
    V4,
    Net,
    backend,
    both,
    from_backend,
    one,
    pool,
    to_backend,
    to_client,
)
from tests.support.world import World, flow_key, tuple_hash

FULLNAT = Forward.FULLNAT
LOW, HIGH = 40000, 49999


def first_port(
    net: Net, sport: int, dport: int, protocol: int, low: int = LOW, high: int = HIGH
) -> int:
    """Where the search for a source port begins."""
    hashed = tuple_hash(net.client, sport, net.vip, dport, protocol)
    return low + (hashed & 0xFFFFFFFF) % (high - low + 1)


def source_port(frame: bytes) -> int:
    fields = describe(frame)
    return int(str(fields.get("tcp") or fields["udp"]).split(" > ")[0])


def narrow(net: Net, low: int, high: int, **fields: Any) -> World:
    return reconfigured(one(net, FULLNAT, **fields), port_low=low, port_high=high)


# ---- both directions ----


@pytest.mark.parametrize("protocol", [TCP, UDP], ids=["TCP", "UDP"])
@pytest.mark.parametrize(("port", "backend_port"), [(80, 8080), (80, 0), (None, 8080)])
@both
def test_there_and_back(
    bed: Bed, net: Net, protocol: int, port: int | None, backend_port: int
) -> None:
    make = tcp if protocol == TCP else udp
    backends = (backend(net, 1, port=backend_port),)
    frontends = ((net.vip, port, "tcp"), (net.vip, port, "udp"))
    bed.load(one(net, FULLNAT, pools=(pool(net, backends=backends),), frontends=frontends))
    dport = port or 1234
    inside = backend_port if port and backend_port else dport
    own = first_port(net, 5000, dport, protocol)
    bed.expect(
        net.frame(make(5000, dport)),
        Verdict.FORWARDED,
        to_backend(ip(net.nat_source, net.backends[0], make(own, inside), ttl=63)),
    )
    bed.expect(
        from_backend(ip(net.backends[0], net.nat_source, make(inside, own))),
        Verdict.RETURNED,
        to_client(ip(net.vip, net.client, make(dport, 5000), ttl=63)),
        at=BACKENDS,
    )


def test_a_udp_checksum_of_0_stays_0(bed: Bed) -> None:
    bed.load(one(V4, FULLNAT))
    own = first_port(V4, 5000, 53, UDP)
    bed.expect(
        V4.frame(udp(5000, 53, checksum=0)),
        Verdict.FORWARDED,
        to_backend(ip(V4.nat_source, V4.backends[0], udp(own, 8080, checksum=0), ttl=63)),
    )


@both
def test_one_armed_it_goes_out_where_it_came_in(bed: Bed, net: Net) -> None:
    backends = (backend(net, 1, ifindex=CLIENTS),)
    bed.load(one(net, FULLNAT, pools=(pool(net, backends=backends),)))
    bed.expect(net.frame(tcp(5000, 80, "S")), Verdict.FORWARDED, action=Action.TX)


@both
def test_an_open_connection_keeps_its_port_through_the_handshake(bed: Bed, net: Net) -> None:
    bed.load(one(net, FULLNAT))
    own = first_port(net, 5000, 80, TCP)
    for flags in ("S", "S", "A", "PA", "FA"):
        out = bed.expect(net.frame(tcp(5000, 80, flags)), Verdict.FORWARDED).frame
        assert source_port(out) == own
        reply = ip(net.backends[0], net.nat_source, tcp(8080, own, "SA" if flags == "S" else "A"))
        bed.expect(from_backend(reply), Verdict.RETURNED, at=BACKENDS)
    flow = bed.flows(net.version)[flow_key(net.client, 5000, net.vip, 80, TCP)]
    assert flow.hop in (own, int.from_bytes(own.to_bytes(2, "big"), "little"))


# ---- ports ----


@both
def test_no_two_flows_share_a_port_to_one_backend(bed: Bed, net: Net) -> None:
    """200 flows in a range of 1000: all different, all inside the range."""
    bed.load(narrow(net, 50000, 50999))
    ports = [
        source_port(bed.expect(net.frame(udp(5000 + i, 53)), Verdict.FORWARDED).frame)
        for i in range(200)
    ]
    assert len(set(ports)) == 200
    assert min(ports) >= 50000
    assert max(ports) <= 50999


@both
def test_a_taken_port_means_the_next_one_and_the_range_wraps(bed: Bed, net: Net) -> None:
    """A range of eight: eight flows fit, in the order of the search; the ninth does not."""
    low, high = 50000, 50007
    bed.load(narrow(net, low, high))
    taken: set[int] = set()
    for sport in range(5000, 5008):
        start = first_port(net, sport, 53, UDP, low, high)
        candidates = [low + (start - low + k) % 8 for k in range(8)]
        want = next(port for port in candidates if port not in taken)
        out = bed.expect(net.frame(udp(sport, 53)), Verdict.FORWARDED).frame
        assert source_port(out) == want
        taken.add(want)
    bed.expect(net.frame(udp(5008, 53)), Verdict.PORTS_TAKEN)
    assert bed.counted("www").flows == bed.live("web/b1") == 8


@pytest.mark.parametrize("blocked", [15, 16])
@both
def test_sixteen_ports_are_tried(bed: Bed, net: Net, blocked: int) -> None:
    world = bed.load(one(net, FULLNAT))
    start = first_port(net, 5000, 53, UDP)
    for k in range(blocked):
        occupy(bed, net, world, LOW + (start - LOW + k) % (HIGH - LOW + 1))
    outcome = bed.send(net.frame(udp(5000, 53)))
    if blocked < abi.Limit.PORT_TRIES:
        assert outcome.verdict == Verdict.FORWARDED
        assert source_port(outcome.frame) == LOW + (start - LOW + blocked) % (HIGH - LOW + 1)
    else:
        assert outcome.verdict == Verdict.PORTS_TAKEN
        assert bed.flows(net.version) == {}


def occupy(bed: Bed, net: Net, world: World, port: int, **flow: int) -> Any:
    """Another client's return entry at a port."""
    entries = getattr(bed.maps, f"returns{net.version}")
    kind: Any = abi.Return4 if net.version == 4 else abi.Return6
    ids = {"backend": world.id("web/b1"), "frontend": world.id("www/1")}
    key = flow_key(net.backends[0], 8080, net.nat_source, port, UDP)
    owner = flow_key(net.client2, 9, net.vip, 53, UDP)
    entries.put(
        key, kind(client=owner, flow=abi.Flow(**{"seen": kernel.now_tick(), **ids, **flow}))
    )
    return key


@pytest.mark.parametrize("low", [65535, 65530, 1, 0])
@both
def test_a_range_at_the_edge_of_the_port_numbers(bed: Bed, net: Net, low: int) -> None:
    high = min(low + 5, 65535)
    bed.load(narrow(net, low, high))
    size = high - low + 1
    ports = {
        source_port(bed.expect(net.frame(udp(5000 + i, 53)), Verdict.FORWARDED).frame)
        for i in range(size)
    }
    assert ports == set(range(low, high + 1))
    bed.expect(net.frame(udp(6000, 53)), Verdict.PORTS_TAKEN)


@both
def test_another_backend_has_all_ports_free(bed: Bed, net: Net) -> None:
    bed.load(narrow(net, 50000, 50000, count=2, frontends=((net.vip, 53, "udp"),)))
    owners: dict[str, int] = {}
    for sport in range(5000, 5020):
        outcome = bed.send(net.frame(udp(sport, 53)))
        if outcome.verdict == Verdict.FORWARDED:
            assert outcome.backend not in owners
            owners[outcome.backend] = source_port(outcome.frame)
        else:
            assert outcome.verdict == Verdict.PORTS_TAKEN
    assert owners == {"b1": 50000, "b2": 50000}


CLOSED = int(FlowState.RESET | FlowState.CLOSED)


@pytest.mark.parametrize(
    ("state", "age", "reused"),
    [(0, 57, False), (CLOSED, 0, False), (CLOSED, 56, False), (CLOSED, 57, True)],
)
@both
def test_a_released_port_rests(bed: Bed, net: Net, state: int, age: int, reused: bool) -> None:
    def attempt() -> Verdict:
        world = bed.load(narrow(net, 50000, 50000))
        occupy(bed, net, world, 50000, state=state, seen=kernel.now_tick() - age)
        return bed.send(net.frame(udp(5000, 53))).verdict

    assert bed.within_one_tick(attempt) == (Verdict.FORWARDED if reused else Verdict.PORTS_TAKEN)


@pytest.mark.parametrize("stale", [{"frontend": 99}, {"backend": 99}], ids=str)
@both
def test_a_port_of_a_flow_whose_ids_mean_nothing_is_free(
    bed: Bed, net: Net, stale: dict[str, int]
) -> None:
    world = bed.load(narrow(net, 50000, 50000))
    occupy(bed, net, world, 50000, **stale)
    bed.expect(net.frame(udp(5000, 53)), Verdict.FORWARDED)


@both
def test_a_closed_connection_releases_its_port_after_its_rest(bed: Bed, net: Net) -> None:
    bed.load(narrow(net, 50000, 50000))
    bed.expect(net.frame(tcp(5000, 80)), Verdict.FORWARDED)
    bed.expect(net.frame(tcp(5001, 80)), Verdict.PORTS_TAKEN)
    bed.expect(net.frame(tcp(5000, 80, "R")), Verdict.FORWARDED)
    bed.expect(net.frame(tcp(5001, 80)), Verdict.PORTS_TAKEN)
    bed.age(58)
    bed.expect(net.frame(tcp(5001, 80)), Verdict.FORWARDED)
    reply = from_backend(ip(net.backends[0], net.nat_source, tcp(8080, 50000)))
    want = to_client(ip(net.vip, net.client, tcp(80, 5001), ttl=63))
    bed.expect(reply, Verdict.RETURNED, want, at=BACKENDS)


@both
def test_a_lost_return_entry_is_asserted_with_the_same_port(bed: Bed, net: Net) -> None:
    bed.load(one(net, FULLNAT))
    out = bed.expect(net.frame(tcp(5000, 80)), Verdict.FORWARDED).frame
    (key,) = bed.returns(net.version)
    getattr(bed.maps, f"returns{net.version}").delete(key)
    bed.age(1)
    assert bed.expect(net.frame(tcp(5000, 80)), Verdict.FORWARDED).frame == out
    assert list(bed.returns(net.version)) == [key]


# ---- what is neither a flow nor the start of one ----


@pytest.mark.parametrize("flags", ["FA", "R", "RA", "SA", ""])
@both
def test_a_packet_that_can_start_nothing_is_dropped(bed: Bed, net: Net, flags: str) -> None:
    bed.load(one(net, FULLNAT))
    bed.expect(net.frame(tcp(5000, 80, flags)), Verdict.NO_FLOW)
    assert bed.remembered(net.version) == (0, 0, 0)


@pytest.mark.parametrize(
    ("segment", "verdict"),
    [
        (tcp(8080, LOW), Verdict.UNKNOWN_PORT),
        (tcp(8080, HIGH), Verdict.UNKNOWN_PORT),
        (tcp(8080, 45000, "S"), Verdict.UNKNOWN_PORT),
        (udp(8080, 45000), Verdict.UNKNOWN_PORT),
        (tcp(8080, LOW - 1), Verdict.NOT_OURS),
        (tcp(8080, HIGH + 1), Verdict.NOT_OURS),
        (udp(8080, 22), Verdict.NOT_OURS),
        (tcp(8080, 45000, offset=3), Verdict.NOT_OURS),
        (udp(8080, 45000, length=3), Verdict.NOT_OURS),
    ],
)
@both
def test_the_port_range_belongs_to_the_program(
    bed: Bed, net: Net, segment: Segment, verdict: Verdict
) -> None:
    """Unknown packets to it are dropped, since the kernel would reset; the rest is the node's."""
    bed.load(one(net, FULLNAT))
    bed.expect(from_backend(ip(net.backends[0], net.nat_source, segment)), verdict, at=BACKENDS)


@both
def test_from_another_address_the_reply_is_unknown(bed: Bed, net: Net) -> None:
    bed.load(one(net, FULLNAT))
    own = source_port(bed.expect(net.frame(tcp(5000, 80)), Verdict.FORWARDED).frame)
    for source, port in ((net.backends[1], 8080), (net.backends[0], 8081)):
        frame = from_backend(ip(source, net.nat_source, tcp(port, own)))
        bed.expect(frame, Verdict.UNKNOWN_PORT, at=BACKENDS)


@both
def test_without_a_source_address_it_is_misconfigured(bed: Bed, net: Net) -> None:
    bed.load(reconfigured(one(net, FULLNAT), **{f"nat_source{net.version}": ""}))
    bed.expect(net.frame(tcp(5000, 80, "S")), Verdict.MISCONFIGURED)
    assert bed.remembered(net.version) == (0, 0, 0)
