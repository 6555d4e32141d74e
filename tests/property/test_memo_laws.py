"""What is remembered of the last look changes nothing but the time that the next one takes."""

from hypothesis import given
from hypothesis import strategies as st

from bpf import abi
from reconciler.compile import Surroundings
from reconciler.dataplane import Where
from reconciler.look import Live, look
from reconciler.memo import Memo
from reconciler.model import Config
from reconciler.pieces import NextHop
from tests.support.configs import NODE, PLACES, configs
from tests.support.fake_dataplane import ROOM, FakeMaps

STATES = (abi.HealthState.UNKNOWN, abi.HealthState.UP, abi.HealthState.DOWN)
HOPS = [NextHop(n, bytes([2, 0, 0, 0, 0, n]), bytes([2, 0, 0, 0, 1, n]), 1500) for n in (1, 2)]


@st.composite
def steps(draw: st.DrawFn) -> list[tuple[Config, int, int, bool, bool]]:
    """A configuration, health, hops, whether backends have flows, whether the apply gets through."""
    some = draw(st.lists(configs(), min_size=1, max_size=3))
    one = st.tuples(
        st.sampled_from(some),
        st.integers(0, 3**4),
        st.integers(0, 3 ** len(PLACES)),
        st.booleans(),
        st.booleans(),
    )
    return draw(st.lists(one, min_size=2, max_size=6))


def live_of(maps: FakeMaps, now: int, states: int, hops: int, busy: bool) -> Live:
    maps.health_map = {
        at: abi.Health(id=entry.id, state=STATES[states // 3 ** (at % 4) % 3], ramp=255)
        for at, entry in maps.read().backends.items()
    }
    found = {a: hops // 3**i % 3 for i, a in enumerate(PLACES)}
    around = Surroundings({a: HOPS[n - 1] for a, n in found.items() if n}, hop_epoch=states)
    flows = dict.fromkeys(range(1, 128), 7) if busy else {}
    return Live(maps.read(), maps.health(), around, ROOM, flows=flows, now=now)


@given(steps())
def test_a_look_with_a_memo_sees_what_one_without_sees(
    taken: list[tuple[Config, int, int, bool, bool]],
) -> None:
    maps, memo = FakeMaps(), Memo()
    for i, (config, states, hops, busy, through) in enumerate(taken):
        live = live_of(maps, 1000 + 100 * i, states, hops, busy)
        anew = look(config, NODE, live)
        remembered = look(config, NODE, live, memo=memo)
        assert remembered == anew
        maps.apply(anew.ops if through else anew.ops[: len(anew.ops) // 2])


@given(st.lists(configs(), min_size=1, max_size=2), st.integers(0, 3**4), st.booleans())
def test_what_is_calm_stays_so_whatever_time_passes_and_whoever_has_flows(
    taken: list[Config], states: int, busy: bool
) -> None:
    maps, memo = FakeMaps(), Memo()
    for config in taken:
        maps.apply(look(config, NODE, live_of(maps, 1000, states, 1, busy)).ops)
    for now in (1000, 1001, 1002, 10**6):
        for flows in (busy, not busy):
            live = live_of(maps, now, states, 1, flows)
            assert look(taken[-1], NODE, live, memo=memo) == look(taken[-1], NODE, live)


@given(configs())
def test_one_entry_that_somebody_changes_is_enough_to_look_anew(config: Config) -> None:
    maps, memo = FakeMaps(), Memo()
    live = live_of(maps, 1000, 0, 0, busy=False)
    maps.apply(look(config, NODE, live, allow_removals=True).ops)
    for where in Where:
        for _ in range(2):
            look(config, NODE, live_of(maps, 1000, 0, 0, busy=False), memo=memo)
        for key in list(maps.content[where])[:1]:
            kept = maps.content[where].pop(key)
            live = live_of(maps, 1000, 0, 0, busy=False)
            assert look(config, NODE, live, memo=memo) == look(config, NODE, live)
            maps.content[where][key] = kept


@given(configs(), configs(), configs())
def test_nobody_changes_what_is_remembered(one: Config, other: Config, third: Config) -> None:
    """Whatever is looked at in between: the same once more gives the same once more."""
    maps, memo = FakeMaps(), Memo()
    live = Live(maps.read(), maps.health(), Surroundings(), ROOM)
    first = look(one, NODE, live, memo=memo)
    for config in (other, third):
        look(config, NODE, live, memo=memo)
    assert look(one, NODE, live, memo=memo) == first == look(one, NODE, live)
