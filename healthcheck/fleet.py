"""All backends: from what the reconciler wants probed to what the health map says. Probes nothing itself.

Health belongs to backends, results to subjects: whoever shares an address and a definition shares the probe.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from healthcheck import heap, report, targets
from healthcheck.checker import Engine, Tally, Watch
from healthcheck.definition import Subject
from healthcheck.exchange import Result
from healthcheck.health import FULL, Outcome, Pace, State
from healthcheck.members import Adoption, Member, Past, difference
from healthcheck.report import Condition, Report
from healthcheck.schedule import Beat, seed
from healthcheck.stock import Stock
from healthcheck.targets import Targets, TargetsError
from healthcheck.verdicts import Opener, Verdict, Verdicts, VerdictsError

STEP = 0.025  # seconds between two slices of other work
GAP = 0.2  # between two looks around, and between two reports at least ...
REFRESH = 5.0  # ... and at most: readers may take an older one for stale

_PACES = (Pace.FAST, Pace.STEADY, Pace.SLOW)  # whoever shares a probe is served by the most urgent

log = logging.getLogger("healthcheck")


@dataclass(slots=True)
class Conditions:
    """What is wrong with ourselves, logged when it begins and when it ends."""

    _now: Callable[[], float]
    _all: dict[str, Condition] = field(default_factory=dict)

    def set(self, kind: str, message: str) -> None:
        """An empty message: it is over."""
        before = self._all.get(kind)
        if message and (before is None or before.message != message):
            self._all[kind] = Condition(kind, message, before.since if before else self._now())
            log.warning("%s: %s", kind, message)
        elif before and not message:
            del self._all[kind]
            log.info("%s: over", kind)

    def all(self) -> list[Condition]:
        return list(self._all.values())


class Fleet:
    def __init__(
        self,
        targets_path: Path,
        report_path: Path,
        instance: str,
        open_verdicts: Opener,
        now: Callable[
            [], float
        ] = time.time,  # for people: what is paced goes by the engine's clock
        in_flight: int = 4096,
        stock: Stock | None = None,
    ) -> None:
        self.engine = Engine(self.learn, self.settle, in_flight=in_flight)
        self.conditions = Conditions(now)
        self._stock = stock or Stock()
        self._targets_path = targets_path
        self._report_path = report_path
        self._instance = instance
        self._open_verdicts = open_verdicts
        self._now = now
        self._seen: object = None  # signatures of the targets and of the map that were adopted
        self._verdicts: Verdicts | None = None
        self._members: list[Member] = []
        self._watches: list[Watch] = []
        self._unwritten: dict[int, Verdict] = {}
        self._ramping: set[int] = set()  # ids of backends with less than their whole share
        self._report = Report(instance)
        self._news = False  # since the last report
        self._refreshing = False
        self._reported = -REFRESH
        self._looked = -GAP
        self._past = report.past(report_path)
        self.engine.tally = Tally(**self._past.counted)

    # ---- what the engine tells

    def learn(self, watch: Watch, result: Result, latency: float) -> None:
        at = self._now()
        member: Member
        for member in watch.hearers:
            before = member.health
            flipped = member.hear(result, latency, at)
            if member.health is not before:
                if flipped:
                    self._flip(member, before.state, result)
                self._pace(watch)

    def settle(self) -> None:
        """After a batch of results: all their flips are one write."""
        if self._unwritten:
            self._write()
        if self._news and self._age() >= GAP and self._report.told():
            self._publish()

    # ---- what changes around us

    def step(self) -> None:
        """A little of everything that can wait: so often, and so little, that no probe is late for it."""
        if self.engine.clock() - self._looked >= GAP:
            self.look()
        elif self._refreshing and self._report.step() and self._age() >= GAP:
            self._publish()

    def look(self) -> None:
        """Level-triggered: whatever may have happened, compare and catch up."""
        self._looked = self.engine.clock()
        try:
            self._follow()
        except (TargetsError, OSError) as error:
            self.conditions.set("targets", str(error))
        except VerdictsError as error:
            self.conditions.set("health-map", str(error))
        if self._ramping:
            self._ramp()
        self.settle()
        if self._age() >= REFRESH and not self._refreshing:
            self._refreshing = True
            self._report.refresh()
            if self._report.step():
                self._publish()

    @property
    def follows(self) -> bool:
        """The targets were read and the map that they name is open."""
        return self._seen is not None

    def headline(self) -> str:
        """One line on how we are. Flips are told by the log: that would be news too often."""
        troubles = "; ".join(f"{one.type}: {one.message}" for one in self.conditions.all())
        if not self.follows:
            return f"waiting: {troubles}" if troubles else "waiting for the first targets"
        probing = f"{len(self._members)} backends, {len(self._watches)} probes"
        return f"{probing}; {troubles}" if troubles else probing

    def publish(self) -> None:
        """Everything, now."""
        self._report.refresh()
        while not self._report.step():
            pass
        self._publish()

    def _publish(self) -> None:
        now = self._now()
        self.conditions.set("own-trouble", own_trouble(self._members))
        self.conditions.set("certificates", ending(self._members, now))
        text = self._report.text(self.conditions.all(), self.engine.tally, now)
        self._reported = self.engine.clock()
        self._refreshing = False
        try:
            report.publish(self._report_path, text)
        except OSError as error:
            self.conditions.set("report", f"{self._report_path}: cannot write: {error}")
            return
        self._news = False
        self.conditions.set("report", "")

    def _age(self) -> float:
        return self.engine.clock() - self._reported

    def close(self) -> None:
        """The map keeps what it says: forwarding goes on with it."""
        self.engine.close()
        for watch in self._watches:
            self.engine.forget(watch)
        self._stock.close()
        if self._verdicts:
            self._verdicts.close()

    # ---- following

    def _follow(self) -> None:
        file = targets.signature(self._targets_path)
        if file is None:
            raise TargetsError(f"{self._targets_path}: {targets.NOT_THERE}")
        if not self._is_new(file):
            self.conditions.set("targets", "")  # it may have been away
            return
        wanted = targets.read(self._targets_path)
        if wanted.instance != self._instance:
            raise TargetsError(
                f"{self._targets_path}: for instance {wanted.instance}, this is {self._instance}"
            )
        map_seen = targets.signature(wanted.health_map)
        self._adopt(wanted, self._open(wanted.health_map))
        self._seen = (file, wanted.health_map, map_seen)
        self.conditions.set("targets", "")
        self.conditions.set("health-map", "")

    def _is_new(self, file: targets.Signature) -> bool:
        """Whether the file, or the map that it names, is another than the one adopted."""
        if not isinstance(self._seen, tuple):
            return True
        seen_file, health_map, seen_map = self._seen
        return bool(seen_file != file or targets.signature(health_map) != seen_map)

    def _open(self, health_map: Path) -> Verdicts:
        verdicts = self._open_verdicts(health_map, self._instance)
        if self._verdicts:
            self._verdicts.close()
        self._verdicts = verdicts
        return verdicts

    def _adopt(self, wanted: Targets, verdicts: Verdicts) -> None:
        recorded = verdicts.read()
        clock = self.engine.clock()
        adoption = Adoption(self._members, recorded, self._past, self._now(), clock)
        self._members = adoption.members(wanted.backends)
        self._past = Past()
        self._unwritten = difference(self._members, recorded)
        self._ramping = {m.backend.id for m in self._members if m.ramp < FULL}
        self._watch(self._members)
        self._report.follow(self._members)
        self._news = True
        heap.settle()
        log.info("%d backends, %d probes", len(self._members), len(self._watches))

    def _watch(self, members: list[Member]) -> None:
        """Probes go on where the subject stays, with their phase; only what is new or gone is touched."""
        audience: dict[Subject, list[Member]] = {}
        for member in members:
            audience.setdefault(member.backend.subject, []).append(member)
        old = {_subject(watch): watch for watch in self._watches}
        for subject in old.keys() - audience.keys():
            self.engine.forget(old[subject])
        self._watches = [old.get(subject) or self._begin(subject) for subject in audience]
        for watch, heard in zip(self._watches, audience.values(), strict=True):
            watch.hearers = tuple(heard)
            self._pace(watch)

    def _begin(self, subject: Subject) -> Watch:
        pacing, probe = subject.check.pacing, subject.probe(self._stock)
        beat = Beat(seed(subject.identity()), pacing.every, pacing.jitter)
        return self.engine.watch(probe, beat, subject.check.timeout)

    def _pace(self, watch: Watch) -> None:
        paces = {member.health.pace() for member in watch.hearers}
        pace = next(pace for pace in _PACES if pace in paces)
        pacing = _subject(watch).check.pacing
        hurry = pacing.fast if pace is Pace.FAST and pacing.fast < pacing.every else 0.0
        every = pacing.slow if pace is Pace.SLOW else pacing.every
        if watch.beat.every != every:
            watch.pace(watch.beat.paced(every), hurry)
        else:
            watch.hurry = hurry

    # ---- writing

    def _flip(self, member: Member, before: State, result: Result) -> None:
        if member.health.state is State.UP and before is State.DOWN:
            member.returns(self.engine.clock())
        else:
            member.ramp = FULL
        if member.ramp < FULL:
            self._ramping.add(member.backend.id)
        self._unwritten[member.backend.id] = member.verdict
        self._report.touch(member)
        self._news = True
        log.info(
            "%s %s: %s -> %s: %s%s",
            member.backend.name,
            member.backend.subject,
            before,
            member.health.state,
            result.reason,
            f" ({result.detail})" if result.detail else "",
        )

    def _ramp(self) -> None:
        clock = self.engine.clock()
        for member in self._members:
            if member.backend.id in self._ramping:
                if member.ramped(clock):
                    self._unwritten[member.backend.id] = member.verdict
                if member.ramp == FULL:
                    self._ramping.discard(member.backend.id)

    def _write(self) -> None:
        if self._verdicts is None:
            return
        try:
            self._verdicts.write(self._unwritten.items())
        except VerdictsError as error:
            self.conditions.set("health-map", str(error))  # tried again after the next results
            return
        self._unwritten.clear()
        self.conditions.set("health-map", "")


def _subject(watch: Watch) -> Subject:
    member: Member = watch.hearers[0]
    return member.backend.subject


def own_trouble(members: Sequence[Member]) -> str:
    """What keeps us from probing, if anything does."""
    newest = [member.last for member in members if member.last]
    unable = [result.detail for result in newest if result.outcome is Outcome.NEUTRAL]
    if not unable:
        return ""
    return f"{len(unable)} of {len(members)} backends could not be probed: {unable[0]}"


def ending(members: Sequence[Member], now: float) -> str:
    """Certificates that end soon, the soonest by name."""
    soon = [
        (member.last.valid_until, member.backend.name)
        for member in members
        if member.last and member.last.valid_until is not None
        if member.last.valid_until - now < member.backend.subject.check.secure.warning
    ]
    if not soon:
        return ""
    until, name = min(soon)
    return f"{len(soon)} certificates end soon: {name}'s in {max(until - now, 0) / 86400:.0f} days"
