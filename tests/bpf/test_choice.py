"""Which slot a packet gets: hashes, balancing methods, weights, several pools. §4."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from bpf.abi import BackendFlag, Balance, Forward, HashFields, ServiceFlag, Verdict
from tests.support.bed import Bed
from tests.support.frames import TCP, UDP, Segment, cut, eth, fragment, hop_by_hop, ipv6, tcp, udp
from tests.support.scenes import V6, Net, backend, both, one, pool, service
from tests.support.world import Health, Pool, World, fill, slot_of, tuple_hash

OFF = ServiceFlag.FLOWS_OFF


def numbered(net: Net, size: int = 61, count: int = 8) -> Pool:
    """Slot s belongs to backend s mod count + 1: which backend tells which slot, for few slots."""
    return pool(
        net, count, size=size, step=1, slots=tuple(f"b{s % count + 1}" for s in range(size))
    )


def expected_backend(made: Pool, slot: int) -> str:
    slots = made.slots or fill(made)
    return str(slots[slot])


TUPLES = [(f"{i}", 1024 + 977 * i % 64000) for i in range(40)]


@pytest.mark.parametrize("fields", HashFields, ids=lambda f: f.name)
@pytest.mark.parametrize("size", [1, 7, 61, 1021])
@both
def test_the_hash_of_the_chosen_fields_names_the_slot(
    bed: Bed, net: Net, size: int, fields: HashFields
) -> None:
    made = numbered(net, size)
    bed.load(one(net, Forward.DSR, pools=(made,), hash=fields, flags=OFF))
    for host, port in TUPLES:
        src = _client(net, int(host))
        for segment, protocol, dport in ((tcp(port, 80), TCP, 80), (udp(port, 53), UDP, 53)):
            slot = slot_of(tuple_hash(src, port, net.vip, dport, protocol, fields), size)
            outcome = bed.expect(net.frame(segment, src=src), Verdict.FORWARDED)
            assert outcome.backend == expected_backend(made, slot)


def _client(net: Net, number: int) -> str:
    return f"203.0.113.{number}" if net.version == 4 else f"2001:db8:f:{number:x}::{number * 7:x}"


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        (HashFields.FIVE_TUPLE, {"nothing"}),
        (HashFields.SOURCE, {"source port", "service port", "protocol", "address"}),
        (HashFields.SOURCE_PORT, {"source port", "address"}),
    ],
    ids=["5-tuple", "source", "source and port"],
)
@both
def test_a_hash_ignores_what_it_does_not_name(
    bed: Bed, net: Net, fields: HashFields, same: set[str]
) -> None:
    """Over 30 clients: a field that does not count never moves one, a field that counts moves most."""
    frontends = tuple(
        (a, p, t) for a in (net.vip, net.vip2) for p in (80, 81) for t in ("tcp", "udp")
    )
    bed.load(
        one(net, Forward.DSR, pools=(numbered(net),), hash=fields, flags=OFF, frontends=frontends)
    )

    def chosen(src: str, segment: Segment, dst: str = "") -> str:
        return bed.expect(net.frame(segment, src=src, dst=dst), Verdict.FORWARDED).backend

    moved: Counter[str] = Counter()
    for host in range(30):
        src = _client(net, host + 1)
        home = chosen(src, tcp(41000, 80))
        moved["source port"] += chosen(src, tcp(41001, 80)) != home
        moved["service port"] += chosen(src, tcp(41000, 81)) != home
        moved["protocol"] += chosen(src, udp(41000, 80)) != home
        moved["address"] += chosen(src, tcp(41000, 80), net.vip2) != home
    for field in ("source port", "service port", "protocol", "address"):
        assert moved[field] == 0 if field in same else moved[field] > 15, (field, moved)


@both
def test_a_fragment_is_hashed_with_ports_0(bed: Bed, net: Net) -> None:
    made = numbered(net)
    bed.load(one(net, Forward.DSR, pools=(made,), flags=OFF, frontends=((net.vip, None, "udp"),)))
    whole = net.packet(udp(5000, 53, bytes(96)))
    want = expected_backend(made, slot_of(tuple_hash(net.client, 0, net.vip, 0, UDP), made.size))
    for piece in (cut(whole, 0, 48), cut(whole, 48, 56)):
        assert bed.expect(eth(piece), Verdict.FORWARDED).backend == want


def test_extension_headers_do_not_change_the_hash(bed: Bed) -> None:
    bed.load(one(V6, Forward.DSR, pools=(numbered(V6),), flags=OFF))
    for port in range(41000, 41010):
        plain = bed.expect(V6.frame(tcp(port, 80)), Verdict.FORWARDED).backend
        packet = ipv6(V6.client, V6.vip, tcp(port, 80), extensions=(hop_by_hop(), fragment()))
        assert bed.expect(eth(packet), Verdict.FORWARDED).backend == plain


# ---- methods ----


def syns(net: Net, count: int) -> Iterator[bytes]:
    return (net.frame(tcp(20000 + i, 80, "S")) for i in range(count))


def shares(bed: Bed, frames: Iterator[bytes]) -> Counter[str]:
    return Counter(bed.expect(frame, Verdict.FORWARDED).backend for frame in frames)


@pytest.mark.parametrize(
    "balance", [Balance.HASH, Balance.ROUND_ROBIN, Balance.RANDOM], ids=lambda b: b.name
)
@pytest.mark.parametrize("weights", [(1, 1), (1, 3), (1, 10), (2, 3, 5)], ids=str)
@both
def test_shares_follow_the_weights(
    bed: Bed, net: Net, balance: Balance, weights: tuple[int, ...]
) -> None:
    """Within 5 standard deviations of 1000 draws; round-robin to the slot."""
    backends = tuple(backend(net, i + 1, weight=w) for i, w in enumerate(weights))
    total, draws = sum(weights), 1000
    size = 100 * total
    bed.load(
        one(
            net,
            Forward.DSR,
            pools=(pool(net, backends=backends, size=size, step=1),),
            balance=balance,
        )
    )
    got = shares(bed, syns(net, draws))
    for number, weight in enumerate(weights, 1):
        share = weight / total
        slack = (
            total if balance == Balance.ROUND_ROBIN else 5 * (draws * share * (1 - share)) ** 0.5
        )
        assert abs(got[f"b{number}"] - draws * share) <= slack, got


@both
def test_round_robin_takes_slot_after_slot_from_the_first(bed: Bed, net: Net) -> None:
    bed.load(one(net, Forward.DSR, pools=(numbered(net, 8),), balance=Balance.ROUND_ROBIN))
    got = [bed.expect(frame, Verdict.FORWARDED).backend for frame in syns(net, 20)]
    assert got == [f"b{i % 8 + 1}" for i in range(20)]


@both
def test_the_cursor_counts_packets_that_consult_it_whatever_becomes_of_them(
    bed: Bed, net: Net
) -> None:
    bed.load(one(net, Forward.NAT, pools=(numbered(net, 8),), balance=Balance.ROUND_ROBIN))
    bed.expect(net.frame(tcp(41000, 80, "S")), Verdict.FORWARDED)
    bed.expect(net.frame(tcp(41001, 80, "S"), ttl=1), Verdict.TTL_EXPIRED)
    bed.expect(net.frame(tcp(41002, 80)), Verdict.FORWARDED)  # takes the hash slot
    bed.expect(net.frame(tcp(41000, 80, "S")), Verdict.FORWARDED)  # is half-open already
    assert bed.expect(net.frame(tcp(41003, 80, "S")), Verdict.FORWARDED).backend == "b3"


@both
def test_round_robin_has_a_cursor_for_each_service(bed: Bed, net: Net) -> None:
    made = pool(net, 4, size=4, step=1, slots=("b1", "b2", "b3", "b4"))
    bed.load(
        World(
            tuple(
                service(
                    net, made, name=name, frontends=((net.vip, port, "tcp"),),
                    balance=Balance.ROUND_ROBIN, forward=Forward.DSR,
                )
                for name, port in (("one", 80), ("two", 81))
            )
        )
    )  # fmt: skip
    ports = (80, 80, 81, 80, 81, 81)
    got = [
        bed.expect(net.frame(tcp(41000 + i, port, "S")), Verdict.FORWARDED).backend
        for i, port in enumerate(ports)
    ]
    assert got == ["b1", "b2", "b1", "b3", "b2", "b3"]


@pytest.mark.parametrize(
    "balance",
    [Balance.ROUND_ROBIN, Balance.RANDOM, Balance.LEAST_CONNECTIONS],
    ids=lambda b: b.name,
)
@both
def test_a_tcp_packet_without_syn_and_flow_takes_the_hash_slot(
    bed: Bed, net: Net, balance: Balance
) -> None:
    made = numbered(net)
    bed.load(one(net, Forward.DSR, pools=(made,), balance=balance, flags=OFF))
    for port in range(41000, 41012):
        want = expected_backend(made, slot_of(tuple_hash(net.client, port, net.vip, 80, TCP), 61))
        for flags in ("A", "PA", "F", "R", "SA", ""):
            assert bed.expect(net.frame(tcp(port, 80, flags)), Verdict.FORWARDED).backend == want


@both
def test_udp_is_balanced_by_the_method_too(bed: Bed, net: Net) -> None:
    bed.load(one(net, Forward.DSR, pools=(numbered(net, 8),), balance=Balance.ROUND_ROBIN))
    frames = (net.frame(udp(20000 + i, 53)) for i in range(8))
    assert shares(bed, frames) == {f"b{i}": 1 for i in range(1, 9)}


@pytest.mark.parametrize(
    ("live", "weights", "winner"),
    [
        ((0, 5), (1, 1), "b1"),
        ((5, 0), (1, 1), "b2"),
        ((10, 25), (1, 3), "b2"),  # 10 * 3 > 25 * 1
        ((10, 35), (1, 3), "b1"),
        ((3, 2), (0, 1), "b2"),  # weight 0 counts as 1
        ((2, 3), (0, 1), "b1"),
        ((4_000_000_000, 4_100_000_000), (1, 1), "b1"),
        ((4_000_000_000, 3), (60000, 1), "b2"),
    ],
    ids=str,
)
@both
def test_least_connections_prefers_fewer_live_flows_for_its_weight(
    bed: Bed, net: Net, live: tuple[int, int], weights: tuple[int, int], winner: str
) -> None:
    """Two draws of two slots: the loser gets only the quarter in which both draws name it."""
    backends = tuple(backend(net, i + 1, weight=w) for i, w in enumerate(weights))
    made = pool(net, backends=backends, size=2, step=1, slots=("b1", "b2"))
    world = bed.load(one(net, Forward.DSR, pools=(made,), balance=Balance.LEAST_CONNECTIONS))
    got: Counter[str] = Counter()
    for frame in syns(net, 200):
        for name, count in zip(("web/b1", "web/b2"), live, strict=True):
            bed.maps.live.put(world.index(name), count)
        got[bed.expect(frame, Verdict.FORWARDED).backend] += 1
    assert 115 < got[winner] < 185, got  # 150, 5 standard deviations


@both
def test_least_connections_takes_what_one_of_its_walks_finds(bed: Bed, net: Net) -> None:
    backends = (backend(net, 1), backend(net, 2, health=Health.DOWN))
    slots = ("b1",) + ("b2",) * 60
    made = pool(net, backends=backends, slots=slots, no_spares=True)
    flags = ServiceFlag.FAIL_CLOSED
    bed.load(one(net, Forward.DSR, pools=(made,), balance=Balance.LEAST_CONNECTIONS, flags=flags))
    got = Counter(bed.send(frame).verdict for frame in syns(net, 300))
    assert set(got) == {Verdict.FORWARDED, Verdict.NO_BACKEND}
    assert 40 < got[Verdict.FORWARDED] < 130, got  # of 61 slots 9 find b1: 27 % of the pairs


@both
def test_least_connections_evens_out(bed: Bed, net: Net) -> None:
    bed.load(one(net, Forward.DSR, pools=(numbered(net, 8),), balance=Balance.LEAST_CONNECTIONS))
    got = shares(bed, syns(net, 400))
    assert max(got.values()) - min(got.values()) <= 16, got


# ---- pools ----


def two_pools(net: Net, first: Health, second: Health, **fields: Any) -> World:
    """b1 in the first pool, b2 in the second."""
    return one(
        net,
        Forward.DSR,
        pools=(
            pool(net, name="first", backends=(backend(net, 1, health=first),)),
            pool(net, name="second", backends=(backend(net, 2, health=second),)),
        ),
        **fields,
    )


UP, DOWN = Health.UP, Health.DOWN


@pytest.mark.parametrize(
    ("first", "second", "short", "flags", "chosen"),
    [
        (UP, UP, (), 0, "b1"),
        (DOWN, UP, (), 0, "b2"),
        (UP, UP, (0,), 0, "b2"),  # the first is below its panic share, the second meets its own
        (UP, UP, (1,), 0, "b1"),
        (UP, UP, (0, 1), 0, "b1"),  # none does: the first is used whole
        (DOWN, UP, (0, 1), 0, "b1"),
        (DOWN, DOWN, (), 0, "b1"),  # fail open
        (DOWN, DOWN, (0,), 0, "b1"),
        (UP, DOWN, (0,), 0, "b1"),
        (DOWN, DOWN, (), ServiceFlag.FAIL_CLOSED, None),
        (UP, UP, (0, 1), ServiceFlag.FAIL_CLOSED, None),
        (UP, DOWN, (0,), ServiceFlag.FAIL_CLOSED, None),
        (DOWN, UP, (), ServiceFlag.FAIL_CLOSED, "b2"),
    ],
)
@both
def test_the_first_pool_that_can_serve_does(
    bed: Bed,
    net: Net,
    first: Health,
    second: Health,
    short: tuple[int, ...],
    flags: int,
    chosen: str | None,
) -> None:
    bed.load(two_pools(net, first, second, short_pools=short, flags=flags))
    for segment in (tcp(41000, 80, "S"), tcp(41000, 80), udp(5000, 53)):
        outcome = bed.send(net.frame(segment))
        if chosen is None:
            assert outcome.verdict == Verdict.NO_BACKEND
        else:
            assert (outcome.verdict, outcome.backend) == (Verdict.FORWARDED, chosen)


@both
def test_eight_pools_are_tried_in_order(bed: Bed, net: Net) -> None:
    for last in range(1, 9):
        pools = tuple(
            pool(net, name=f"p{i}", backends=(backend(net, i, health=UP if i >= last else DOWN),))
            for i in range(1, 9)
        )
        bed.load(one(net, Forward.DSR, pools=pools, flags=ServiceFlag.FAIL_CLOSED))
        assert bed.expect(net.frame(udp(5000, 53)), Verdict.FORWARDED).backend == f"b{last}"


@pytest.mark.parametrize(
    "fields", [{"known_as": 9}, {"no_table": True}, {"size": 61, "slots": ("",) * 61}]
)
@both
def test_a_pool_that_is_not_there_is_as_if_it_had_no_backend(
    bed: Bed, net: Net, fields: dict[str, object]
) -> None:
    lost = pool(net, 1, "lost", **fields)
    rest = pool(net, name="rest", backends=(backend(net, 2),))
    bed.load(one(net, Forward.DSR, pools=(lost, rest)))
    assert bed.expect(net.frame(tcp(41000, 80)), Verdict.FORWARDED).backend == "b2"
    bed.load(one(net, Forward.DSR, pools=(lost,)))
    bed.expect(net.frame(tcp(41000, 80)), Verdict.NO_BACKEND)


@both
def test_a_service_without_pools_has_no_backend(bed: Bed, net: Net) -> None:
    bed.load(World((service(net, pool(net, 0, "empty"), forward=Forward.DSR),)))
    bed.expect(net.frame(tcp(41000, 80, "S")), Verdict.NO_BACKEND)
    assert bed.remembered(net.version) == (0, 0, 0)


@both
def test_a_backend_that_is_forced_down_is_not_used_even_whole(bed: Bed, net: Net) -> None:
    forced = backend(net, 1, flags=BackendFlag.FORCED_DOWN)
    bed.load(one(net, Forward.DSR, pools=(pool(net, backends=(forced,)),)))
    bed.expect(net.frame(tcp(41000, 80, "S")), Verdict.NO_BACKEND)
