"""The laws of the plan, after every prefix of its operations, over random configurations."""

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from bpf import abi
from reconciler import ids
from reconciler.compile import Surroundings
from reconciler.dataplane import NUMBERED, Op, State, Where
from reconciler.guard import guard
from reconciler.look import Live, View, look
from reconciler.model import Config, Guardrails
from reconciler.plan import plan
from tests.support.configs import NODE, configs
from tests.support.fake_dataplane import ROOM, FakeMaps
from tests.support.judge import DROPPED, everywhere, packets, route, service_of

STATES = (abi.HealthState.UNKNOWN, abi.HealthState.UP, abi.HealthState.DOWN)
verdicts = st.integers(0, 3**8)  # a state for each backend, as digits


def view_of(config: Config, maps: FakeMaps) -> View:
    return look(config, NODE, Live(maps.read(), maps.health(), Surroundings(), ROOM))


def applied(history: list[Config]) -> FakeMaps:
    maps = FakeMaps()
    for config in history:
        maps.apply(view_of(config, maps).ops)
    return maps


def probed(maps: FakeMaps, states: int) -> None:
    """What healthcheck would have written about the backends that are there."""
    maps.health_map = {
        at: abi.Health(id=entry.id, state=STATES[states // 3 ** (at % 8) % 3], ramp=255)
        for at, entry in maps.read().backends.items()
    }


def prefixes(maps: FakeMaps, ops: tuple[Op, ...]) -> Iterator[State]:
    """What the maps say before, between and after the operations."""
    yield maps.read()
    for op in ops:
        maps.apply([op])
        yield maps.read()


histories = st.lists(configs(), min_size=1, max_size=3)


@given(histories)
def test_a_plan_after_an_apply_is_empty(history: list[Config]) -> None:
    maps = applied(history)
    assert view_of(history[-1], maps).ops == ()
    assert plan(maps.read(), maps.read()) == []


@given(histories, configs(), verdicts)
def test_no_packet_goes_where_neither_state_sends_it(
    history: list[Config], new: Config, states: int
) -> None:
    maps = applied(history)
    probed(maps, states)
    view = view_of(new, maps)
    old = maps.read()
    allowed = {
        packet: everywhere(old, packet, maps.health_map)
        | everywhere(view.held, packet, maps.health_map)
        for packet in packets(old, view.held)
    }
    for here in prefixes(maps, view.ops):
        for packet, places in allowed.items():
            for draw in range(NODE.table_size):
                assert route(here, packet, draw, maps.health_map) in places | {DROPPED}


@given(histories, configs())
def test_a_service_of_both_states_is_never_without_its_backends(
    history: list[Config], new: Config
) -> None:
    """With every backend healthy: a packet that both states forward is forwarded all the time."""
    maps = applied(history)
    view = view_of(new, maps)
    old = maps.read()
    healthy = {
        at: abi.Health(id=entry.id, state=abi.HealthState.UP, ramp=255)
        for state in (old, view.held)
        for at, entry in state.backends.items()
    }
    steady = [
        packet
        for packet in packets(old, view.held)
        if service_of(old, packet)
        and service_of(view.held, packet)
        and all(
            route(state, packet, draw, healthy) != DROPPED
            for state in (old, view.held)
            for draw in range(NODE.table_size)
        )
    ]
    for here in prefixes(maps, view.ops):
        for packet in steady:
            for draw in range(NODE.table_size):
                assert route(here, packet, draw, healthy)[0] not in ("dropped", "passed")


@given(histories)
def test_an_id_never_means_two_things(history: list[Config]) -> None:
    maps, meaning = FakeMaps(), {}
    for config in history:
        for here in prefixes(maps, view_of(config, maps).ops):
            for where in NUMBERED:
                for at, entry in here[where].items():
                    assert ids.index(entry.id) == at
                    what = _identity(where, entry)
                    assert meaning.setdefault((where, entry.id), what) == what


def _identity(where: Where, entry: object) -> object:
    match entry:
        case abi.Backend():
            return entry.name, bytes(entry.addr), entry.port
        case abi.Frontend():
            return bytes(entry.addr), entry.port, entry.proto
        case abi.Service() | abi.Pool():
            return entry.name
    raise AssertionError(where)


@given(histories, configs(), st.integers(0, 200))
def test_an_interrupted_apply_is_finished_by_the_next(
    history: list[Config], new: Config, stop: int
) -> None:
    maps = applied(history)
    maps.apply(view_of(new, maps).ops[:stop])
    maps.apply(view_of(new, maps).ops)
    assert view_of(new, maps).ops == ()
    fresh = applied([new])
    for where in NUMBERED:
        assert len(maps.read()[where]) == len(fresh.read()[where]), "nothing is left over"


@given(histories, configs())
def test_what_a_guardrail_holds_is_a_state_like_any_other(
    history: list[Config], new: Config
) -> None:
    maps = applied(history)
    old = maps.read()
    desired = view_of(new, maps).held
    held, findings = guard(desired, old, Guardrails(0, 0))
    refused = {finding.what for finding in findings if finding.refused}
    allowed = {
        packet: everywhere(old, packet, {}) | everywhere(held, packet, {})
        for packet in packets(old, held)
    }
    for here in prefixes(maps, tuple(plan(held, old))):
        for packet, places in allowed.items():
            for draw in range(NODE.table_size):
                assert route(here, packet, draw, {}) in places | {DROPPED}
    names = {entry.name for entry in maps.read().services.values()}
    if "services" in refused:
        assert {entry.name for entry in old.services.values()} <= names
    if "backends" in refused:
        kept = {entry.name for entry in maps.read().backends.values()}
        assert {entry.name for entry in old.backends.values()} <= kept
