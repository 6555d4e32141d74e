"""From a configuration to map contents: examples to read."""

from ipaddress import ip_address

import pytest

from bpf import abi
from reconciler import config as configuration
from reconciler import encode, ids
from reconciler.compile import Desired, Surroundings, compile_config
from reconciler.dataplane import State
from reconciler.drain import KEPT, OVER, lasting
from reconciler.encode import bucket, key_of
from reconciler.ids import NoRoom
from reconciler.model import Node
from reconciler.pieces import NextHop
from reconciler.spare import with_health
from tests.support.configs import NODE

ROOM = {"frontends": 64, "services": 16, "pools": 16, "backends": 64}
HEAD = "apiVersion: evenkeel/v1\n"
POOL = "pools: {web: {backends: {web1: {address: 10.0.0.1, port: 8080}}}}\n"


def compiled(text: str, actual: State = State(), node: Node = NODE, **around: object) -> Desired:  # noqa: B008
    surroundings = Surroundings(**around)  # type: ignore[arg-type]
    return compile_config(configuration.load(HEAD + text), node, actual, surroundings, ROOM)


def service(text: str, pool: str = POOL) -> State:
    return compiled(f"{pool}services: {{www: {{{text}}}}}\n").state


PLAIN = "addresses: [192.0.2.10], ports: [80/tcp], pools: [web]"
VIP = ip_address("192.0.2.10")


def key(port: int, proto: int, address: str = "192.0.2.10") -> encode.FrontendKey:
    return key_of(ip_address(address), port, proto)


def test_a_frontend_and_the_markers_of_its_address() -> None:
    assert service(PLAIN).frontends4 == {
        key(80, 6): ids.make(1, 1),
        key(0, 0): abi.FrontendMark.MARK,
        key(0, 6): abi.FrontendMark.MARK,
    }


def test_any_port_takes_the_place_of_the_marker() -> None:
    state = service(PLAIN.replace("80/tcp", '80/tcp, "*/tcp"'))
    assert state.frontends4[key(80, 6)] == ids.make(1, 1)
    assert state.frontends4[key(0, 6)] == ids.make(2, 1)


def test_echo_is_a_marker_of_the_icmp_protocol() -> None:
    text = 'addresses: [192.0.2.10, "2001:db8::1"], ports: [53/udp], pools: [web], echo: true, forward: gue'
    state = service(text)
    assert state.frontends4[key(0, 1)] == abi.FrontendMark.ECHO
    assert state.frontends6[key(0, 58, "2001:db8::1")] == abi.FrontendMark.ECHO


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("", abi.AddressKind.SERVICE),
        (", forward: dsr, flows: off", abi.AddressKind.SERVICE | abi.AddressKind.TABLE_FIRST),
    ],
)
def test_the_prefilter_knows_what_an_address_is(said: str, kind: int) -> None:
    assert service(PLAIN + said).prefilter[bucket(VIP)] == kind


def test_the_prefilter_knows_the_backends_of_nat_and_the_source_of_fullnat() -> None:
    nat = service(PLAIN).prefilter
    assert nat[bucket(ip_address("10.0.0.1"))] == abi.AddressKind.NAT_BACKEND
    fullnat = service(PLAIN + ", forward: fullnat").prefilter
    assert bucket(ip_address("10.0.0.1")) not in fullnat
    assert fullnat[bucket(NODE.nat_source[4])] == abi.AddressKind.NAT_SOURCE


def test_replies_name_the_frontends_that_send_to_a_backend() -> None:
    state = service(PLAIN.replace("80/tcp", "80/tcp, 443/tcp"))
    (entry,) = state.replies4.values()
    assert list(state.replies4) == [key(8080, 6, "10.0.0.1")]
    assert entry.count == 2
    assert [c.frontend for c in entry.candidate[:2]] == [ids.make(1, 1), ids.make(2, 1)]


def test_replies_to_any_port_keep_the_clients_port() -> None:
    state = service(PLAIN.replace("80/tcp", '"*/tcp"'))
    assert list(state.replies4) == [key(0, 6, "10.0.0.1")]


def test_more_candidates_than_an_entry_holds_are_only_counted() -> None:
    state = service(PLAIN.replace("80/tcp", "1/tcp, 2/tcp, 3/tcp, 4/tcp, 5/tcp"))
    assert state.replies4[key(8080, 6, "10.0.0.1")].count == 5


@pytest.mark.parametrize("said", [", direct: true", ", forward: dsr", ", forward: fullnat"])
def test_no_reply_is_derived_for(said: str) -> None:
    assert not service(PLAIN + said).replies4


def test_a_translating_service_is_one_for_each_family() -> None:
    pool = 'pools: {web: {backends: {a: {address: 10.0.0.1}, b: {address: "2001:db8:b::1"}}}}\n'
    text = 'addresses: [192.0.2.10, "2001:db8::1"], ports: [80/tcp], pools: [web]'
    nat, tunnel = service(text, pool), service(text + ", forward: ipip", pool)
    assert (len(nat.services), len(nat.pools)) == (2, 2)
    assert all(len(set(slots)) == 1 for slots in nat.tables.values()), "one family each"
    assert (len(tunnel.services), len(tunnel.pools)) == (1, 1)
    assert len(set(tunnel.tables[1])) == 2
    assert len(nat.backends) == len(tunnel.backends) == 2


