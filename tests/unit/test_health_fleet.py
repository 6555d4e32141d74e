"""From targets and results to the map: what is written, when, and what survives which change."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jsonschema
import pytest

from healthcheck.exchange import Reason, Result
from healthcheck.fleet import REFRESH
from healthcheck.health import Outcome, State
from healthcheck.members import TRUSTED
from healthcheck.verdicts import VerdictsError
from tests.support.health import (
    FAIL,
    NEUTRAL,
    PASS,
    Clock,
    LabFleet,
    MapInMemory,
    a_fleet,
    backend,
    check,
    document,
    put,
)

UP, DOWN, UNKNOWN = State.UP, State.DOWN, State.UNKNOWN
SCHEMA = json.loads(Path("schemas/health.schema.json").read_text("utf-8"))


def redefine(fleet: LabFleet, *entries: dict[str, Any]) -> None:
    put(fleet._targets_path, document(*entries))
    fleet.look()


def reported(fleet: LabFleet) -> dict[str, Any]:
    fleet.publish()
    content = json.loads(fleet._report_path.read_text("utf-8"))
    jsonschema.validate(content, SCHEMA)
    assert isinstance(content, dict)
    return content


def conditions(fleet: LabFleet) -> dict[str, str]:
    return {entry["type"]: entry["message"] for entry in reported(fleet)["conditions"]}


# ---- verdicts and writes


def test_a_flip_is_one_write_and_agreement_is_none() -> None:
    with a_fleet(backend(1), states={1: UP}) as (fleet, health_map):
        for result in (PASS, PASS, FAIL, FAIL):
            fleet.hear(result)
        assert health_map.batches == []
        fleet.hear(FAIL)
        assert health_map.batches == [{1: DOWN}]
        for result in (FAIL, PASS):
            fleet.hear(result)
        assert health_map.batches == [{1: DOWN}]
        fleet.hear(PASS)
        assert health_map.batches == [{1: DOWN}, {1: UP}]


def test_flips_that_come_together_are_written_together() -> None:
    entries = [backend(number, port=8000 + number) for number in range(1, 6)]
    with a_fleet(*entries) as (fleet, health_map):
        for watch in fleet.watches():
            fleet.learn(watch, PASS, 0.001)
        assert health_map.batches == []
        fleet.settle()
        assert health_map.batches == [dict.fromkeys(range(1, 6), UP)]


def test_a_write_that_fails_is_made_up_for() -> None:
    with a_fleet(backend(1), states={1: UP}) as (fleet, health_map):
        health_map.broken = True
        for _ in range(3):
            fleet.hear(FAIL)
        assert conditions(fleet) == {"health-map": "the map is broken"}
        health_map.broken = False
        fleet.look()
        assert health_map.states == {1: DOWN}
        assert conditions(fleet) == {}


def test_our_own_trouble_flips_nothing_and_is_a_condition() -> None:
    with a_fleet(backend(1), states={1: UP}) as (fleet, health_map):
        for _ in range(10):
            fleet.hear(NEUTRAL)
        assert health_map.batches == []
        expected = "1 of 1 backends could not be probed: no descriptors"
        assert conditions(fleet) == {"own-trouble": expected}
        fleet.hear(PASS)
        assert conditions(fleet) == {}


def test_backends_that_share_address_and_definition_share_the_probe() -> None:
    same = [backend(1), backend(2, name="blue/web1"), backend(3, name="green/web1")]
    with a_fleet(*same, states={1: UP, 2: UP, 3: DOWN}) as (fleet, health_map):
        assert len(fleet.watches()) == 1
        fleet.hear(PASS)
        fleet.hear(PASS)
        assert health_map.batches == [{3: UP}]


# ---- what survives


def test_a_restart_flips_nothing_without_contrary_evidence() -> None:
    with a_fleet(backend(1), backend(2, 81), states={1: UP, 2: DOWN}) as (fleet, health_map):
        assert health_map.batches == []
        fleet.hear(FAIL, name="web/web1")
        fleet.hear(PASS, name="web/web2")
        assert health_map.batches == []  # one contrary result is not enough after a restart either
        assert (fleet.state("web/web1"), fleet.state("web/web2")) == (UP, DOWN)


def test_a_verdict_on_another_incarnation_means_nothing() -> None:
    with a_fleet(backend(1 << 20 | 1, name="web/web1"), states={1: UP}) as (fleet, _):
        assert fleet.state() is UNKNOWN


def test_another_incarnation_of_the_same_backend_inherits_the_verdict() -> None:
    with a_fleet(backend(1), states={1: UP}) as (fleet, health_map):
        redefine(fleet, backend(1 << 20 | 1, name="web/web1"))
        assert fleet.state() is UP
        assert health_map.states[1 << 20 | 1] is UP


def test_a_new_definition_keeps_the_verdict_and_starts_counting_anew() -> None:
    with a_fleet(backend(1), states={1: UP}) as (fleet, health_map):
        fleet.hear(FAIL)
        fleet.hear(FAIL)
        redefine(fleet, backend(1, check=check("http", fall=2)))
        fleet.hear(FAIL)
        assert health_map.batches == []
        fleet.hear(FAIL)
        assert health_map.batches == [{1: DOWN}]


def test_an_unchanged_backend_keeps_its_progress_and_its_probe_through_a_reload() -> None:
    with a_fleet(backend(1), states={1: UP}) as (fleet, health_map):
        fleet.hear(FAIL)
        fleet.hear(FAIL)
        watch = fleet.watches("web/web1")
        redefine(fleet, backend(2, 81), backend(1, check=check(name="renamed")))
        assert fleet.watches("web/web1") == watch
        fleet.hear(FAIL, name="web/web1")
        assert health_map.batches == [{2: DOWN}, {1: DOWN}]  # 2 is new, and joins from below


def test_a_backend_that_is_no_longer_checked_is_no_longer_down() -> None:
    with a_fleet(backend(1), backend(2, 81), states={1: DOWN, 2: DOWN}) as (fleet, health_map):
        gone = fleet.watches("web/web1")
        redefine(fleet, backend(2, 81))
        assert health_map.batches == [{1: UNKNOWN}]
        assert not gone[0].wanted


def test_a_map_made_anew_is_filled_with_what_is_known(tmp_path: Path) -> None:
    pin = tmp_path / "pin"
    pin.touch()
    with a_fleet(backend(1), states={1: UP}) as (fleet, health_map):
        put(fleet._targets_path, document(backend(1), health_map=pin))
        fleet.look()
        health_map.states.clear()
        put(pin, "another map")
        fleet.look()
        assert health_map.states == {1: UP}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON"),
        (document(backend(1), instance="other"), "for instance other, this is lab"),
        ({"format_version": "9.0"}, "format_version is 9.0"),
    ],
)
def test_a_bad_file_changes_nothing_and_is_a_condition(content: object, message: str) -> None:
    with a_fleet(backend(1), states={1: UP}) as (fleet, health_map):
        put(fleet._targets_path, content)
        fleet.look()
        assert message in conditions(fleet)["targets"]
        assert fleet.watches()[0].wanted
        assert health_map.batches == []


def test_a_file_that_is_away_for_a_while_changes_nothing(tmp_path: Path) -> None:
    with a_fleet(backend(1), states={1: UP}) as (fleet, health_map):
        away = fleet._targets_path.rename(tmp_path / "away")
        fleet.look()
        assert "not there" in conditions(fleet)["targets"]
        away.rename(fleet._targets_path)
        fleet.look()
        assert conditions(fleet) == {}
        assert health_map.batches == []


def test_nothing_is_probed_before_the_map_was_read(tmp_path: Path) -> None:
    """A first result would otherwise count as the first verdict, and flip what the map says."""
    health_map = MapInMemory()

    def refuse(path: Path, instance: str) -> MapInMemory:
        raise VerdictsError(f"{instance} is not loaded")

    put(tmp_path / "targets.json", document(backend(1)))
    fleet = LabFleet(tmp_path / "targets.json", tmp_path / "health.json", "lab", refuse)
    fleet.look()
    assert conditions(fleet) == {"health-map": "lab is not loaded"}
    assert fleet.watches() == []
    fleet._open_verdicts = health_map.open
    fleet.look()
    assert conditions(fleet) == {}
    assert len(fleet.watches()) == 1
    fleet.close()


# ---- first verdicts, returns, and what is old


def test_a_new_backend_of_a_serving_pool_has_to_rise() -> None:
    with a_fleet(backend(1), states={1: UP}) as (fleet, _):
        redefine(fleet, backend(1), backend(2, 81))
        fleet.hear(PASS, name="web/web2")
        assert fleet.state("web/web2") is DOWN
        fleet.hear(PASS, name="web/web2")
        assert fleet.state("web/web2") is UP


@pytest.mark.parametrize("states", [{}, {1: DOWN}])
def test_where_nothing_serves_one_success_is_enough(states: dict[int, State]) -> None:
    with a_fleet(backend(1), states=states) as (fleet, _):
        redefine(fleet, backend(1), backend(2, 81))
        fleet.hear(PASS, name="web/web2")
        assert fleet.state("web/web2") is UP


def removed_and_back(fleet: LabFleet) -> None:
    redefine(fleet, backend(1))
    redefine(fleet, backend(1), backend(2, 81))


def test_one_that_returns_is_not_down_before_it_has_fallen_since_it_may_still_have_flows() -> None:
    with a_fleet(backend(1), backend(2, 81), states={1: UP, 2: UP}) as (fleet, health_map):
        removed_and_back(fleet)
        assert health_map.batches == [{2: UNKNOWN}]
        for result in (FAIL, FAIL, PASS, FAIL, FAIL):
            fleet.hear(result, name="web/web2")
        assert health_map.batches == [{2: UNKNOWN}]
        fleet.hear(FAIL, name="web/web2")
        assert health_map.batches == [{2: UNKNOWN}, {2: DOWN}]


def test_one_that_returns_gets_new_flows_when_it_has_risen() -> None:
    with a_fleet(backend(1), backend(2, 81), states={1: UP, 2: DOWN}) as (fleet, health_map):
        removed_and_back(fleet)
        for result in (PASS, FAIL, PASS):
            fleet.hear(result, name="web/web2")
        assert fleet.state("web/web2") is UNKNOWN
        fleet.hear(PASS, name="web/web2")
        assert health_map.batches == [{2: UNKNOWN}, {2: UP}]


def test_one_that_returns_counts_anew_under_another_definition_and_still_has_to_fall() -> None:
    with a_fleet(backend(1), backend(2, 81), states={1: UP, 2: UP}) as (fleet, _):
        removed_and_back(fleet)
        fleet.hear(FAIL, name="web/web2")
        redefine(fleet, backend(1), backend(2, 81, check=check("http", fall=2)))
        fleet.hear(FAIL, name="web/web2")
        assert fleet.state("web/web2") is UNKNOWN
        fleet.hear(FAIL, name="web/web2")
        assert fleet.state("web/web2") is DOWN


def test_what_is_assumed_to_be_up_is_not_taken_down_unheard() -> None:
    with a_fleet(backend(1), states={1: UP}) as (fleet, health_map):
        redefine(fleet, backend(1), backend(2, 81, assumed_up=True))
        assert fleet.state("web/web2") is UNKNOWN
        assert health_map.batches == []


def test_an_old_verdict_holds_until_the_first_contrary_result(tmp_path: Path) -> None:
    health_map = MapInMemory({1: UP})
    put(tmp_path / "targets.json", document(backend(1)))
    files = (tmp_path / "targets.json", tmp_path / "health.json")
    first = LabFleet(*files, "lab", health_map.open, Clock(1.7e9))
    first.look()
    first.publish()
    first.close()
    second = LabFleet(*files, "lab", health_map.open, Clock(1.7e9 + TRUSTED + 1))
    second.look()
    assert health_map.batches == []
    second.hear(PASS)
    second.hear(FAIL)
    assert health_map.batches == []  # confirmed: it needs the whole row again
    second.close()
    third = LabFleet(*files, "lab", health_map.open, Clock(1.8e9))
    third.look()
    third.hear(FAIL)
    third.close()
    assert health_map.batches == [{1: DOWN}]


def test_a_backend_that_asks_to_be_left_out_is_down_at_once() -> None:
    with a_fleet(backend(1), states={1: UP}) as (fleet, health_map):
        fleet.hear(Result(Outcome.OUT, Reason.WRONG_STATUS, "status 503"))
        assert health_map.batches == [{1: DOWN}]


def test_a_slow_start_hands_out_the_share_bit_by_bit() -> None:
    slow = check(rise=1, fall=1, slow_start=10)
    with a_fleet(backend(1, check=slow), states={1: UP}) as (fleet, health_map):
        clock = Clock(fleet.engine.clock())
        fleet.engine.clock = clock
        fleet.hear(FAIL)
        fleet.hear(PASS)
        assert (health_map.states[1], health_map.ramps[1]) == (UP, 0)
        seen = []
        for _ in range(100):
            clock.now += 0.11
            fleet.look()
            seen.append(health_map.ramps[1])
        assert seen == sorted(seen)
        assert len(set(seen)) > 80
        assert seen[-1] == 255
        written = len(health_map.batches)
        fleet.look()
        assert len(health_map.batches) == written


def test_a_restart_goes_on_with_the_ramp_where_it_was() -> None:
    entry = backend(1, check=check(slow_start=10))
    with TemporaryDirectory() as name:
        health_map = MapInMemory({1: UP}, ramps={1: 128})
        put(Path(name) / "targets.json", document(entry))
        files = Path(name) / "targets.json", Path(name) / "health.json"
        fleet = LabFleet(*files, "lab", health_map.open)
        fleet.look()
        clock = Clock(fleet.engine.clock())
        fleet.engine.clock = clock
        assert health_map.ramps[1] in {128, 129}
        clock.now += 2.5
        fleet.look()
        assert 185 <= health_map.ramps[1] <= 200
        fleet.close()


def test_the_pace_follows_the_health() -> None:
    with a_fleet(backend(1, check=check(rise=2, fall=2, fast=0.2, slow=5)), states={1: UP}) as (
        fleet,
        _,
    ):
        watch = fleet.watches()[0]
        paces = []
        for result in (PASS, FAIL, FAIL, PASS, FAIL, PASS, PASS):
            fleet.hear(result)
            paces.append(watch.hurry or watch.beat.every)
        assert paces == [1, 0.2, 5, 0.2, 5, 0.2, 1]


# ---- the report


def test_what_is_reported() -> None:
    clock = Clock(1.7e9)
    with a_fleet(backend(1), now=clock) as (fleet, _):
        assert reported(fleet)["backends"][0]["last"] is None
        fleet.hear(PASS, latency=0.00123)
        clock.now += 60
        fleet.hear(FAIL)
        entry = reported(fleet)["backends"][0]
    assert entry == {
        "id": 1,
        "name": "web/web1",
        "address": "127.0.0.1",
        "port": 80,
        "check": "alive",
        "state": "up",
        "since": "2023-11-14T22:13:20.000+00:00",
        "ramp": 255,
        "contrary": 1,
        "needed": 3,
        "last": {
            "at": "2023-11-14T22:14:20.000+00:00",
            "outcome": "fail",
            "reason": "refused",
            "detail": "nobody there",
            "latency_ms": 1.0,
        },
        "counters": {"passed": 1, "failed": 1, "neutral": 0, "flips": 1, "reasons": {"refused": 1}},
    }


def test_since_when_survives_a_restart(tmp_path: Path) -> None:
    health_map = MapInMemory()
    put(tmp_path / "targets.json", document(backend(1)))
    files = (tmp_path / "targets.json", tmp_path / "health.json")
    first = LabFleet(*files, "lab", health_map.open, Clock(1.7e9))
    first.look()
    first.hear(PASS)
    before = reported(first)["backends"][0]
    first.close()
    second = LabFleet(*files, "lab", health_map.open, Clock(1.8e9))
    second.look()
    after = reported(second)["backends"][0]
    second.close()
    assert (after["state"], after["since"]) == (before["state"], before["since"])
    assert before["since"] is not None


def test_counting_goes_on_after_a_restart(tmp_path: Path) -> None:
    health_map = MapInMemory()
    put(tmp_path / "targets.json", document(backend(1)))
    files = (tmp_path / "targets.json", tmp_path / "health.json")
    for _ in range(2):
        fleet = LabFleet(*files, "lab", health_map.open)
        fleet.look()
        for result in (PASS, FAIL, NEUTRAL, PASS):
            fleet.hear(result)
        fleet.engine.tally.probes += 4
        told = reported(fleet)
        fleet.close()
    assert told["backends"][0]["counters"] == {
        "passed": 4,
        "failed": 2,
        "neutral": 2,
        "flips": 1,
        "reasons": {"refused": 2, "own-trouble": 2},
    }
    assert told["checker"]["probes"] == 8


def test_a_flip_is_reported_at_once_and_agreement_within_the_refresh() -> None:
    with a_fleet(backend(1), states={1: UP}) as (fleet, _):
        clock = Clock(fleet.engine.clock() + 1)
        fleet.engine.clock = clock
        fleet.hear(PASS)
        before = fleet._report_path.read_text("utf-8")
        clock.now += 1
        fleet.hear(PASS)
        fleet.look()
        assert fleet._report_path.read_text("utf-8") == before
        for _ in range(3):
            fleet.hear(FAIL)
        flipped = fleet._report_path.read_text("utf-8")
        assert json.loads(flipped)["backends"][0]["state"] == "down"
        fleet.hear(FAIL)
        clock.now += REFRESH
        fleet.look()
        assert (
            json.loads(fleet._report_path.read_text("utf-8"))["backends"][0]["counters"]["failed"]
            == 4
        )


def test_a_report_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    with a_fleet(backend(1), states={1: UP}) as (fleet, health_map):
        fleet._report_path = tmp_path / "nowhere" / "health.json"
        for _ in range(3):
            fleet.hear(FAIL)
        fleet.publish()
        assert [entry.type for entry in fleet.conditions.all()] == ["report"]
        assert health_map.states == {1: DOWN}
