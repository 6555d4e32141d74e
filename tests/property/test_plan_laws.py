"""The laws of the plan, after every prefix of its operations, over random configurations."""

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from bpf import abi
from reconciler import ids
from reconciler.dataplane import NUMBERED, Op, State, Where
from reconciler.drain import KEPT, OVER
from reconciler.guard import guard
from reconciler.look import View
from reconciler.model import Config, Guardrails
from reconciler.plan import plan
from tests.support.configs import NODE, configs
from tests.support.fake_dataplane import FakeMaps
from tests.support.judge import DROPPED, everywhere, packets, route, service_of
from tests.support.looks import view_of

STATES = (abi.HealthState.UNKNOWN, abi.HealthState.UP, abi.HealthState.DOWN)
NOW = 1000
verdicts = st.integers(0, 3**8)  # a state for each backend, as digits


def applied(history: list[Config], busy: bool = False) -> FakeMaps:
    """One after the other, 100 ticks apart; `busy`: every backend always has flows."""
    maps = FakeMaps()
    for i, config in enumerate(history):
        maps.apply(view_of(config, maps, now=NOW + 100 * i).ops)
        maps.live = dict.fromkeys(range(1, 128), 7) if busy else {}
    return maps


def then(new: Config, maps: FakeMaps, history: list[Config]) -> View:
    """What `new` would make of it, 100 ticks later."""
    return view_of(new, maps, now=NOW + 100 * len(history))


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


@given(histories, st.booleans())
def test_a_plan_after_an_apply_is_empty(history: list[Config], busy: bool) -> None:
    maps = applied(history, busy)
    maps.apply(then(history[-1], maps, history).ops)
    assert then(history[-1], maps, history).ops == ()
    assert plan(maps.read(), maps.read()) == []


@given(histories, configs(), verdicts, st.booleans())
def test_no_packet_goes_where_neither_state_sends_it(
    history: list[Config], new: Config, states: int, busy: bool
) -> None:
    maps = applied(history, busy)
    probed(maps, states)
    view = then(new, maps, history)
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


@given(histories, configs(), st.booleans())
def test_a_service_of_both_states_is_never_without_its_backends(
    history: list[Config], new: Config, busy: bool
) -> None:
    """With every backend healthy: a packet that both states forward is forwarded all the time."""
    maps = applied(history, busy)
    view = then(new, maps, history)
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


@given(histories, st.booleans(), st.integers(0, 40))
def test_an_id_never_means_two_things(history: list[Config], busy: bool, stop: int) -> None:
    """Also when the first apply after the oldest was interrupted."""
    maps, meaning = applied(history[:1], busy), {}
    for i, config in enumerate(history):
        ops = view_of(config, maps, now=NOW + 100 * (i + 1)).ops
        for here in prefixes(maps, ops[:stop] if i == 0 else ops):
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
    maps.apply(then(new, maps, history).ops[:stop])
    maps.apply(then(new, maps, history).ops)
    assert then(new, maps, history).ops == ()
    fresh = applied([new])
    for where in NUMBERED:
        assert len(maps.read()[where]) == len(fresh.read()[where]), "nothing is left over"


@given(histories, configs())
def test_flows_stay_with_a_backend_until_its_deadline_and_no_longer(
    history: list[Config], new: Config
) -> None:
    """Whatever the change, as long as the flow has a service; judged by the ids that flows carry."""
    maps = applied(history, busy=True)
    now = NOW + 100 * len(history)
    before = {entry.id: entry for entry in maps.read().backends.values()}
    flushed = {
        number
        for number, entry in before.items()
        if entry.flags & abi.BackendFlag.NO_NEW and entry.until not in (0, KEPT)
    }  # now, or before (OVER): no flow has the id that such a one has since
    for here in prefixes(maps, view_of(new, maps, now=now).ops):
        assert before.keys() - flushed <= {entry.id for entry in here.backends.values()}
    left = [e for e in maps.read().backends.values() if e.flags & abi.BackendFlag.NO_NEW]
    assert all(entry.until > now or entry.until in (0, OVER) for entry in left)
    maps.apply(view_of(new, maps, now=now + 2000).ops)
    drained = {e.id for e in left if e.until not in (0, OVER, KEPT)}
    assert drained.isdisjoint(e.id for e in maps.read().backends.values())
    slots = {number for table in maps.read().tables.values() for number in table}
    assert slots.isdisjoint(entry.id for entry in left)


@given(histories, configs())
def test_what_a_guardrail_holds_is_a_state_like_any_other(
    history: list[Config], new: Config
) -> None:
    maps = applied(history)
    old = maps.read()
    desired = then(new, maps, history).held
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
        serving = [e for e in old.backends.values() if not e.flags & abi.BackendFlag.NO_NEW]
        assert {entry.name for entry in serving} <= kept
