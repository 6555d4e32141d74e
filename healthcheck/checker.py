"""The engine: starts probes when they are due and ends them when they are over. Knows no backend, map or file.

Everything happens in `wake`, in an order that is the design. First it drains what the kernel already knows, then it
makes good for time in which it was not running, and only then does it look at the clock: so a backend that
answered in time is never failed because this process was late.

asyncio only says when to wake: all probes share one epoll set, nested into the loop's.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from select import epoll
from typing import Protocol

from healthcheck.exchange import Reason, Result
from healthcheck.health import Outcome
from healthcheck.probes import Attempt
from healthcheck.schedule import Beat, Wheel

PULSE = 0.02  # how often at least to look while probes are under way: what is not measured cannot be given back
SLIP = 0.01  # lateness that is given back to probes under way
STALL = 0.25  # lateness after which what was due is spread anew, and failures found on waking prove nothing
STARTS_AT_ONCE = 512  # per wake-up: answers are looked at in between
_BATCH = 1024
_NEUTRAL = Outcome.NEUTRAL

Begin = Callable[[], Attempt | Result]


def nothing() -> None:
    """For whoever has nothing to let go of, or does not want to hear."""


class Watch:
    """One subject being probed, for as long as it is wanted."""

    __slots__ = ("beat", "due", "hurry", "let_go", "probe", "timeout", "wanted")

    def __init__(
        self, probe: Begin, beat: Beat, timeout: float, let_go: Callable[[], None] = nothing
    ) -> None:
        self.probe = probe
        self.let_go = let_go
        self.beat = beat
        self.hurry = 0.0  # seconds from the end of one probe to the next; 0: on the beat
        self.timeout = timeout
        self.due = 0.0
        self.wanted = True

    def pace(self, beat: Beat, hurry: float = 0.0) -> None:
        """From the next probe on."""
        self.beat = beat
        self.hurry = hurry


class Report(Protocol):
    def __call__(self, watch: Watch, result: Result, latency: float) -> None: ...


@dataclass(slots=True)
class Tally:
    """What the engine has to say about itself."""

    probes: int = 0
    own_trouble: int = 0  # results that say nothing about a backend
    stalls: int = 0
    late: int = 0  # starts that had to wait for more than an interval


class _Flight:
    """An attempt under way. `deadline` is in fair time; None as attempt: it is over."""

    __slots__ = ("attempt", "deadline", "started", "watch")

    def __init__(self, watch: Watch, attempt: Attempt, started: float, deadline: float) -> None:
        self.watch = watch
        self.attempt: Attempt | None = attempt
        self.started = started
        self.deadline = deadline


class Engine:
    """`report` hears of each result, `settled` once after each batch of them."""

    def __init__(
        self,
        report: Report,
        settled: Callable[[], None] = nothing,
        *,
        in_flight: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tally = Tally()
        self._report = report
        self._settled = settled
        self._room = in_flight
        self.clock = clock
        self._epoll = epoll()
        self._wheel: Wheel[Watch] = Wheel()
        self._waiting: deque[Watch] = deque()
        self._flying: dict[int, _Flight] = {}  # by file descriptor
        self._by_timeout: dict[float, deque[_Flight]] = {}  # each in the order of deadlines
        # Fair time is the clock without the moments in which nobody looked. Deadlines are in fair time.
        self._given_back = 0.0
        self._expected = math.inf  # when the next wake-up was to be
        self._woken = clock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._alarm: asyncio.TimerHandle | None = None

    # ---- what is watched

    def watch(
        self, probe: Begin, beat: Beat, timeout: float, let_go: Callable[[], None] = nothing
    ) -> Watch:
        watch = Watch(probe, beat, timeout, let_go)
        self._schedule(watch, beat.soon(self.clock()))
        self._arm()
        return watch

    def forget(self, watch: Watch) -> None:
        """A probe of it that is under way ends unheard."""
        watch.wanted = False
        watch.let_go()

    def once(self, probe: Begin, timeout: float, let_go: Callable[[], None] = nothing) -> Watch:
        """Probed now and never again."""
        watch = Watch(probe, Beat(0, math.inf), timeout, let_go)
        self._waiting.append(watch)
        return watch

    # ---- when it runs

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        loop.add_reader(self._epoll.fileno(), self.wake)
        self._arm()

    def close(self) -> None:
        if self._loop:
            self._loop.remove_reader(self._epoll.fileno())
        if self._alarm:
            self._alarm.cancel()
        self._loop = self._alarm = None
        for flight in self._flying.values():
            if flight.attempt:
                flight.attempt.close()
        self._flying.clear()
        self._epoll.close()

    def wake(self) -> None:
        now = self.clock()
        late = max(now - self._expected, 0.0)
        stalled = late > STALL
        self._drain(now, forgiving=stalled)
        if stalled:
            self.tally.stalls += 1
            self._given_back += now - self._woken
            self._spread(now)
        elif late > SLIP:
            self._given_back += late
        self._end_overdue(now)
        self._start_due(now)
        # What has answered already, and sockets that went to rest, would else wake us again at once.
        self._drain(self.clock(), forgiving=stalled)
        self._settled()
        self._woken = now
        self._arm()

    def next_wake(self) -> float:
        """When to wake at the latest if nothing happens before."""
        if self._waiting and self._room > 0:
            return self._woken
        pulse = self._woken + PULSE if self._flying else math.inf
        return min(self._wheel.next_due(), pulse)

    def lateness(self) -> float:
        """Seconds since the wake-up that should have been; 0 while there is none to wait for."""
        return max(self.clock() - self.next_wake(), 0.0)

    def _arm(self) -> None:
        at = self.next_wake()
        if self._alarm and self._expected <= at:
            return  # waking early costs less than setting another alarm
        self._expected = at
        if self._loop is None:
            return
        if self._alarm:
            self._alarm.cancel()
            self._alarm = None
        if at < math.inf:
            self._alarm = self._loop.call_later(max(at - self.clock(), 0), self._on_alarm)

    def _on_alarm(self) -> None:
        # Not _expected = inf: how late this wake-up is, is what a stall is measured by.
        self._alarm = None
        self.wake()

    # ---- the steps of one wake-up

    def _drain(self, now: float, *, forgiving: bool) -> None:
        flying = self._flying
        while events := self._epoll.poll(0, _BATCH):
            for fd, event in events:
                flight = flying.get(fd)
                if flight is None or flight.attempt is None:
                    continue  # a socket at rest
                result = flight.attempt.ready(event)
                if isinstance(result, Result):
                    self._end(flight, _excused(result) if forgiving else result, now)
                elif result:
                    self._take_over(flight, result)
            if len(events) < _BATCH:
                return

    def _end_overdue(self, now: float) -> None:
        fair = now - self._given_back
        for timeout, flights in list(self._by_timeout.items()):
            while flights and (flights[0].attempt is None or flights[0].deadline <= fair):
                flight = flights.popleft()
                if flight.attempt:
                    self._end(flight, flight.attempt.overdue(), now)
            if not flights:
                del self._by_timeout[timeout]

    def _start_due(self, now: float) -> None:
        self._waiting.extend(self._wheel.due(now))
        starts = 0
        while self._waiting and self._room > 0 and starts < STARTS_AT_ONCE:
            watch = self._waiting.popleft()
            if watch.wanted:
                self._start(watch, now)
                starts += 1

    def _spread(self, now: float) -> None:
        """What was due while nobody looked does not start in one instant."""
        for watch in self._wheel.due(now):
            self._schedule(watch, watch.beat.soon(now))

    def _start(self, watch: Watch, now: float) -> None:
        if now - watch.due > watch.beat.every:
            self.tally.late += 1
        attempt = watch.probe()
        started = self.clock()
        if isinstance(attempt, Result):
            self._say(watch, attempt, 0.0)
            self._again(watch, now)
            return
        flight = _Flight(watch, attempt, started, started - self._given_back + watch.timeout)
        self._flying[attempt.fd] = flight
        if (queue := self._by_timeout.get(watch.timeout)) is None:
            queue = self._by_timeout[watch.timeout] = deque()
        queue.append(flight)
        self._room -= 1
        if not attempt.registered:
            self._epoll.register(attempt.fd, attempt.events)

    def _take_over(self, flight: _Flight, attempt: Attempt) -> None:
        """The same probe goes on over another socket, within the same time."""
        if flight.attempt:
            del self._flying[flight.attempt.fd]
        flight.attempt = attempt
        self._flying[attempt.fd] = flight
        if not attempt.registered:
            self._epoll.register(attempt.fd, attempt.events)

    def _end(self, flight: _Flight, result: Result, now: float) -> None:
        attempt, flight.attempt = flight.attempt, None
        if attempt is None:
            return
        del self._flying[attempt.fd]
        attempt.close()  # which takes the socket out of the epoll set too, unless it is kept
        self._room += 1
        self._say(flight.watch, result, now - flight.started)
        self._again(flight.watch, now)

    def _say(self, watch: Watch, result: Result, latency: float) -> None:
        self.tally.probes += 1
        if result.outcome is _NEUTRAL:
            self.tally.own_trouble += 1
        if watch.wanted:
            self._report(watch, result, max(latency, 0.0))

    def _again(self, watch: Watch, now: float) -> None:
        if watch.wanted and watch.beat.every < math.inf:
            due = (
                watch.beat.hurried(watch.hurry, now)
                if watch.hurry
                else watch.beat.next(watch.due, now)
            )
            self._schedule(watch, due)

    def _schedule(self, watch: Watch, due: float) -> None:
        watch.due = due
        self._wheel.add(due, watch)


def _excused(result: Result) -> Result:
    """A failure found after a stall may be the stall's: peers give up on whoever does not go on talking."""
    if result.outcome is not Outcome.FAIL:
        return result
    return Result(
        Outcome.NEUTRAL, Reason.OWN_TROUBLE, f"not counted after a stall of ours: {result.reason}"
    )
