"""Laws of the order of writes, over a file and what people make of it, with overrides and health as they come."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler import config as configuration
from reconciler.model import Config
from reconciler.overrides import Forced, Override, Overrides
from tests.property.test_plan_laws import prefixes, probed
from tests.support.configs import NODE, configs, edited, overrides
from tests.support.fake_dataplane import FakeMaps
from tests.support.judge import DROPPED, PASSED, everywhere, packets, route
from tests.support.looks import view_of

verdicts = st.integers(0, 3**8)
changes = configs().flatmap(lambda config: st.tuples(st.just(config), edited(config)))


@given(changes, overrides(), overrides(), verdicts)
def test_no_packet_is_dropped_or_astray_between_two_writes(
    change: tuple[Config, Config], before: Overrides, after: Overrides, states: int
) -> None:
    """Whoever is served by the old state and the new one is served by all between them."""
    check(*change, before, after, states)


def check(old: Config, new: Config, before: Overrides, after: Overrides, states: int) -> None:
    maps = FakeMaps()
    maps.apply(view_of(old, maps).ops)
    probed(maps, states)
    maps.apply(view_of(old, maps, overrides=before).ops)
    start, view = maps.read(), view_of(new, maps, overrides=after)
    health = maps.health_map
    cases = []
    for packet in packets(start, view.held):
        places = everywhere(start, packet, health) | everywhere(view.held, packet, health)
        ends = [
            [route(state, packet, draw, health) for state in (start, view.held)]
            for draw in range(NODE.table_size)
        ]
        cases.append((packet, places, ends))
    for here in prefixes(maps, view.ops):
        for packet, places, ends in cases:
            for draw, both in enumerate(ends):
                found = route(here, packet, draw, health)
                assert found in places | {DROPPED}
                assert found not in (DROPPED, PASSED) or not {DROPPED, PASSED}.isdisjoint(both)


HEAD = "apiVersion: evenkeel/v1\nchecks: {alive: {type: tcp}}\npools:\n"
A, B = "{address: 10.0.0.1, port: 80%s}", "{address: 10.0.0.2, port: 80%s}"
SORRY = "  sorry: {backends: {s: {address: 10.0.0.9, port: 80}}}\n"


def file_of(backends: str, pools: str, pool: str = "", service: str = "") -> Config:
    return configuration.load(
        f"{HEAD}  web: {{backends: {{{backends}}}{pool}}}\n{SORRY}services:\n"
        f"  www: {{addresses: [192.0.2.1], ports: [80/tcp], pools: [{pools}]{service}}}\n"
    )


def down(name: str) -> Overrides:
    return (Override("web", name, Forced.DOWN, "maintenance", "ops", 0.0, 1.0),)


ADMIN_DOWN = ", state: down"
SCENES = {
    "an override of the only new backend": (
        file_of(f"a: {A % ''}", "web"),
        file_of(f"b: {B % ''}", "web, sorry"),
        (),
        down("b"),
    ),
    "an override of the only new backend, with the fallback gone first": (
        file_of(f"a: {A % ADMIN_DOWN}", "web, sorry"),
        file_of(f"b: {B % ''}", "web"),
        (),
        (),
    ),
    "the last backend down by its state": (
        file_of(f"a: {A % ''}", "web"),
        file_of(f"a: {A % ADMIN_DOWN}", "web, sorry"),
        (),
        (),
    ),
    "the last backend down by an override": (
        file_of(f"a: {A % ''}, b: {B % ADMIN_DOWN}", "web"),
        file_of(f"a: {A % ''}, b: {B % ADMIN_DOWN}", "web, sorry"),
        (),
        down("a"),
    ),
    "the last backend down, and another in its place that is down too": (
        file_of(f"a: {A % ''}", "web"),
        file_of(f"a: {A % ADMIN_DOWN}, b: {B % ADMIN_DOWN}", "web, sorry"),
        (),
        (),
    ),
    "the last backend loses what it was assumed to be": (
        file_of(f"a: {A % ''}", "web", "", ", fail: closed"),
        file_of(f"a: {A % ''}", "web, sorry", ", check: alive", ", fail: closed"),
        (),
        (),
    ),
    "up again, and the fallback goes": (
        file_of(f"a: {A % ''}", "web, sorry"),
        file_of(f"a: {A % ''}", "web"),
        down("a"),
        (),
    ),
    "no longer forced up, and the service fails open": (
        file_of(f"a: {A % ''}", "web", ", check: alive", ", fail: closed"),
        file_of(f"a: {A % ''}", "web", ", check: alive"),
        (Override("web", "a", Forced.UP, "maintenance", "ops", 0.0, 1.0),),
        (),
    ),
    "another backend instead of the one forced up, and the service fails open": (
        file_of(
            f"a: {A % ', weight: 1'}, b: {B % ', weight: 0'}",
            "web",
            ", check: alive",
            ", fail: closed",
        ),
        file_of(f"a: {A % ', weight: 0'}, b: {B % ', weight: 1'}", "web", ", check: alive"),
        (Override("web", "a", Forced.UP, "maintenance", "ops", 0.0, 1.0),),
        (),
    ),
    "one let go and another forced": (
        file_of(f"a: {A % ''}, b: {B % ''}", "web"),
        file_of(f"a: {A % ''}, b: {B % ''}", "web"),
        down("a"),
        down("b"),
    ),
}


@pytest.mark.parametrize("scene", SCENES)
def test_scenes(scene: str) -> None:
    check(*SCENES[scene], states=0)


LARGE = replace(NODE, table_size=61)  # of which the walk sees a part


@given(configs(), overrides(), verdicts)
def test_where_anybody_may_be_chosen_somebody_is(
    config: Config, forced: Overrides, states: int
) -> None:
    """In a table larger than the walk: the spare table knows who is left, in whole mode as well."""
    maps = FakeMaps()
    maps.apply(view_of(config, maps, node=LARGE).ops)
    probed(maps, states)
    maps.apply(view_of(config, maps, node=LARGE, overrides=forced).ops)
    state, health = maps.read(), maps.health_map
    for packet in packets(state):
        found = {route(state, packet, draw, health) for draw in range(LARGE.table_size)}
        assert DROPPED not in found or found == {DROPPED}
