"""Replies that find no entry: derived from the table, so that a peer can take over without shared state. §7."""

from collections.abc import Callable

import pytest

from bpf import abi
from bpf.abi import Balance, FlowState, Forward, ServiceFlag, Verdict
from tests.support.bed import BACKENDS, Bed
from tests.support.frames import TCP, Segment, cut, ip, tcp, udp
from tests.support.scenes import V4, Net, backend, both, from_backend, one, pool, to_client
from tests.support.world import Health, World, flow_key

Builder = Callable[[int, int], Segment]


def reply(net: Net, segment: Segment, *, number: int = 1, dst: str = "") -> bytes:
    return from_backend(ip(net.backends[number - 1], dst or net.client, segment), number)


def answer(net: Net, segment: Segment, *, src: str = "") -> bytes:
    return to_client(ip(src or net.vip, net.client, segment, ttl=63))


def tcp_with(flags: str) -> Builder:
    return lambda a, b: tcp(a, b, flags)


KINDS: dict[str, tuple[Builder, int, bool]] = {  # segment, service port, is it learnt
    "ACK": (tcp_with("A"), 80, True),
    "SYN and ACK": (tcp_with("SA"), 80, True),
    "data": (tcp_with("PA"), 80, True),
    "SYN": (tcp_with("S"), 80, False),
    "FIN": (tcp_with("FA"), 80, False),
    "RST": (tcp_with("R"), 80, False),
    "UDP": (lambda a, b: udp(a, b), 53, True),
}


@pytest.mark.parametrize("flags", [0, ServiceFlag.FLOWS_OFF], ids=["flows", "no flows"])
@pytest.mark.parametrize(("segment", "port", "learns"), KINDS.values(), ids=KINDS)
@both
def test_a_reply_without_an_entry_is_translated_and_learnt(
    bed: Bed, net: Net, segment: Builder, port: int, learns: bool, flags: int
) -> None:
    bed.load(one(net, flags=flags))
    bed.expect(
        reply(net, segment(8080, 41000)),
        Verdict.RETURNED,
        answer(net, segment(port, 41000)),
        at=BACKENDS,
    )
    kept = learns and not flags
    assert bed.remembered(net.version) == ((1, 1, 0) if kept else (0, 0, 0))
    assert bed.live("web/b1") == bed.counted("www").flows == (1 if kept else 0)


@both
def test_what_was_derived_serves_the_clients_next_packet(bed: Bed, net: Net) -> None:
    made = pool(net, 2, slots=("b1",) * 61)
    bed.load(one(net, pools=(made,)))
    bed.expect(reply(net, tcp(8080, 41000)), Verdict.RETURNED, at=BACKENDS)
    assert list(bed.flows(net.version)) == [flow_key(net.client, 41000, net.vip, 80, TCP)]
    bed.configure(one(net, pools=(pool(net, 2, slots=("b2",) * 61),)))
    assert bed.expect(net.frame(tcp(41000, 80)), Verdict.FORWARDED).backend == "b1"


@pytest.mark.parametrize("flags", ["S", "A"], ids=["half-open", "known"])
@both
def test_a_client_whose_flow_is_known_is_not_learnt_again(bed: Bed, net: Net, flags: str) -> None:
    """Only the return entry is gone: the client's next packet brings it back."""
    bed.load(one(net))
    bed.expect(net.frame(tcp(41000, 80, flags)), Verdict.FORWARDED)
    for name in ("returns", "opening"):
        entries = getattr(bed.maps, f"{name}{net.version}")
        entries.delete_many([k for k, _ in entries.items() if name == "returns" or k.side])
    before = bed.flows(net.version), bed.opening(net.version)
    bed.expect(
        reply(net, tcp(8080, 41000)), Verdict.RETURNED, answer(net, tcp(80, 41000)), at=BACKENDS
    )
    assert before == (bed.flows(net.version), bed.opening(net.version))
    assert bed.returns(net.version) == {}
    assert bed.counted("www").flows == bed.live("web/b1") == 1


