"""The engine by hand: no time passes unless the test says so."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from healthcheck.checker import STARTS_AT_ONCE, Engine, Watch
from healthcheck.exchange import Reason, Result
from healthcheck.health import Outcome
from healthcheck.schedule import Beat, seed
from healthcheck.stock import Stock
from tests.support.health import (
    NEUTRAL,
    PASS,
    Asks,
    ByHand,
    Clock,
    closed_port,
    pass_until,
    probe,
    subject,
)

MINUTE = 60.0


class Bench:
    """An engine, its clock, and all that it said."""

    def __init__(self, **options: int) -> None:
        self.clock = Clock()
        self.heard: list[tuple[Watch, Result]] = []
        self.attempts: list[ByHand] = []
        self.batches = 0
        self.engine = Engine(self._report, self._settled, clock=self.clock, **options)

    def _report(self, watch: Watch, result: Result, _latency: float) -> None:
        self.heard.append((watch, result))

    def _settled(self) -> None:
        self.batches += 1

    def by_hand(self) -> ByHand:
        self.attempts.append(ByHand())
        return self.attempts[-1]

    def watch(self, name: str = "one", every: float = 2.0, timeout: float = 1.0) -> Watch:
        return self.engine.watch(Asks(self.by_hand), Beat(seed(name), every), timeout)

    def instant(self, name: str, result: Result = PASS, every: float = 2.0) -> Watch:
        """Something whose probes are over as soon as they begin."""
        return self.engine.watch(Asks(lambda: result), Beat(seed(name), every), 1.0)

    def pass_(self, seconds: float) -> None:
        pass_until(self.engine, self.clock, self.clock.now + seconds)

    def stall(self, seconds: float) -> None:
        """The process does not run; then it wakes."""
        self.clock.now += seconds
        self.engine.wake()

    def outcomes(self) -> list[Outcome]:
        return [result.outcome for _, result in self.heard]


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.engine.close()


def test_an_answer_in_time_is_a_result_and_ends_the_attempt(bench: Bench) -> None:
    bench.watch()
    bench.pass_(1.0)
    bench.attempts[0].answer()
    bench.pass_(0.1)
    assert bench.outcomes() == [Outcome.PASS]
    assert bench.attempts[0].closed


def test_no_answer_is_a_failure_at_the_deadline_and_not_before(bench: Bench) -> None:
    watch = bench.watch(timeout=1.0)
    pass_until(bench.engine, bench.clock, watch.due + 0.99)
    assert bench.heard == []
    bench.pass_(0.05)
    assert [result.reason for _, result in bench.heard] == [Reason.ANSWER_TIMEOUT]


def test_each_is_probed_once_an_interval(bench: Bench) -> None:
    watches = [bench.instant(f"target {number}") for number in range(10)]
    bench.pass_(MINUTE)
    for watch in watches:
        times = sum(heard is watch for heard, _ in bench.heard)
        assert times in {29, 30, 31}


def test_a_slow_target_delays_no_other(bench: Bench) -> None:
    bench.watch("silent", every=2.0, timeout=2.0)
    quick = bench.instant("quick", every=0.1)
    bench.pass_(MINUTE)
    assert sum(heard is quick for heard, _ in bench.heard) >= MINUTE / 0.1 - 10
    assert bench.engine.tally.late == 0


def test_what_is_forgotten_is_not_heard_again(bench: Bench) -> None:
    watch = bench.watch()
    bench.pass_(1.0)
    bench.engine.forget(watch)
    bench.attempts[0].answer()
    bench.pass_(MINUTE)
    assert bench.heard == []
    assert len(bench.attempts) == 1
    assert bench.attempts[0].closed


def test_no_more_probes_than_there_is_room_for_are_under_way() -> None:
    bench = Bench(in_flight=3)
    for number in range(9):
        bench.watch(f"target {number}", timeout=1.0)
    bench.pass_(1.2)
    under_way = [attempt for attempt in bench.attempts if not attempt.closed]
    assert len(under_way) <= 3
    bench.pass_(3.0)
    assert len(bench.attempts) >= 9  # the others had to wait; their clocks began when they did
    bench.engine.close()


def test_results_of_one_waking_are_settled_once(bench: Bench) -> None:
    for number in range(5):
        bench.watch(f"target {number}")
    bench.pass_(1.0)
    for attempt in bench.attempts:
        attempt.answer()
    settled = bench.batches
    bench.engine.wake()
    assert len(bench.heard) == 5
    assert bench.batches == settled + 1


# ---- time in which nobody looked


def test_an_answer_that_came_while_we_did_not_run_counts(bench: Bench) -> None:
    bench.watch(timeout=1.0)
    bench.pass_(1.0)
    bench.attempts[0].answer()
    bench.stall(MINUTE)
    assert bench.outcomes() == [Outcome.PASS]


def test_the_time_of_a_stall_is_given_back(bench: Bench) -> None:
    watch = bench.watch(timeout=1.0)
    pass_until(bench.engine, bench.clock, watch.due + 0.5)
    bench.stall(MINUTE)
    assert bench.heard == []
    bench.pass_(0.4)
    assert bench.heard == []
    bench.attempts[0].answer()
    bench.pass_(0.01)
    assert bench.outcomes() == [Outcome.PASS]


def test_after_a_stall_silence_is_a_failure_again(bench: Bench) -> None:
    watch = bench.watch(timeout=1.0)
    pass_until(bench.engine, bench.clock, watch.due + 0.5)
    bench.stall(MINUTE)
    bench.pass_(0.6)
    assert bench.outcomes() == [Outcome.FAIL]


def test_a_failure_found_on_waking_from_a_stall_is_not_counted(bench: Bench) -> None:
    """A server that gave up on a client which did not go on talking."""
    bench.watch(timeout=1.0)
    bench.pass_(1.0)
    bench.attempts[0].answer(Result(Outcome.FAIL, Reason.CLOSED_EARLY))
    bench.stall(MINUTE)
    assert bench.outcomes() == [Outcome.NEUTRAL]
    assert bench.engine.tally.stalls == 1


def test_small_delays_in_a_row_do_not_put_a_deadline_off_for_ever(bench: Bench) -> None:
    watch = bench.watch(timeout=1.0)
    pass_until(bench.engine, bench.clock, watch.due + 0.001)
    began = bench.clock.now
    while not bench.heard and bench.clock.now < began + MINUTE:
        bench.clock.now = bench.engine.next_wake() + 0.03  # late by thirty milliseconds each time
        bench.engine.wake()
    assert bench.outcomes() == [Outcome.FAIL]
    assert bench.clock.now - began < 4


def test_after_a_stall_nothing_is_caught_up_in_a_burst(bench: Bench) -> None:
    for number in range(200):
        bench.instant(f"target {number}", every=1.0)
    bench.pass_(5.0)
    before = len(bench.heard)
    bench.stall(MINUTE)
    assert len(bench.heard) == before
    bench.pass_(0.1)
    assert len(bench.heard) - before < 60
    bench.pass_(0.9)
    assert 150 <= len(bench.heard) - before <= 300


def test_answers_are_looked_at_between_many_starts(bench: Bench) -> None:
    many = STARTS_AT_ONCE + 10
    for _ in range(many):
        bench.engine.once(Asks(lambda: PASS), 1.0)
    bench.engine.wake()
    assert len(bench.heard) == STARTS_AT_ONCE
    bench.engine.wake()
    assert len(bench.heard) == many


# ---- our own trouble


def test_a_probe_that_could_not_begin_is_neutral_and_tried_again(bench: Bench) -> None:
    bench.instant("one", NEUTRAL, every=1.0)
    bench.pass_(10.5)
    assert set(bench.outcomes()) == {Outcome.NEUTRAL}
    assert bench.engine.tally.own_trouble == len(bench.heard) >= 10


@contextmanager
def no_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_file_descriptor_is_not_the_backends_fault() -> None:
    where = subject(closed_port())

    def begin() -> object:
        with no_descriptors():
            return where.probe(Stock(keep=False))()

    result = probe(where, begin)  # type: ignore[arg-type]
    assert (result.outcome, result.reason) == (Outcome.NEUTRAL, Reason.OWN_TROUBLE)
    assert result.detail == "socket: Too many open files"
