"""What holds for every row of results, and for every schedule."""

from dataclasses import replace
from itertools import pairwise

from hypothesis import assume, given
from hypothesis import strategies as st

from healthcheck.exchange import Reason, Result
from healthcheck.health import Health, Outcome, State, Thresholds, after_all, ramp
from healthcheck.schedule import JITTER, SOON, Beat
from healthcheck.web import Asking, Http
from tests.support.health import a_fleet, backend, check

PASS, FAIL, NEUTRAL = Outcome.PASS, Outcome.FAIL, Outcome.NEUTRAL

outcomes = st.sampled_from([PASS, FAIL, NEUTRAL])
rows = st.lists(outcomes, max_size=40)
thresholds = st.builds(Thresholds, rise=st.integers(1, 6), fall=st.integers(1, 6))
verdicts = st.sampled_from([State.UP, State.DOWN])
beats = st.builds(
    Beat, seed=st.integers(0, 2**64 - 1), every=st.floats(0.01, 3600, allow_nan=False)
)
times = st.floats(0, 1e6, allow_nan=False)


class HaproxyCounter:
    """One number from 0 to rise + fall - 1, as HAProxy keeps it; up from `rise` on."""

    def __init__(self, up: bool, limits: Thresholds) -> None:
        self.limits = limits
        self.top = limits.rise + limits.fall - 1
        self.health = self.top if up else 0

    def hear(self, passed: bool) -> None:
        if passed:
            self.health = min(self.health + 1, self.top)
            if self.health >= self.limits.rise:
                self.health = self.top
        elif self.health > self.limits.rise:
            self.health -= 1
        else:
            self.health = 0

    @property
    def up(self) -> bool:
        return self.health >= self.limits.rise


@given(verdicts, rows, thresholds)
def test_it_is_haproxys_counter(start: State, row: list[Outcome], limits: Thresholds) -> None:
    health, counter = Health(start), HaproxyCounter(start is State.UP, limits)
    for outcome in row:
        health = health.after(outcome, limits)
        if outcome is not NEUTRAL:
            counter.hear(outcome is PASS)
        assert (health.state is State.UP) is counter.up


@given(st.integers(1, 6), st.integers(2, 6), st.lists(st.integers(1, 5), max_size=12))
def test_isolated_failures_never_flip_a_backend(rise: int, fall: int, gaps: list[int]) -> None:
    health = Health(State.UP)
    for successes in gaps:
        health = after_all(health, [FAIL] + [PASS] * successes, Thresholds(rise, fall))
        assert health.state is State.UP


@given(verdicts, rows, thresholds)
def test_a_contrary_result_takes_all_progress_back(
    start: State, row: list[Outcome], limits: Thresholds
) -> None:
    health = after_all(Health(start), row, limits)
    agreeing = PASS if health.state is State.UP else FAIL
    assert health.after(agreeing, limits) == Health(health.state)


@given(verdicts, rows, thresholds)
def test_our_own_trouble_changes_nothing(
    start: State, row: list[Outcome], limits: Thresholds
) -> None:
    without = [outcome for outcome in row if outcome is not NEUTRAL]
    assert after_all(Health(start), row, limits) == after_all(Health(start), without, limits)


@given(verdicts, rows, thresholds)
def test_a_verdict_falls_to_nothing_less_than_its_whole_row_of_contrary_results(
    start: State, row: list[Outcome], limits: Thresholds
) -> None:
    health, heard = Health(start), list[Outcome]()
    for outcome in row:
        before, health = health, health.after(outcome, limits)
        heard += [outcome] if outcome is not NEUTRAL else []
        if health.state is not before.state:
            needed = limits.to_leave(before.state)
            assert heard[-needed:] == [outcome] * needed


@given(verdicts, rows, thresholds, st.integers(1, 20))
def test_relapses_make_rising_harder_and_falling_no_easier(
    start: State, row: list[Outcome], limits: Thresholds, settle: int
) -> None:
    damped, plain = Health(start), Health(start)
    for outcome in row:
        damped = damped.after(outcome, replace(limits, settle=settle))
        plain = plain.after(outcome, limits)
        assert not (damped.state is State.UP and plain.state is State.DOWN)
    settled = after_all(Health(State.UP, relapses=3, unsettled=settle), [PASS] * settle, limits)
    assert settled == Health(State.UP)


@given(verdicts, rows, thresholds)
def test_asking_to_be_left_out_is_down_whatever_came_before(
    start: State, row: list[Outcome], limits: Thresholds
) -> None:
    health = after_all(Health(start), [*row, Outcome.OUT], limits)
    assert health.state is State.DOWN


@given(st.floats(0, 100), st.floats(0.1, 100), st.floats(0, 10))
def test_a_ramp_only_rises_and_ends(elapsed: float, over: float, more: float) -> None:
    assert 0 <= ramp(elapsed, over) <= ramp(elapsed + more, over) <= 255
    assert ramp(over, over) == 255


@given(verdicts, st.lists(st.tuples(outcomes, times, times), max_size=30), thresholds)
def test_order_decides_not_timing(
    start: State, timed: list[tuple[Outcome, float, float]], limits: Thresholds
) -> None:
    """The same row of results, each at any time, jumps back included, after any latency."""
    clock = [0.0]
    entry = backend(check=check(rise=limits.rise, fall=limits.fall))
    with a_fleet(entry, states={1: start}, now=lambda: clock[0]) as (fleet, health_map):
        for outcome, at, latency in timed:
            clock[0] = at
            fleet.hear(Result(outcome, Reason.ANSWERED), latency)
        expected = after_all(Health(start), (outcome for outcome, _, _ in timed), limits)
        assert health_map.states == {1: expected.state}


@given(beats, times)
def test_beats_come_once_an_interval_and_never_change_places(beat: Beat, now: float) -> None:
    number = int(now / beat.every)
    gap = beat.at(number + 1) - beat.at(number)
    assert beat.every * (1 - JITTER) * 0.999 <= gap <= beat.every * (1 + JITTER) * 1.001


@given(beats, times)
def test_the_first_probe_is_soon(beat: Beat, now: float) -> None:
    assert 0 <= beat.soon(now) - now <= min(SOON, beat.every)


@given(beats, times, st.floats(0, 10))
def test_the_next_probe_is_never_in_the_past_and_never_far(
    beat: Beat, due: float, intervals: float
) -> None:
    now = due + intervals * beat.every
    ahead = beat.next(due, now) - now
    assert ahead >= 0
    assert ahead <= beat.every * (1 + 2 * JITTER) * 1.001


@given(beats, times, st.floats(2.01, 1000))
def test_nothing_is_caught_up_after_a_long_silence(
    beat: Beat, due: float, intervals: float
) -> None:
    assume(beat.every > 1e-6 * due)
    now = due + intervals * beat.every
    number = round((beat.next(due, now) - beat.at(0)) / beat.every)
    assert abs(beat.at(number) - beat.next(due, now)) <= 1e-6 * max(beat.every, now)


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=6))
def test_an_answer_means_the_same_however_it_is_cut(answer: bytes, cuts: list[int]) -> None:
    whole = b"HTTP/1.1 204 No Content\r\nX: " + answer
    edges = sorted({0, len(whole), *(cut % len(whole) for cut in cuts)})
    at_once, in_pieces = Http(Asking(b"")), Http(Asking(b""))
    expected = at_once.receive(whole)
    found = None
    for start, end in pairwise(edges):
        found = found or in_pieces.receive(whole[start:end])
    assert found == expected
