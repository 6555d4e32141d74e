"""The checker's verdicts in a real health map."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf import kernel
from bpf.abi import Health, HealthState
from bpf.pins import Pins
from healthcheck.health import State
from healthcheck.pinned import open_pinned
from healthcheck.verdicts import Verdict, VerdictsError
from tests.support.health import FAIL, PASS, LabFleet, backend, document, put

NAME = f"ek{os.getpid()}health"
INCARNATION = 7 << 20
MAP = Pins.of(NAME).map("health")


@pytest.fixture(scope="module")
def loaded() -> Iterator[kernel.Instance]:
    try:
        instance = kernel.Instance.load(NAME)
    except (kernel.NotPermitted, kernel.Unsupported) as error:
        pytest.skip(str(error))
    try:
        yield instance
    finally:
        instance.teardown()


@pytest.fixture
def instance(loaded: kernel.Instance) -> kernel.Instance:
    loaded.maps.health.put_many((index, Health()) for index, _ in loaded.maps.health.items())
    return loaded


@pytest.fixture
def fleet(instance: kernel.Instance, tmp_path: Path) -> Iterator[LabFleet]:
    made = a_fleet(tmp_path)
    yield made
    made.close()


def a_fleet(directory: Path) -> LabFleet:
    targets = document(backend(INCARNATION | 5), instance=NAME, health_map=MAP)
    put(directory / "targets.json", targets)
    fleet = LabFleet(directory / "targets.json", directory / "health.json", NAME, open_pinned)
    fleet.look()
    assert fleet.conditions.all() == []
    return fleet


def entry(instance: kernel.Instance, index: int = 5) -> Health | None:
    return instance.maps.health.get(index)


def test_a_verdict_carries_the_whole_id(instance: kernel.Instance, fleet: LabFleet) -> None:
    assert entry(instance) == Health()
    fleet.hear(PASS)
    assert entry(instance) == Health(id=INCARNATION | 5, state=HealthState.UP, ramp=255)
    for _ in range(3):
        fleet.hear(FAIL)
    assert entry(instance) == Health(id=INCARNATION | 5, state=HealthState.DOWN, ramp=255)
    assert [index for index, _ in instance.maps.health.items()] == [5]


def test_a_restart_takes_over_what_the_map_says(instance: kernel.Instance, tmp_path: Path) -> None:
    before = Health(id=INCARNATION | 5, state=HealthState.UP, ramp=255)
    instance.maps.health.put(5, before)
    fleet = a_fleet(tmp_path)
    fleet.hear(FAIL)
    fleet.hear(FAIL)
    assert entry(instance) == before
    fleet.hear(FAIL)
    fleet.close()
    assert entry(instance) == Health(id=INCARNATION | 5, state=HealthState.DOWN, ramp=255)


def test_another_incarnation_in_the_map_is_unknown(
    instance: kernel.Instance, tmp_path: Path
) -> None:
    instance.maps.health.put(5, Health(id=5, state=HealthState.UP, ramp=255))
    fleet = a_fleet(tmp_path)
    assert fleet.state("web/web" + str(INCARNATION | 5)) is State.UNKNOWN
    fleet.hear(FAIL)
    fleet.close()
    assert entry(instance) == Health(id=INCARNATION | 5, state=HealthState.DOWN, ramp=255)


def test_a_verdict_on_every_backend_fits_one_batch(instance: kernel.Instance) -> None:
    verdicts = open_pinned(MAP, NAME)
    everything = dict.fromkeys(range(1, instance.maps.health.max_entries), Verdict(State.UP))
    verdicts.write(everything.items())
    assert verdicts.read() == everything
    verdicts.close()


def test_a_map_that_is_not_this_instances_is_refused(instance: kernel.Instance) -> None:
    other = Pins.of("another").map("health")
    with pytest.raises(VerdictsError, match="nothing is written"):
        open_pinned(other, NAME)


def test_an_instance_that_is_not_loaded_is_an_error_that_says_so() -> None:
    absent = f"{NAME}-absent"
    with pytest.raises(VerdictsError, match=absent):
        open_pinned(Pins.of(absent).map("health"), absent)


def test_the_report_is_json(fleet: LabFleet) -> None:
    fleet.publish()
    assert json.loads(fleet._report_path.read_text("utf-8"))["instance"] == NAME
