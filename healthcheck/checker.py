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
from typing import Any, Protocol

from healthcheck.exchange import Reason, Result
from healthcheck.health import Outcome
from healthcheck.probes import Attempt, Probe
from healthcheck.schedule import Beat, Wheel

PULSE = 0.02  # how often at least to look while probes are under way: what is not measured cannot be given back
SLIP = 0.01  # lateness that is given back to probes under way
STALL = 0.25  # lateness after which what was due is spread anew, and failures found on waking prove nothing
STARTS_AT_ONCE = 512  # per wake-up: answers are looked at in between
_BATCH = 1024
_NEUTRAL, _NEVER = Outcome.NEUTRAL, math.inf


def nothing() -> None:
    """For whoever does not want to hear."""


class Watch:
    """One subject being probed, for as long as it is wanted. At most one attempt at a time is under way."""

    __slots__ = (
        "attempt",
        "beat",
        "deadline",
        "due",
        "hearers",
        "hurry",
        "probe",
        "started",
        "timeout",
        "wanted",
    )

    def __init__(self, probe: Probe, beat: Beat, timeout: float) -> None:
        self.probe = probe
        self.beat = beat
        self.hurry = 0.0  # seconds from the end of one probe to the next; 0: on the beat
        self.timeout = timeout
        self.due = 0.0
        self.wanted = True
        self.attempt: Attempt | None = None  # under way, ...
        self.started = 0.0  # ... since when ...
        self.deadline = 0.0  # ... and until when, in fair time
        self.hearers: tuple[Any, ...] = ()  # whom it is for: its owner's business

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
    worst: float = 0.0  # seconds that a start had to wait, at most, since somebody asked

    def lateness(self, seconds: float) -> None:
        self.worst = max(self.worst, seconds)

    def worst_since(self) -> float:
        """The longest wait since this was last asked."""
        worst, self.worst = self.worst, 0.0
        return worst


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
        self._flying: dict[int, Watch] = {}  # by file descriptor
        # Fair time is the clock without the moments in which nobody looked. Deadlines are in fair time.
        self._given_back = 0.0
        self._soonest = math.inf  # no deadline is before this
        self._expected = math.inf  # when the next wake-up was to be
        self._woken = clock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._alarm: asyncio.TimerHandle | None = None

    # ---- what is watched

    def watch(self, probe: Probe, beat: Beat, timeout: float) -> Watch:
        watch = Watch(probe, beat, timeout)
        self._schedule(watch, beat.soon(self.clock()))
        self._arm()
        return watch

    def forget(self, watch: Watch) -> None:
        """A probe of it that is under way ends unheard."""
        watch.wanted = False
        watch.probe.close()

    def once(self, probe: Probe, timeout: float) -> Watch:
        """Probed now and never again."""
        watch = Watch(probe, Beat(0, math.inf), timeout)
        watch.due = self.clock()
        self._waiting.append(watch)
        return watch

    # ---- when it runs

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        loop.add_reader(self._epoll.fileno(), self._hear)
        self._arm()

    def close(self) -> None:
        if self._loop:
            self._loop.remove_reader(self._epoll.fileno())
        if self._alarm:
            self._alarm.cancel()
        self._loop = self._alarm = None
        for watch in self._flying.values():
            if watch.attempt:
                watch.attempt.close()
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
        if now >= self._soonest + self._given_back:
            self._end_overdue(now)
        if self._start_due(now):
            # What has answered already, and sockets that went to rest, would else wake us again at once.
            self._drain(self.clock(), forgiving=stalled)
        self._settled()
        self._woken = now
        self._arm()

    def _hear(self) -> None:
        """Something came in before it was time to wake: the short way, of which there are thousands a second."""
        now = self.clock()
        if now >= self._expected:
            self.wake()
            return
        self._drain(now, forgiving=False)
        self._settled()
        self._woken = now
        if self._waiting or self._wheel.next_due < self._expected:
            self._arm()

    def next_wake(self) -> float:
        """When to wake at the latest if nothing happens before."""
        if self._waiting and self._room > 0:
            return self._woken
        if not self._flying:
            return self._wheel.next_due
        return min(self._wheel.next_due, self._woken + PULSE, self._soonest + self._given_back)

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
        flying, poll = self._flying, self._epoll.poll
        while events := poll(0, _BATCH):
            for fd, event in events:
                watch = flying.get(fd)
                if watch is None or watch.attempt is None:
                    continue  # a socket at rest
                result = watch.attempt.ready(event)
                if result is None:
                    continue
                if isinstance(result, Result):
                    self._end(watch, _excused(result) if forgiving else result, now)
                else:
                    self._take_over(watch, result)
            if len(events) < _BATCH:
                return

    def _end_overdue(self, now: float) -> None:
        unfair = self._given_back
        overdue = [one for one in self._flying.values() if one.deadline + unfair <= now]
        for watch in overdue:
            if watch.attempt:
                self._end(watch, watch.attempt.overdue(), now)
        self._soonest = min((one.deadline for one in self._flying.values()), default=math.inf)

    def _start_due(self, now: float) -> bool:
        """Whether anything was started."""
        waiting = self._waiting
        waiting.extend(self._wheel.due(now))
        if not waiting:
            return False
        self.tally.lateness(now - waiting[0].due)
        for _ in range(min(len(waiting), STARTS_AT_ONCE)):
            if self._room <= 0:
                break
            watch = waiting.popleft()
            if watch.wanted:
                self._start(watch, now)
        return True

    def _spread(self, now: float) -> None:
        """What was due while nobody looked does not start in one instant."""
        for watch in self._wheel.due(now):
            self._schedule(watch, watch.beat.soon(now))

    def _start(self, watch: Watch, now: float) -> None:
        if now - watch.due > watch.beat.every:
            self.tally.late += 1
        attempt = watch.probe()
        if isinstance(attempt, Result):
            self._end(watch, attempt, now)
            return
        watch.attempt = attempt
        watch.started = started = self.clock()
        watch.deadline = deadline = started - self._given_back + watch.timeout
        self._soonest = min(self._soonest, deadline)
        self._flying[attempt.fd] = watch
        self._room -= 1
        if not attempt.registered:
            self._epoll.register(attempt.fd, attempt.events)

    def _take_over(self, watch: Watch, attempt: Attempt) -> None:
        """The same probe goes on over another socket, within the same time."""
        if watch.attempt:
            del self._flying[watch.attempt.fd]
        watch.attempt = attempt
        self._flying[attempt.fd] = watch
        if not attempt.registered:
            self._epoll.register(attempt.fd, attempt.events)

    def _end(self, watch: Watch, result: Result, now: float) -> None:
        """Long for a function here: it ends every probe, and calls cost more than what they do."""
        attempt, latency = watch.attempt, 0.0
        if attempt is not None:
            watch.attempt = None
            del self._flying[attempt.fd]
            attempt.close()  # which takes the socket out of the epoll set too, unless it is kept
            self._room += 1
            latency = now - watch.started
            watch.started = watch.deadline = 0.0  # one number for all that rest
        self.tally.probes += 1
        if result.outcome is _NEUTRAL:
            self.tally.own_trouble += 1
        if not watch.wanted:
            return
        self._report(watch, result, latency if latency > 0 else 0.0)
        beat = watch.beat
        if watch.hurry:
            watch.due = beat.hurried(watch.hurry, now)
        elif beat.every < _NEVER:
            watch.due = beat.next(watch.due, now)
        else:
            return
        self._wheel.add(watch.due, watch)

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