def flags(said: str, check: str = "") -> int:
    pool = POOL.replace("8080}", f"8080{said}}}, web2: {{address: 10.0.0.2, port: 1}}")
    state = service(PLAIN, pool.replace("{backends", "{" + check + "backends"))
    return state.backends[1].flags


def test_what_a_backends_entry_says() -> None:
    up, down, no_new = (
        abi.BackendFlag.ASSUME_UP,
        abi.BackendFlag.FORCED_DOWN,
        abi.BackendFlag.NO_NEW,
    )
    assert flags("") == up, "without a check"
    assert flags(", state: down") == up | down
    assert flags(", state: drain") == flags(", weight: 0") == up | no_new


def test_a_draining_backend_keeps_its_entry_and_loses_its_slots() -> None:
    pool = POOL.replace("8080}", "8080}, web2: {address: 10.0.0.2, state: drain}")
    state = service(PLAIN, pool)
    assert len(state.backends) == 2
    assert set(state.tables[1]) == {ids.make(1, 1)}


def test_a_backend_that_is_down_keeps_its_slots() -> None:
    pool = POOL.replace("8080}", "8080}, web2: {address: 10.0.0.2, state: down}")
    assert len(set(service(PLAIN, pool).tables[1])) == 2


def test_times_and_rates_are_in_ticks() -> None:
    state = service(PLAIN + ", gate: 1000, idle: {tcp: 60s, udp: 1s}")
    entry = state.services[1]
    assert (entry.gate, entry.tcp_idle, entry.udp_idle) == (1074, 56, 1)


def test_tables_do_not_depend_on_ids() -> None:
    """Two nodes with one file and two histories."""
    text = f"{POOL.replace('8080}', '8080}, web2: {address: 10.0.0.2}')}services: {{www: {{{PLAIN}}}}}\n"
    fresh = compiled(text)
    other = State(backends={1: abi.Backend(id=ids.make(1, 1), name=42)})
    used = compiled(text, other)
    assert fresh.tables == used.tables
    assert fresh.state.tables != used.state.tables


def test_ids_are_found_again_in_the_maps() -> None:
    text = f"{POOL}services: {{www: {{{PLAIN}}}}}\n"
    first = compiled(text)
    assert compiled(text, first.state).state == first.state


def test_another_address_is_another_backend() -> None:
    text = f"{POOL}services: {{www: {{{PLAIN}}}}}\n"
    first = compiled(text)
    second = compiled(text.replace("10.0.0.1", "10.0.0.9"), first.state)
    assert first.backends["web", "web1"] != second.backends["web", "web1"]


def test_next_hops_are_taken_as_found_else_as_they_were() -> None:
    text = f"{POOL}services: {{www: {{{PLAIN}}}}}\n"
    hop = NextHop(3, b"\2\0\0\0\0\1", b"\2\0\0\0\0\2", 1500)
    first = compiled(text, hops={ip_address("10.0.0.1"): hop})
    entry = first.state.backends[1]
    assert (entry.ifindex, bytes(entry.dmac), entry.mtu) == (3, hop.dmac, 1500)
    assert compiled(text, first.state).state.backends == first.state.backends
    assert compiled(text).state.backends[1].ifindex == 0


def test_the_maps_must_have_room_before_anything_is_written() -> None:
    ports = ", ".join(f"{i}/tcp" for i in range(1, 70))
    with pytest.raises(NoRoom, match=r"sizes\.frontends"):
        service(PLAIN.replace("80/tcp", ports))


# ---- health


def test_spare_tables_and_short_pools_follow_health_and_nothing_else_does() -> None:
    pool = (
        "checks: {alive: {type: tcp}}\n"
        "pools: {web: {check: alive, backends:"
        " {a: {address: 10.0.0.1, port: 1}, b: {address: 10.0.0.2, port: 1}}}}\n"
    )
    desired = compiled(f"{pool}services: {{www: {{{PLAIN}, panic: 60%}}}}\n")
    one, two = sorted(desired.backends.values())
    up = abi.Health(id=one, state=abi.HealthState.UP, ramp=255)
    down = abi.Health(id=two, state=abi.HealthState.DOWN, ramp=255)
    nobody, half = with_health(desired, {}), with_health(desired, {1: up, 2: down})
    assert nobody.spares[1] == desired.state.tables[1], "no one usable: the table itself"
    assert set(half.spares[1]) == {one}
    assert set(half.tables[1]) == {one, two}
    assert half.services[1].short_pools == 1, "one of two is below 60 %"
    assert with_health(desired, {1: up}).services[1].short_pools == 0, (
        "nothing is known of the other"
    )
    stale = abi.Health(id=one + (1 << 20), state=abi.HealthState.UP, ramp=255)
    assert with_health(desired, {1: stale}) == nobody, "another incarnation's health says nothing"


