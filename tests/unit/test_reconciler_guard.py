"""How much change is too much."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from reconciler.guard import OVERRIDE
from reconciler.look import View
from reconciler.model import AdminState, Backend, Config, Guardrails, Pool, Port, Proto, Service
from tests.support.configs import VIPS
from tests.support.fake_dataplane import FakeMaps
from tests.support.looks import view_of

LIMITS = Guardrails()


def world(services: int, backends: int = 2, limits: Guardrails = LIMITS) -> Config:
    pool = Pool(
        "p", {f"b{i}": Backend(f"b{i}", ip_address(f"10.0.0.{i + 1}")) for i in range(backends)}
    )
    return Config(
        {
            f"s{i}": Service(f"s{i}", (VIPS[0],), (Port(i + 1, Proto.TCP),), ("p",))
            for i in range(services)
        },
        {"p": pool},
        limits,
    )


def change(before: Config, after: Config, *, allow_removals: bool = False) -> tuple[View, FakeMaps]:
    maps = FakeMaps()
    maps.apply(view_of(before, maps).ops)
    return view_of(after, maps, allow_removals=allow_removals), maps


@pytest.mark.parametrize(
    ("before", "after", "refused"),
    [
        (8, 6, False),  # a quarter
        (8, 5, True),
        (2, 1, False),  # half, but only one
        (3, 1, True),
        (1, 0, True),  # the last one
        (4, 4, False),
        (0, 4, False),
    ],
)
def test_removing_services(before: int, after: int, refused: bool) -> None:
    view, maps = change(world(before), world(after))
    assert view.refused is refused
    maps.apply(view.ops)
    assert len(maps.read().services) == (before if refused else after)


@pytest.mark.parametrize(
    ("before", "after", "refused"), [(9, 6, False), (9, 5, True), (2, 1, False)]
)
def test_removing_backends(before: int, after: int, refused: bool) -> None:
    view, maps = change(world(1, before), world(1, after))
    old = maps.read()
    assert view.refused is refused
    maps.apply(view.ops)
    assert len(maps.read().backends) == (before if refused else after)
    assert (maps.read().tables == old.tables) is refused, "slots too stay as they are"


def test_a_refusal_names_what_to_do() -> None:
    view, _ = change(world(8), world(4))
    (finding,) = view.findings
    assert str(finding) == (
        "4 of 8 services would be removed: refused, the limit is 25 %. They stay as they are."
        f" To remove them: {OVERRIDE}, or raise guardrails.removed-services"
    )


def test_the_override_lets_everything_pass() -> None:
    view, maps = change(world(8), world(0), allow_removals=True)
    assert not view.refused
    maps.apply(view.ops)
    assert not maps.read().services


def test_what_is_added_with_a_refused_removal_is_applied() -> None:
    before = world(8)
    after = world(3)
    new = Service("new", (VIPS[1],), (Port(80, Proto.TCP),), ("p",))
    view, maps = change(before, Config({**after.services, "new": new}, after.pools, LIMITS))
    assert view.refused
    maps.apply(view.ops)
    assert len(maps.read().services) == 9


def test_an_empty_file_may_be_allowed() -> None:
    view, _ = change(world(1), world(0, limits=Guardrails(allow_empty=True)))
    assert not view.refused


def test_a_new_address_is_no_removal() -> None:
    before = world(1, 4)
    moved = {
        name: Backend(name, ip_address(f"10.1.{b.address}".replace("10.1.10.0", "10.1")))
        for name, b in before.pools["p"].backends.items()
    }
    view, _ = change(before, Config(before.services, {"p": Pool("p", moved)}, LIMITS))
    assert not view.refused
    assert not view.findings


def test_who_drains_may_go_whatever_the_limit() -> None:
    """They serve nobody new: only the others count, among those who go and those who are there."""
    before = world(1, 9)
    pool = before.pools["p"]
    drained = {
        name: replace(one, state=AdminState.DRAIN) if name in ("b6", "b7", "b8") else one
        for name, one in pool.backends.items()
    }
    draining = replace(before, pools={"p": replace(pool, backends=drained)})
    assert not change(draining, world(1, 4))[0].refused
    assert change(draining, world(1, 3))[0].refused
