"""All backends: from what the reconciler wants probed to what the health map says. Probes nothing itself.

Health belongs to backends, results to subjects: whoever shares an address and a definition shares the probe.
Verdicts outlive everything but contrary evidence. A new definition, another incarnation of the same backend, a
restart of this process (the map remembers), a health map made anew: none of them changes one.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from healthcheck import report, targets
from healthcheck.checker import Engine, Watch
from healthcheck.exchange import Result
from healthcheck.health import Health, Outcome, State
from healthcheck.report import Condition, Last, Member
from healthcheck.schedule import Beat, seed
from healthcheck.targets import Backend, Subject, Targets, TargetsError
from healthcheck.verdicts import Opener, Verdicts, VerdictsError

GAP = 0.2  # seconds between two reports at least ...
REFRESH = 5.0  # ... and at most: readers may take an older one for stale

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
    ) -> None:
        self.engine = Engine(self.learn, self.settle)
        self.conditions = Conditions(now)
        self._targets_path = targets_path
        self._report_path = report_path
        self._instance = instance
        self._open_verdicts = open_verdicts
        self._now = now
        self._seen: object = None  # signatures of the targets and of the map that were adopted
        self._verdicts: Verdicts | None = None
        self._members: list[Member] = []
        self._watches: dict[Subject, Watch] = {}
        self._audience: dict[Watch, list[Member]] = {}
        self._unwritten: dict[int, State] = {}
        self._news = False  # since the last report
        self._reported = -REFRESH
        self._remembered = report.remembered(report_path)

    # ---- what the engine tells

    def learn(self, watch: Watch, result: Result, latency: float) -> None:
        last = Last(result, latency, self._now())
        for member in self._audience.get(watch, ()):
            member.last = last
            member.counters.count(result.outcome)
            before = member.health
            member.health = before.after(result.outcome, member.backend.subject.check.thresholds)
            if member.health.state is not before.state:
                self._flip(member, before, result)

    def settle(self) -> None:
        """After a batch of results: all their flips are one write."""
        if self._unwritten:
            self._write()
        if self._news and self._age() >= GAP:
            self.publish()

    # ---- what changes around us

    def look(self) -> None:
        """Level-triggered: whatever may have happened, compare and catch up."""
        try:
            self._follow()
        except (TargetsError, OSError) as error:
            self.conditions.set("targets", str(error))
        except VerdictsError as error:
            self.conditions.set("health-map", str(error))
        self.settle()
        if self._age() >= REFRESH:
            self.publish()

    def publish(self) -> None:
        now = self._now()
        self.conditions.set("own-trouble", own_trouble(self._members))
        content = report.document(
            self._instance, self._members, self.conditions.all(), self.engine.tally, now
        )
        self._reported = self.engine.clock()
        try:
            report.publish(self._report_path, content)
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
        if self._verdicts:
            self._verdicts.close()

    # ---- following

    def _follow(self) -> None:
        file = targets.signature(self._targets_path)
        if file is None:
            raise TargetsError(
                f"{self._targets_path}: not there; the reconciler publishes it when it runs"
            )
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
        self._members = adopt(wanted.backends, self._members, recorded, self._remembered)
        self._remembered = {}
        self._unwritten = difference(self._members, recorded)
        self._watch(self._members)
        self._news = True
        log.info("%d backends, %d probes", len(self._members), len(self._watches))

    def _watch(self, members: list[Member]) -> None:
        """Probes go on where the subject stays, with their phase; only what is new or gone is touched."""
        wanted = {member.backend.subject for member in members}
        for subject in self._watches.keys() - wanted:
            self.engine.forget(self._watches.pop(subject))
        for subject in wanted - self._watches.keys():
            beat = Beat(seed(subject.identity()), subject.check.every)
            self._watches[subject] = self.engine.watch(subject.probe(), beat, subject.check.timeout)
        self._audience = {watch: [] for watch in self._watches.values()}
        for member in members:
            self._audience[self._watches[member.backend.subject]].append(member)

    # ---- writing

    def _flip(self, member: Member, before: Health, result: Result) -> None:
        member.since = self._now()
        member.counters.flips += 1
        self._unwritten[member.backend.id] = member.health.state
        self._news = True
        log.info(
            "%s %s: %s -> %s: %s%s",
            member.backend.name,
            member.backend.subject,
            before.state,
            member.health.state,
            result.reason,
            f" ({result.detail})" if result.detail else "",
        )

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


def adopt(
    backends: Iterable[Backend],
    old: Iterable[Member],
    recorded: dict[int, State],
    since: dict[int, tuple[State, float]],
) -> list[Member]:
    """The members for these backends, each with the best that is known of it."""
    by_id = {member.backend.id: member for member in old}
    by_place = {_place(member.backend): member for member in by_id.values()}

    def known(backend: Backend) -> Member:
        before = by_id.get(backend.id) or by_place.get(_place(backend))
        if before is None or before.health.state is State.UNKNOWN:
            return _recorded(backend, recorded, since, before)
        same = before.backend.subject == backend.subject
        health = before.health if same else before.health.redefined()
        return Member(backend, health, before.since, before.last, before.counters)

    return [known(backend) for backend in backends]


def _recorded(
    backend: Backend,
    recorded: dict[int, State],
    since: dict[int, tuple[State, float]],
    before: Member | None,
) -> Member:
    member = before or Member(backend)
    state = recorded.get(backend.id, State.UNKNOWN)
    was, began = since.get(backend.id, (State.UNKNOWN, 0.0))
    return Member(
        backend, Health(state), began if was is state else None, member.last, member.counters
    )


def _place(backend: Backend) -> tuple[str, str, int]:
    """What stays when an id gets a new incarnation."""
    return backend.name, backend.subject.address, backend.subject.port


def difference(members: Iterable[Member], recorded: dict[int, State]) -> dict[int, State]:
    """What to write so that the map says what is known: of these backends, and nothing of others.

    A backend that is no longer checked must not stay down for ever because it was down when its check went.
    """
    known = {member.backend.id: member.health.state for member in members}
    wrong = {
        id_: state for id_, state in known.items() if recorded.get(id_, State.UNKNOWN) is not state
    }
    gone = dict.fromkeys(recorded.keys() - known.keys(), State.UNKNOWN)
    return gone | wrong  # in this order: an index may have passed from one to the other


def own_trouble(members: Sequence[Member]) -> str:
    """What keeps us from probing, if anything does."""
    newest = [member.last.result for member in members if member.last]
    unable = [result.detail for result in newest if result.outcome is Outcome.NEUTRAL]
    if not unable:
        return ""
    return f"{len(unable)} of {len(members)} backends could not be probed: {unable[0]}"