@both
def test_only_the_backend_that_the_table_names_is_believed(bed: Bed, net: Net) -> None:
    bed.load(one(net, count=2, flags=ServiceFlag.FLOWS_OFF))
    for port in range(41000, 41020):
        owner = bed.expect(net.frame(tcp(port, 80)), Verdict.FORWARDED).backend
        for number in (1, 2):
            outcome = bed.send(reply(net, tcp(8080, port), number=number), BACKENDS)
            mine = owner == f"b{number}"
            assert outcome.verdict == (Verdict.RETURNED if mine else Verdict.NOT_OURS)


@both
def test_health_counts_when_deriving_too(bed: Bed, net: Net) -> None:
    slots = ("b1",) * 60 + ("b2",)
    bed.load(one(net, pools=(pool(net, 2, slots=slots),)))
    bed.expect(reply(net, tcp(8080, 41000)), Verdict.RETURNED, at=BACKENDS)
    down = (backend(net, 1, health=Health.DOWN), backend(net, 2))
    bed.load(one(net, pools=(pool(net, backends=down, slots=slots),)))
    bed.expect(reply(net, tcp(8080, 41001)), Verdict.NOT_OURS, at=BACKENDS)
    bed.expect(reply(net, tcp(8080, 41001), number=2), Verdict.RETURNED, at=BACKENDS)


def worlds_of_one(net: Net) -> dict[str, World]:
    """In all of these a reply from b1, port 8080, is nobody's."""
    one_pool = (pool(net, 1),)
    return {
        "direct": one(net, flags=ServiceFlag.DIRECT),
        "dsr": one(net, Forward.DSR),
        "fullnat": one(net, Forward.FULLNAT),
        "two frontends match": one(
            net, pools=one_pool, frontends=((net.vip, 80, "tcp"), (net.vip2, 80, "tcp"))
        ),
        "more candidates than are listed": one(
            net, pools=one_pool, frontends=tuple((net.vip, p, "tcp") for p in range(80, 85))
        ),
        "another port": one(net, pools=(pool(net, backends=(backend(net, 1, port=8081),)),)),
        "another protocol": one(net, frontends=((net.vip, 80, "udp"),)),
        "another backend": one(net, pools=(pool(net, backends=(backend(net, 2),)),)),
        "the table names another": one(net, pools=(pool(net, 2, slots=("b2",) * 61),)),
    }


@pytest.mark.parametrize("name", worlds_of_one(V4))
@both
def test_when_it_is_not_clear_whose_it_is_it_passes(bed: Bed, net: Net, name: str) -> None:
    bed.load(worlds_of_one(net)[name])
    bed.expect(reply(net, tcp(8080, 41000)), Verdict.NOT_OURS, at=BACKENDS)
    assert bed.remembered(net.version) == (0, 0, 0)


@both
def test_of_four_candidates_the_one_that_matches_is_it(bed: Bed, net: Net) -> None:
    frontends = tuple((net.vip, port, "tcp") for port in (80, 81, 82, 83))
    bed.load(one(net, count=8, frontends=frontends, flags=ServiceFlag.FLOWS_OFF))
    found = 0
    for port in range(41000, 41030):
        owners = {
            dport: bed.expect(net.frame(tcp(port, dport)), Verdict.FORWARDED).backend
            for dport in (80, 81, 82, 83)
        }
        matching = [dport for dport, owner in owners.items() if owner == "b1"]
        outcome = bed.send(reply(net, tcp(8080, port)), BACKENDS)
        assert outcome.verdict == (Verdict.RETURNED if len(matching) == 1 else Verdict.NOT_OURS)
        if len(matching) == 1:
            found += 1
            assert outcome.frame == answer(net, tcp(matching[0], port))
    assert found


