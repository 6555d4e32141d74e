"""What is known of each backend, and what of it survives which change. Probes and writes nothing.

Verdicts outlive everything but contrary evidence. A new definition, another incarnation of the same backend, a
restart of this process (the map remembers), a health map made anew: none of them changes one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from healthcheck.exchange import Result
from healthcheck.health import FULL, STEADY, Health, Outcome, State, first, ramp
from healthcheck.targets import Backend
from healthcheck.verdicts import Verdict

TRUSTED = 300.0  # seconds without a checker after which the map's verdicts need no more than one contrary result
NOTHING = Verdict(State.UNKNOWN)
_PASS = Outcome.PASS


@dataclass(slots=True)
class Member:
    """A backend with all that is known of it."""

    backend: Backend
    health: Health = Health()  # noqa: RUF009 - a frozen value
    since: float | None = None  # when `health.state` began; None: not known, or never judged
    last: Result | None = None  # the newest result, ...
    latency: float = 0.0  # ... what it took, in seconds, ...
    at: float = 0.0  # ... and when it was, since the epoch
    passed: int = 0
    failed: int = 0
    neutral: int = 0
    flips: int = 0
    reasons: dict[str, int] | None = None  # of results that did not pass: how many for which reason
    place: int = 0  # in the report
    ramp: int = FULL
    returned: float = 0.0  # while the ramp is below its end: when it began, on the engine's clock

    @property
    def verdict(self) -> Verdict:
        return Verdict(self.health.state, self.ramp)

    def hear(self, result: Result, latency: float, at: float) -> bool:
        """Whether the verdict has changed."""
        self.last, self.latency, self.at = result, latency, at
        if result.outcome is _PASS:
            self.passed += 1
            if self.health is STEADY:
                return False  # nearly always
        else:
            self._count(result)
        return self._judge(result.outcome, at)

    def _judge(self, outcome: Outcome, at: float) -> bool:
        before = self.health
        after = before.after(outcome, self.backend.subject.check.thresholds)
        self.health = STEADY if after == STEADY else after
        if after.state is before.state:
            return False
        self.since = at
        self.flips += 1
        return True

    def _count(self, result: Result) -> None:
        if result.outcome is Outcome.NEUTRAL:
            self.neutral += 1
        else:
            self.failed += 1
        reasons = self.reasons = self.reasons or {}
        reasons[result.reason] = reasons.get(result.reason, 0) + 1

    def needed(self) -> int:
        return self.health.needed(self.backend.subject.check.thresholds)

    def returns(self, clock: float) -> None:
        """Up again: with a slow start if it has one."""
        if self.backend.subject.check.ramp:
            self.ramp, self.returned = 0, clock

    def ramped(self, clock: float) -> bool:
        """Whether it has more of its share now than before."""
        share = ramp(clock - self.returned, self.backend.subject.check.ramp)
        changed = share > self.ramp
        self.ramp = max(share, self.ramp)
        return changed


NO_REASONS: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Told:
    """What the last process said of one backend."""

    state: State = State.UNKNOWN
    since: float | None = None
    counts: tuple[int, int, int, int] = (0, 0, 0, 0)  # passed, failed, neutral, flips
    reasons: Mapping[str, int] = field(default_factory=lambda: NO_REASONS)


@dataclass(frozen=True, slots=True)
class Past:
    """What the last process said before it ended, and when that was."""

    backends: Mapping[int, Told] = field(default_factory=dict)  # by id
    told: float | None = None
    counted: Mapping[str, int] = field(default_factory=dict)  # by the checker, of itself

    def is_old(self, now: float) -> bool:
        return self.told is not None and now - self.told > TRUSTED


_UNHEARD_OF = Told()


class Adoption:
    """The members for new targets, each with the best that is known of it."""

    def __init__(
        self,
        old: Iterable[Member],
        recorded: Mapping[int, Verdict],
        past: Past,
        now: float,
        clock: float,
    ) -> None:
        self._by_id = {member.backend.id: member for member in old}
        self._by_place = {_place(member.backend): member for member in self._by_id.values()}
        self._recorded = recorded
        self._past = past
        self._old_news = past.is_old(now)
        self._clock = clock

    def members(self, backends: Iterable[Backend]) -> list[Member]:
        members = [self._member(backend) for backend in backends]
        states: dict[str, set[State]] = {}
        for member in members:
            states.setdefault(member.backend.pool, set()).add(member.health.state)
        for member in members:
            if member.health.state is State.UNKNOWN and member.last is None:
                pool, returns = states[member.backend.pool], member.backend.id in self._recorded
                assumed_up = member.backend.assumed_up
                member.health = first(pool, assumed_up=assumed_up, returns=returns)
        return members

    def _member(self, backend: Backend) -> Member:
        before = self._by_id.get(backend.id) or self._by_place.get(_place(backend))
        if before is None:
            return self._from_map(self._remembered(backend))
        same = before.backend.subject == backend.subject
        health = before.health if same else before.health.redefined()
        reasons = dict(before.reasons) if before.reasons else None
        member = replace(before, backend=backend, health=health, reasons=reasons)
        return self._from_map(member) if health.state is State.UNKNOWN else member

    def _remembered(self, backend: Backend) -> Member:
        """Counting goes on where the last process stopped."""
        member, told = Member(backend), self._past.backends.get(backend.id, _UNHEARD_OF)
        member.passed, member.failed, member.neutral, member.flips = told.counts
        member.reasons = dict(told.reasons) or None
        return member

    def _from_map(self, member: Member) -> Member:
        backend = member.backend
        said = self._recorded.get(backend.id, NOTHING)
        if said.state is State.UNKNOWN:
            return member
        health = Health(said.state)
        doubted = health.doubted(backend.subject.check.thresholds)
        member.health = doubted if self._old_news else health
        told = self._past.backends.get(backend.id, _UNHEARD_OF)
        member.since = told.since if told.state is said.state else None
        over = backend.subject.check.ramp
        if said.state is State.UP and said.ramp < FULL and over:
            member.ramp, member.returned = said.ramp, self._clock - over * said.ramp / FULL
        return member


def _place(backend: Backend) -> tuple[str, str, int]:
    """What stays when an id gets a new incarnation."""
    return backend.name, backend.subject.address, backend.subject.port


def difference(members: Iterable[Member], recorded: Mapping[int, Verdict]) -> dict[int, Verdict]:
    """What to write so that the map says what is known: of these backends, and nothing of others.

    A backend that is no longer checked must not stay down for ever because it was down when its check went.
    """
    known = {member.backend.id: member.verdict for member in members}
    wrong = {id_: said for id_, said in known.items() if recorded.get(id_, NOTHING) != said}
    judged = {id_ for id_, said in recorded.items() if said.state is not State.UNKNOWN}
    gone = dict.fromkeys(judged - known.keys(), NOTHING)
    return gone | wrong  # in this order: an index may have passed from one to the other
