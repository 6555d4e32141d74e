"""Overrides: two flags for a while, and nothing else; and a file that loses none of them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpf import abi
from reconciler import ids, overrides
from reconciler.commands import span
from reconciler.compile import Surroundings, compile_config
from reconciler.control import Refused, Request
from reconciler.dataplane import State
from reconciler.model import Config
from reconciler.orders import Orders
from reconciler.overrides import Forced, Override, Unusable
from reconciler.overriding import OverrideFile
from reconciler.spare import is_usable
from tests.support.configs import NODE, configs
from tests.support.fake_dataplane import ROOM

NOW = 1_800_000_000.0
ONE = Override("web", "web1", Forced.DOWN, "disk", "root", NOW, NOW + 60)


@given(configs(), st.sampled_from(Forced), st.data())
def test_an_override_changes_the_flags_of_one_backend_and_nothing_else(
    config: Config, state: Forced, data: st.DataObject
) -> None:
    plain = compile_config(config, NODE, State(), Surroundings(), ROOM)
    if not plain.backends:
        return
    pool, name = data.draw(st.sampled_from(sorted(plain.backends)))
    forced = overrides.applied(plain, (replace(ONE, pool=pool, backend=name, state=state),))
    at = ids.index(plain.backends[pool, name])
    assert is_usable(forced.state.backends[at], None) is (state is Forced.UP)
    for where in State.__dataclass_fields__:
        before, after = getattr(plain.state, where), getattr(forced.state, where)
        if where != "backends":
            assert after == before
    others = plain.state.backends.keys() - {at}
    assert all(plain.state.backends[i] == forced.state.backends[i] for i in others)
    restored = abi.Backend.from_bytes(bytes(forced.state.backends[at]))
    restored.flags = plain.state.backends[at].flags
    assert restored == plain.state.backends[at]


@given(configs())
def test_an_override_of_nobody_is_nothing(config: Config) -> None:
    plain = compile_config(config, NODE, State(), Surroundings(), ROOM)
    assert overrides.applied(plain, (replace(ONE, pool="gone"),)) is plain


def test_it_ends_at_its_second() -> None:
    assert overrides.in_force((ONE,), NOW + 59.9) == (ONE,)
    assert overrides.in_force((ONE,), NOW + 60) == ()


def test_the_newest_takes_the_place_of_another() -> None:
    newer = replace(ONE, state=Forced.UP)
    assert overrides.with_one((ONE,), newer) == (newer,)
    assert overrides.without((ONE, replace(ONE, backend="web2")), "web/web1") == (
        replace(ONE, backend="web2"),
    )


@pytest.mark.parametrize(
    "broken",
    [
        replace(ONE, reason="  "),
        replace(ONE, until=NOW),
        replace(ONE, until=NOW + overrides.LONGEST + 1),
    ],
)
def test_none_without_a_reason_or_an_end(broken: Override) -> None:
    with pytest.raises(Unusable):
        overrides.checked(broken)


@pytest.mark.parametrize("content", [None, [], {}, {"overrides": [{}]}, {"overrides": ["x"]}])
def test_other_documents_are_no_overrides(content: object) -> None:
    with pytest.raises(Unusable):
        overrides.parse(content)


# ---- the file


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = OverrideFile(tmp_path / "state")
    assert file.read() == ()
    file.change(lambda before: overrides.with_one(before, ONE))
    file.change(lambda before: overrides.with_one(before, replace(ONE, backend="web2")))
    assert file.read() == (ONE, replace(ONE, backend="web2"))


def test_nonsense_in_the_file_is_said_with_its_name_and_never_overwritten(tmp_path: Path) -> None:
    file = OverrideFile(tmp_path)
    file.path.write_text("{")
    with pytest.raises(Unusable, match=r"overrides\.json"):
        file.change(lambda before: overrides.with_one(before, ONE))
    assert file.path.read_text() == "{"


# ---- orders


@pytest.fixture
def orders(tmp_path: Path) -> Orders:
    return Orders(tmp_path, lambda: [("web", "web1")], lambda: None, lambda: NOW)


def request(command: str, **arguments: object) -> Request:
    return Request(command, arguments, "alice")


WANTED = {"backend": "web/web1", "state": "down", "seconds": 60, "reason": "disk"}


def test_an_order_is_kept_with_who_gave_it(orders: Orders, tmp_path: Path) -> None:
    orders.carry_out(request("override", **WANTED))
    assert OverrideFile(tmp_path).read() == (replace(ONE, by="alice"),)
    assert orders.carry_out(request("clear", backend="web/web1")) == {"cleared": True}
    assert orders.carry_out(request("clear", backend="all")) == {"cleared": False}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"backend": "web/web9"}, "did you mean 'web/web1'"),
        ({"backend": None}, "backend is missing"),
        ({"state": "sideways"}, "up or down"),
        ({"seconds": "60"}, "no number"),
        ({"seconds": True}, "no number"),
        ({"seconds": float("nan")}, "more than 0"),
        ({"reason": ""}, "reason is missing"),
    ],
)
def test_an_order_that_cannot_be_is_refused(
    orders: Orders, tmp_path: Path, change: dict[str, object], said: str
) -> None:
    with pytest.raises(Refused, match=said):
        orders.carry_out(request("override", **{**WANTED, **change}))
    assert OverrideFile(tmp_path).read() == ()


def test_suspend_and_resume(orders: Orders, tmp_path: Path) -> None:
    orders.carry_out(request("suspend", seconds=60, reason="router"))
    assert json.loads((tmp_path / "suspension.json").read_text())["by"] == "alice"
    assert orders.carry_out(request("resume")) == {"was_suspended": True}
    with pytest.raises(Refused, match="at most"):
        orders.carry_out(request("suspend", seconds=1e9, reason="router"))


def test_unknown_commands_are_refused_with_the_nearest(orders: Orders) -> None:
    with pytest.raises(Refused, match="did you mean 'override'"):
        orders.carry_out(request("overide"))


@pytest.mark.parametrize(
    ("text", "seconds"), [("45s", 45), ("30m", 1800), ("1h30m", 5400), ("2d", 172800)]
)
def test_times(text: str, seconds: float) -> None:
    assert span(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "1.5h", "-1h", "1s1m"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(Exception, match="a time like"):
        span(text)
