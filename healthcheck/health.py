"""Rise and fall, as a value: a result in, the next health out. Pure: no clock, no I/O, no logging.

Only the order of results counts, never their timing. Results are in a row or they are nothing: one contrary
result takes all progress back, so isolated failures never add up to a verdict, however many there are.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum, StrEnum


class State(StrEnum):
    UNKNOWN = "unknown"  # never answered for: the first result decides, whichever it is
    UP = "up"
    DOWN = "down"


class Outcome(Enum):
    PASS = "pass"  # noqa: S105 - an outcome, not a password
    FAIL = "fail"
    NEUTRAL = "neutral"  # the trouble was our own: it says nothing about the backend


@dataclass(frozen=True, slots=True)
class Thresholds:
    rise: int = 2
    fall: int = 3

    def to_leave(self, state: State) -> int:
        """How many contrary results in a row end this state."""
        return {State.UNKNOWN: 1, State.UP: self.fall, State.DOWN: self.rise}[state]


@dataclass(frozen=True, slots=True)
class Health:
    """HAProxy's counter, counted from the other end: how far it is from where the verdict put it."""

    state: State = State.UNKNOWN
    contrary: int = 0  # results in a row that disagree with `state`

    def after(self, outcome: Outcome, thresholds: Thresholds) -> "Health":
        if outcome is Outcome.NEUTRAL:
            return self
        seen = State.UP if outcome is Outcome.PASS else State.DOWN
        if seen is self.state:
            return replace(self, contrary=0) if self.contrary else self
        if self.contrary + 1 >= thresholds.to_leave(self.state):
            return Health(seen)
        return replace(self, contrary=self.contrary + 1)

    def redefined(self) -> "Health":
        """The verdict holds under a new definition; what was counted under the old one does not."""
        return replace(self, contrary=0)


def after_all(health: Health, outcomes: Iterable[Outcome], thresholds: Thresholds) -> Health:
    for outcome in outcomes:
        health = health.after(outcome, thresholds)
    return health