@both
def test_a_candidate_whose_ids_mean_nothing_does_not_count(bed: Bed, net: Net) -> None:
    world = bed.load(one(net, frontends=((net.vip, 80, "tcp"), (net.vip2, 80, "tcp"))))
    bed.expect(reply(net, tcp(8080, 41000)), Verdict.NOT_OURS, at=BACKENDS)
    bed.maps.frontends.put(world.index("www/1"), abi.Frontend())
    bed.expect(
        reply(net, tcp(8080, 41000)), Verdict.RETURNED, answer(net, tcp(80, 41000)), at=BACKENDS
    )


@both
def test_any_port_frontends_derive_with_the_backends_own_port(bed: Bed, net: Net) -> None:
    bed.load(one(net, frontends=((net.vip, None, "tcp"),)))
    bed.expect(
        reply(net, tcp(1234, 41000)), Verdict.RETURNED, answer(net, tcp(1234, 41000)), at=BACKENDS
    )


@both
def test_fragments_are_derived_for_any_port_frontends_only(bed: Bed, net: Net) -> None:
    whole = ip(net.backends[0], net.client, udp(53, 41000, bytes(96)))
    later = from_backend(cut(whole, 48, 56))
    bed.load(one(net, frontends=((net.vip, 53, "udp"),)))
    bed.expect(later, Verdict.NOT_OURS, at=BACKENDS)
    bed.load(one(net, frontends=((net.vip, None, "udp"),)))
    outcome = bed.expect(later, Verdict.RETURNED, at=BACKENDS)
    want = cut(ip(net.vip, net.client, udp(53, 41000, bytes(96)), ttl=63), 48, 56)
    assert outcome.frame == to_client(want)


@pytest.mark.parametrize(
    ("which", "verdict"),
    [
        ("node", Verdict.NOT_OURS),
        ("no route", Verdict.NOT_OURS),
        ("silent", Verdict.RETURN_PASSED),
        ("blackhole", Verdict.NO_ROUTE),
    ],
)
@both
def test_where_the_client_is_decides_what_becomes_of_it(
    bed: Bed, net: Net, which: str, verdict: Verdict
) -> None:
    where = {
        "node": net.node,
        "no route": net.nowhere[3],
        "silent": net.silent,
        "blackhole": net.nowhere[0],
    }[which]
    bed.load(one(net))
    bed.expect(reply(net, tcp(8080, 41000), dst=where), verdict, at=BACKENDS)


@both
def test_other_balancing_methods_derive_by_the_hash_slot(bed: Bed, net: Net) -> None:
    bed.load(one(net, balance=Balance.ROUND_ROBIN))
    bed.expect(
        reply(net, tcp(8080, 41000)), Verdict.RETURNED, answer(net, tcp(80, 41000)), at=BACKENDS
    )


@both
def test_over_the_gate_it_is_translated_and_not_learnt(bed: Bed, net: Net) -> None:
    def attempt() -> tuple[int, int, int]:
        bed.load(one(net, gate=1))
        for port in (41000, 41001):
            bed.expect(
                reply(net, tcp(8080, port)),
                Verdict.RETURNED,
                answer(net, tcp(80, port)),
                at=BACKENDS,
            )
        return bed.remembered(net.version)

    assert bed.within_one_tick(attempt) == (1, 1, 0)


@both
def test_a_closed_entry_still_translates(bed: Bed, net: Net) -> None:
    bed.load(one(net))
    bed.expect(net.frame(tcp(41000, 80)), Verdict.FORWARDED)
    bed.expect(net.frame(tcp(41000, 80, "R")), Verdict.FORWARDED)
    (entry,) = bed.returns(net.version).values()
    assert entry.flow.state & FlowState.CLOSED
    bed.expect(
        reply(net, tcp(8080, 41000)), Verdict.RETURNED, answer(net, tcp(80, 41000)), at=BACKENDS
    )
