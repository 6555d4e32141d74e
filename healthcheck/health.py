"""Rise and fall, as a value: a result in, the next health out. Pure: no clock, no I/O, no logging.

Only the order of results counts, never their timing. Results are in a row or they are nothing: one contrary
result takes all progress back, so isolated failures never add up to a verdict, however many there are.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum, StrEnum

FULL = 255  # a ramp at its end: every slot of the backend counts as up
RELAPSES = 8  # what is remembered of a backend that flaps: enough for every rise that makes sense


class State(StrEnum):
    UNKNOWN = "unknown"  # never answered for: the first result decides, whichever it is
    UP = "up"
    DOWN = "down"


class Outcome(Enum):
    PASS = "pass"  # noqa: S105 - an outcome, not a password
    FAIL = "fail"
    OUT = "out"  # the backend itself asks not to be used: down at once
    NEUTRAL = "neutral"  # the trouble was our own: it says nothing about the backend


_UP, _PASS = (
    State.UP,
    Outcome.PASS,
)  # an enum's own look-up takes longer than the rest of what is done most often


class Pace(Enum):
    """How soon to ask again."""

    STEADY = "steady"
    FAST = "fast"  # a change is pending, or nothing is known yet
    SLOW = "slow"  # down, and nothing says otherwise


@dataclass(frozen=True, slots=True)
class Thresholds:
    rise: int = 2
    fall: int = 3
    settle: int = (
        0  # good answers after which a rise counts as lasting; 0: relapses are not remembered
    )

    def to_leave(self, state: State) -> int:
        """How many contrary results in a row end this state."""
        return {State.UNKNOWN: 1, State.UP: self.fall, State.DOWN: self.rise}[state]


@dataclass(frozen=True, slots=True)
class Health:
    """HAProxy's counter, counted from the other end: how far it is from where the verdict put it."""

    state: State = State.UNKNOWN
    contrary: int = 0  # results in a row that disagree with `state`
    leaning: State = State.UNKNOWN  # one that returns has to prove either: what these results say
    relapses: int = 0  # falls in a row that came before the rise had settled
    unsettled: int = 0  # good answers still to come until the rise counts as lasting

    def after(self, outcome: Outcome, thresholds: Thresholds) -> "Health":
        if outcome is _PASS and self.state is _UP and not (self.contrary or self.unsettled):
            return self  # nearly always
        if outcome is Outcome.NEUTRAL:
            return self
        seen = State.UP if outcome is Outcome.PASS else State.DOWN
        if seen is self.state:
            return self._confirmed()
        if self.leaning not in (State.UNKNOWN, seen):
            return replace(self, leaning=seen, contrary=0).after(outcome, thresholds)
        if outcome is Outcome.OUT or self.contrary + 1 >= self.needed(thresholds):
            return self._turned(seen, thresholds)
        return replace(self, contrary=self.contrary + 1)

    def needed(self, thresholds: Thresholds) -> int:
        """How many contrary results in a row end this verdict. Whoever falls again and again has to prove more."""
        if self.leaning is not State.UNKNOWN:
            return thresholds.rise if self.leaning is State.UP else thresholds.fall
        needed = thresholds.to_leave(self.state)
        return needed << self.relapses if self.state is State.DOWN else needed

    def pace(self) -> Pace:
        if self.contrary or self.state is State.UNKNOWN:
            return Pace.FAST
        return Pace.SLOW if self.state is State.DOWN else Pace.STEADY

    def redefined(self) -> "Health":
        """The verdict holds under a new definition; what was counted under the old one does not."""
        return Health(self.state, leaning=self.leaning)

    def doubted(self, thresholds: Thresholds) -> "Health":
        """A verdict from long ago: it holds, and the first contrary result ends it."""
        return Health(self.state, self.needed(thresholds) - 1)

    def _confirmed(self) -> "Health":
        if self.unsettled:
            left = self.unsettled - 1
            return Health(self.state, relapses=self.relapses if left else 0, unsettled=left)
        return replace(self, contrary=0) if self.contrary else self

    def _turned(self, seen: State, thresholds: Thresholds) -> "Health":
        if seen is State.UP:
            return Health(seen, relapses=self.relapses, unsettled=thresholds.settle)
        return Health(seen, relapses=min(self.relapses + 1, RELAPSES) if self.unsettled else 0)


STEADY = Health(State.UP)  # how nearly all backends are nearly all the time


def after_all(health: Health, outcomes: Iterable[Outcome], thresholds: Thresholds) -> Health:
    for outcome in outcomes:
        health = health.after(outcome, thresholds)
    return health


_BELOW, _UNJUDGED = Health(State.DOWN), Health(State.UNKNOWN)
_RETURNING = Health(State.UNKNOWN, leaning=State.DOWN)


def first(pool: Iterable[State], *, assumed_up: bool, returns: bool) -> Health:
    """A backend that nobody has judged. It joins a serving pool from below; a new service may start with one success.

    One that `returns` may have flows from before, which a verdict of down would move: it has to rise for
    new ones, and to fall before it loses the old.
    """
    if State.UP not in pool or assumed_up:
        return _UNJUDGED
    return _RETURNING if returns else _BELOW


def ramp(elapsed: float, over: float, start: int = 0) -> int:
    """How much of its share a backend has that came back `elapsed` seconds ago, of 255."""
    if elapsed >= over:
        return FULL
    return start + int((FULL - start) * max(elapsed, 0) / over)
