"""One probe of several: each way that clients' packets take to a backend, one after the other.

It passes when all of them have; the first that does not is the result, and says whose it is. All of it has
the check's time. What a way is made of is not known here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from healthcheck.exchange import Exchange, Reason, Result
from healthcheck.health import Outcome
from healthcheck.probes import Attempt, Datagram, Probe, Tcp

NOT_READY = "the reconciler could not prepare checks via service; `reconciler status` says why"
_PASS = Outcome.PASS


@dataclass(frozen=True, slots=True)
class Leg:
    """A probe, and what it is of, for people."""

    what: str
    probe: Probe

    def named(self, result: Result) -> Result:
        detail = f"{self.what}: {result.detail}" if result.detail else self.what
        return replace(result, detail=detail)


class Ways:
    """The legs of one backend, to be asked again and again."""

    __slots__ = ("legs",)

    def __init__(self, legs: Sequence[Leg]) -> None:
        self.legs = tuple(legs)

    def __call__(self) -> Attempt | Result:
        return self.begin(0)

    def begin(self, number: int) -> Attempt | Result:
        leg = self.legs[number]
        return self.wrapped(number, leg.probe())

    def wrapped(self, number: int, found: Attempt | Result) -> Attempt | Result:
        if isinstance(found, Result):
            return self.after(number, found)
        return _Stage(self, number, found)

    def after(self, number: int, result: Result) -> Attempt | Result:
        """The next leg's attempt, when there is one and this one has passed."""
        if result.outcome is not _PASS:
            return self.legs[number].named(result)
        if number + 1 < len(self.legs):
            return self.begin(number + 1)
        return result

    def overhear(self, wrap: Callable[[Exchange], Exchange]) -> None:
        for leg in self.legs:
            if isinstance(leg.probe, (Tcp, Datagram)):
                leg.probe.overhear(wrap)

    def close(self) -> None:
        for leg in self.legs:
            leg.probe.close()


class _Stage:
    """A leg under way."""

    __slots__ = ("_attempt", "_number", "_ways", "events", "fd", "registered")

    def __init__(self, ways: Ways, number: int, attempt: Attempt) -> None:
        self._ways, self._number, self._attempt = ways, number, attempt
        self.fd, self.events, self.registered = attempt.fd, attempt.events, attempt.registered

    def ready(self, events: int) -> Result | Attempt | None:
        found = self._attempt.ready(events)
        if found is None:
            return None
        if not isinstance(found, Result):
            return self._ways.wrapped(self._number, found)
        following = self._ways.after(self._number, found)
        if not isinstance(following, Result):
            self._attempt.close()  # whoever takes over closes nothing but itself
        return following

    def overdue(self) -> Result:
        return self._ways.legs[self._number].named(self._attempt.overdue())

    def close(self) -> None:
        self._attempt.close()


class NotReady:
    """Without a mark no packet would go the way that is meant: that says nothing about a backend."""

    def __call__(self) -> Result:
        return Result(Outcome.NEUTRAL, Reason.OWN_TROUBLE, NOT_READY)

    def close(self) -> None: ...
