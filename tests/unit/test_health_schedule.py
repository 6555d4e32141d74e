"""When probes start. An hour passes in well under a second."""

import time
from collections import Counter
from itertools import pairwise

import pytest

from healthcheck.schedule import JITTER, TICK, Beat, Wheel, seed

HOUR = 3600.0
TARGETS = 20


def an_hour(every: float) -> dict[int, list[float]]:
    """When each of twenty targets was probed, if each probe took a tenth of a second."""
    beats = [Beat(seed(f"10.0.0.{number}:80"), every) for number in range(TARGETS)]
    starts: dict[int, list[float]] = {number: [] for number in range(TARGETS)}
    wheel: Wheel[tuple[int, float]] = Wheel()
    for number, beat in enumerate(beats):
        due = beat.soon(0.0)
        wheel.add(due, (number, due))
    while (now := wheel.next_due) < HOUR:
        for number, due in wheel.due(now):
            starts[number].append(now)
            following = beats[number].next(due, now + 0.1)
            wheel.add(following, (number, following))
    return starts


def test_an_hour_has_one_probe_per_target_and_interval() -> None:
    began = time.monotonic()
    starts = an_hour(every=2.0)
    assert time.monotonic() - began < 1
    for times in starts.values():
        assert abs(len(times) - HOUR / 2) <= 2
        gaps = [after - before for before, after in pairwise(times[1:])]
        assert min(gaps) >= 2 * (1 - JITTER) - TICK
        assert max(gaps) <= 2 * (1 + JITTER) + TICK


def test_targets_never_gather() -> None:
    starts = an_hour(every=2.0)
    at_once = Counter(round(at / 0.1) for times in starts.values() for at in times)
    # Twenty targets over twenty tenths of a second: one each on average, and they stay spread to the end.
    assert max(at_once.values()) <= 8


def test_a_thousand_targets_start_spread_over_the_first_second() -> None:
    beats = [Beat(seed(f"10.0.{n // 250}.{n % 250}:80"), 5.0) for n in range(1000)]
    at_once = Counter(int(beat.soon(0.0) * 10) for beat in beats)
    assert set(at_once) == set(range(10))
    assert max(at_once.values()) < 150


def test_the_phase_is_the_same_in_every_process() -> None:
    """Known answers: a change of the hash makes all targets of all nodes move at once."""
    assert seed("10.1.2.101:8080 tcp") == 0x66AA996C2A9C783A
    assert round(Beat(seed("10.1.2.101:8080 tcp"), 2.0).at(1000), 6) == 2001.741266


def test_a_probe_as_slow_as_its_interval_is_followed_at_once() -> None:
    beat = Beat(seed("slow"), 1.0)
    due = beat.at(10)
    end = due + 1.06
    assert end <= beat.next(due, end) <= end + 0.1


def test_a_wheel_gives_out_what_is_due_and_nothing_early() -> None:
    wheel: Wheel[str] = Wheel()
    wheel.add(1.0, "one")
    wheel.add(1.0001, "a moment later")
    wheel.add(2.0, "two")
    assert wheel.due(0.999) == []
    assert wheel.due(1.0) == ["one"]
    assert wheel.next_due == pytest.approx(1.005)
    assert wheel.due(60.0) == ["a moment later", "two"]
    assert wheel.next_due == float("inf")
