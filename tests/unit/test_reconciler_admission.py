"""Services that cannot be applied: which, why, what stands for them, and when they are tried again."""

from pathlib import Path

import pytest

from bpf import abi
from reconciler import capacity, retries, standing
from reconciler import config as configuration
from reconciler.admission import Blocked, Why, mix
from reconciler.blame import concerned
from reconciler.dataplane import Op, Put, Remove, Where
from reconciler.model import Config
from reconciler.retries import FIRST, LONGEST, Retries
from reconciler.revision import Revision
from tests.support.configs import NODE
from tests.support.fake_dataplane import ROOM, FakeMaps
from tests.support.looks import view_of

HEAD = "apiVersion: evenkeel/v1\n"
OLD = f"""\
{HEAD}pools:
  web: {{backends: {{web1: {{address: 10.0.0.1, port: 80}}}}}}
  sorry: {{backends: {{sorry1: {{address: 10.0.0.9, port: 80}}}}}}
services:
  shop: {{addresses: [192.0.2.1], ports: [80/tcp], pools: [web, sorry]}}
  blog: {{addresses: [192.0.2.2], ports: [80/tcp], pools: [sorry]}}
"""


def load(text: str) -> Config:
    return configuration.load(text)


def refused(*names: str) -> dict[str, Blocked]:
    return {name: Blocked(name, Why.REFUSED, "no memory") for name in names}


def test_a_blocked_service_stays_what_it_was_and_the_others_change() -> None:
    new = load(OLD.replace("10.0.0.1", "10.0.0.2").replace("[192.0.2.2]", "[192.0.2.3]"))
    mixed, blocked = mix(new, load(OLD), refused("shop"))
    assert (str(mixed.pools["web"].backends["web1"].address)) == "10.0.0.1"
    assert mixed.services["blog"] == new.services["blog"]
    assert blocked.keys() == {"shop"}


def test_one_that_is_new_and_blocked_is_left_out() -> None:
    mixed, _ = mix(load(OLD), Config({}, {}), refused("shop"))
    assert mixed.services.keys() == {"blog"}


def test_an_address_is_not_taken_from_a_service_that_stays() -> None:
    new = load(OLD.replace("192.0.2.1", "192.0.2.7").replace("192.0.2.2", "192.0.2.1"))
    mixed, blocked = mix(new, load(OLD), refused("shop"))
    assert blocked["blog"].why is Why.WAITS
    assert "192.0.2.1 80/tcp still belongs to services[shop]" in blocked["blog"].message
    assert mixed.services == load(OLD).services


@pytest.mark.parametrize(
    ("change", "waits"),
    [
        (("pools: [web, sorry]", "pools: [web]"), True),  # shop would leave sorry
        (("pools: [web, sorry]", "pools: [web, sorry], forward: dsr"), True),
        (("10.0.0.1,", "10.0.0.2,"), False),  # shop is to see the new sorry as it is
    ],
)
def test_a_pool_does_not_change_under_a_service_that_is_not_to_see_it(
    change: tuple[str, str], waits: bool
) -> None:
    new = load(OLD.replace(*change).replace("10.0.0.9", "10.0.0.8"))
    mixed, blocked = mix(new, load(OLD), refused("shop"))
    assert ("blog" in blocked) is waits
    assert str(mixed.pools["sorry"].backends["sorry1"].address) == f"10.0.0.{9 if waits else 8}"


def test_the_message_names_the_setting_and_the_size_that_would_do() -> None:
    config, room = load(OLD), {**ROOM, "backends": 2}
    (problem,) = capacity.problems(config, NODE, room)
    assert problem.mark.line == config.services["shop"].origin.line
    assert "services[shop]: 1 more backends do not fit" in problem.message
    assert "sizes.backends of at least 3 in node.yaml, which says 2" in problem.message
    assert capacity.problems(config, NODE, {**ROOM, "backends": 3}) == []


@pytest.mark.parametrize("setting", ["services", "pools", "backends", "frontends"])
def test_sizes_of_just_what_is_needed_are_enough(setting: str) -> None:
    config = load(OLD)
    enough = capacity.needed(config, NODE)
    assert capacity.problems(config, NODE, enough) == []
    short = capacity.problems(config, NODE, {**enough, setting: enough[setting] - 1})
    assert short
    assert all(f"sizes.{setting}" in problem.message for problem in short)


# ---- whose a write is


def test_every_write_of_a_service_is_known_to_be_its_own() -> None:
    config, maps = load(OLD), FakeMaps()
    view = view_of(config, maps)
    before = maps.read()
    for op in view.ops:
        names = concerned(op, (before, view.held), (config,))
        if op.where in (Where.SETTINGS, Where.PREFILTER):
            assert not names, "everybody's"
        else:
            assert names, op
    web1 = next(op for op in view.ops if _is_backend(op, "10.0.0.1"))
    sorry1 = next(op for op in view.ops if _is_backend(op, "10.0.0.9"))
    assert concerned(web1, (before, view.held), (config,)) == {"shop"}
    assert concerned(sorry1, (before, view.held), (config,)) == {"shop", "blog"}


def _is_backend(op: Op, address: str) -> bool:
    packed = bytes(map(int, address.split(".")))
    return isinstance(op, Put) and op.where is Where.BACKENDS and bytes(op.value.addr)[:4] == packed