# ---- what is replaced rather than changed


def test_a_port_carved_out_of_any_port_does_not_see_what_becomes_of_the_rest() -> None:
    """Packets for port 80 are on their way out of `rest`, which changes at the same time."""
    pools = (
        "pools: {one: {backends: {a: {address: 10.0.0.1}}}, two: {backends: {b: {address: 10.0.0.2}}}}\n"
        "services:\n"
    )
    before = compiled(pools + '  rest: {addresses: [192.0.2.10], ports: ["*/tcp"], pools: [one]}\n')
    after = compiled(
        pools
        + '  rest: {addresses: [192.0.2.10], ports: ["*/tcp"], pools: [two]}\n'
        + "  www: {addresses: [192.0.2.10], ports: [80/tcp], pools: [one]}\n",
        before.state,
    )
    (old,) = before.parts
    new = {part.service.name: number for number, part in after.parts.items()}
    assert new["rest"] != old
    assert after.state.services[ids.index(new["rest"])].name == before.state.services[1].name


def test_a_service_that_only_changes_keeps_its_id() -> None:
    text = f"{POOL}services: {{www: {{{PLAIN}}}}}\n"
    before = compiled(text)
    after = compiled(text.replace("pools: [web]", "pools: [web], gate: 5"), before.state)
    assert before.parts.keys() == after.parts.keys()


def test_a_pool_that_one_service_leaves_while_it_gets_a_backend_is_replaced() -> None:
    text = (
        "pools: {one: {backends: {a: {address: 10.0.0.1}}}, two: {backends: {b: {address: 10.0.0.2}}}}\n"
        "services:\n"
        "  stays: {addresses: [192.0.2.10], ports: [80/tcp], pools: [one]}\n"
        "  leaves: {addresses: [192.0.2.11], ports: [80/tcp], pools: [one]}\n"
    )
    before = compiled(text)
    fuller = text.replace(
        "{a: {address: 10.0.0.1}}", "{a: {address: 10.0.0.1}, c: {address: 10.0.0.3}}"
    )
    same = compiled(fuller, before.state)
    assert same.pools.keys() == before.pools.keys(), "nobody leaves: changed in place"
    left = compiled(fuller.replace("[192.0.2.11], ports: [80/tcp], pools: [one]", "[192.0.2.11], ports: [80/tcp], pools: [two]"), before.state)  # fmt: skip
    assert not left.pools.keys() & before.pools.keys()


def test_a_pool_that_loses_its_last_backend_is_replaced() -> None:
    """Its service gets another pool at the same time: it must see both at once."""
    text = (
        "pools: {one: {backends: {a: {address: 10.0.0.1}}}, two: {backends: {b: {address: 10.0.0.2}}}}\n"
        "services: {www: {addresses: [192.0.2.10], ports: [80/tcp], pools: [one]}}\n"
    )
    before = compiled(text)
    empty = text.replace("10.0.0.1}", "10.0.0.1, state: drain}").replace("[one]", "[one, two]")
    assert not compiled(empty, before.state).pools.keys() & before.pools.keys()


# ---- drains

DRAINING = f"""\
pools:
  web: {{drain: {{grace: 60s}}, backends: {{a: {{address: 10.0.0.1}}, b: {{address: 10.0.0.2, state: drain}}}}}}
services: {{www: {{{PLAIN}}}}}
"""
GRACE = lasting(60)


def drained(text: str, actual: State, now: int) -> abi.Backend:
    desired = compile_config(
        configuration.load(HEAD + text), NODE, actual, Surroundings(), ROOM, now
    )
    return desired.state.backends[ids.index(desired.backends["web", "b"])]


def test_a_deadline_is_set_once_and_comes_nearer_only() -> None:
    first = drained(DRAINING, State(), 1000)
    assert first.until == 1000 + GRACE
    state = State(backends={ids.index(first.id): first})
    assert drained(DRAINING, state, 1010) == first
    assert drained(DRAINING.replace("60s", "1h"), state, 1010) == first
    assert drained(DRAINING.replace("60s", "10s"), state, 1010).until == 1010 + lasting(10)
    assert drained(DRAINING.replace("grace: 60s", "then: keep"), state, 1010).until == KEPT
    assert drained(DRAINING.replace("state: drain", "weight: 0"), state, 1010).until == 0


def test_a_drain_never_ends_before_its_grace_is_over() -> None:
    """Begun at the last moment of tick 1000: 4 s were 3.2."""
    first = drained(DRAINING.replace("60s", "4s"), State(), 1000)
    assert (first.until - 1001) * encode.TICK >= 4


def test_at_the_deadline_the_backend_gets_an_id_that_no_flow_names() -> None:
    first = drained(DRAINING, State(), 1000)
    state = State(backends={ids.index(first.id): first})
    assert drained(DRAINING, state, first.until - 1).id == first.id
    after = drained(DRAINING, state, first.until)
    assert (after.id != first.id, after.until) == (True, OVER)
    assert drained(DRAINING, State(backends={ids.index(after.id): after}), 99999) == after