def test_what_goes_is_of_the_service_that_had_it() -> None:
    maps = FakeMaps()
    maps.apply(view_of(load(OLD), maps).ops)
    alone = load(OLD.replace(OLD[OLD.index("  shop:") : OLD.index("  blog:")], ""))
    view = view_of(alone, maps, allow_removals=True)
    gone = [op for op in view.ops if isinstance(op, Remove)]
    found = {concerned(op, (maps.read(), view.held), (alone, load(OLD))) for op in gone}
    assert frozenset({"shop"}) in found
    assert found <= {frozenset({"shop"}), frozenset()}


def test_a_key_of_nobody_is_everybodys() -> None:
    key = abi.Frontend4Key(addr=1, port=80, proto=6)
    assert not concerned(Remove(Where.FRONTENDS4, key), (FakeMaps().read(),), (load(OLD),))


# ---- when it is tried again


def test_pauses_grow_from_a_tenth_of_a_second_to_a_minute() -> None:
    pauses = [retries.pause(times) for times in range(1, 40)]
    assert pauses[:4] == [FIRST, 0.2, 0.4, 0.8]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST == 60


def test_a_service_rests_longer_after_each_failure_and_is_forgotten_once_well() -> None:
    found, now, waited = Retries(), 100.0, []
    for _ in range(12):
        assert found.failed(["shop"], "no memory", now)
        assert found.resting(now).keys() == {"shop"}
        waited.append(found.due(now))
        now += waited[-1]
        assert not found.resting(now), "its time has come"
    assert waited == [pytest.approx(retries.pause(times)) for times in range(1, 13)]
    found.over(now)
    assert found.failed(["shop"], "no memory", now)
    assert found.due(now) == pytest.approx(FIRST)
    found.forget()
    assert not found.resting(now)


def test_who_cannot_even_be_what_it_was_is_left_as_it_is_and_then_nothing_more_is_tried() -> None:
    found = Retries()
    assert found.failed(["shop"], "no", 1.0)
    assert not found.resting(1.0)["shop"].frozen
    assert found.failed(["shop"], "no", 1.0)
    assert found.resting(1.0)["shop"].frozen
    assert not found.failed(["shop"], "no", 1.0)
    assert found.due(1.0) == pytest.approx(FIRST), "it failed once"


# ---- what stands, on disk


def revision(text: str) -> Revision:
    return Revision("lb.yaml", text, standing.digest_of(text))


def test_what_stands_for_blocked_services_outlives_a_restart(tmp_path: Path) -> None:
    """Two files further, each with something that could not be applied."""
    texts = [OLD, OLD.replace("10.0.0.1,", "10.0.0.2,").replace("192.0.2.2", "192.0.2.5")]
    texts.append(texts[-1].replace("192.0.2.5", "192.0.2.6"))
    blocks = [{}, refused("shop"), refused("shop", "blog")]
    stood: standing.Standing | None = None
    for text, blocked in zip(texts, blocks, strict=True):
        before = stood.config if stood else Config({}, {})
        mixed, _ = mix(load(text), before, blocked)
        stood = standing.after(stood, revision(text), mixed, blocked)
        standing.write(tmp_path, stood)
        again = standing.read(tmp_path)
        assert again is not None
        assert (again.config, again.digest) == (stood.config, stood.digest)
        assert again.blocked == stood.blocked
    assert stood is not None
    assert str(stood.config.pools["web"].backends["web1"].address) == "10.0.0.1"
    assert str(stood.config.services["blog"].addresses[0]) == "192.0.2.5"
    assert standing.addresses(stood)
    standing.write(tmp_path, standing.after(stood, revision(OLD), load(OLD), {}))
    assert not (tmp_path / standing.PARTLY).exists()


def test_a_broken_record_is_as_good_as_the_last_whole_file(tmp_path: Path) -> None:
    (tmp_path / standing.WHOLE).write_text(OLD)
    for broken in ("", "{}", '{"text": "x", "path": "y"}', "[]"):
        (tmp_path / standing.PARTLY).write_text(broken)
        found = standing.read(tmp_path)
        assert found is not None
        assert found.config == load(OLD)


def test_a_port_does_not_fall_to_an_any_port_service_that_stays() -> None:
    """Both are to go, and one cannot: what was the other's was never that one's."""
    wide = 'addresses: [192.0.2.1], ports: ["*/tcp"], pools: [sorry]'
    old = load(f"{OLD}  wide: {{{wide}}}\n")
    new = load(
        OLD[: OLD.index("  shop")]
        + "  blog: {addresses: [192.0.2.2], ports: [80/tcp], pools: [sorry]}\n"
    )
    mixed, blocked = mix(new, old, refused("wide"))
    assert blocked["shop"].why is Why.WAITS
    assert "192.0.2.1 80/tcp would fall to services[wide]" in blocked["shop"].message
    assert mixed.services == old.services
    covered = load(OLD.replace("shop:", "new:"))
    mixed, blocked = mix(covered, old, refused("wide"))
    assert blocked.keys() == {"wide"}, "another has the port now"
    assert mixed.services.keys() == {"new", "blog", "wide"}
