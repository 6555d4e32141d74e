"""Follows the source to the configuration that is to be applied now.

Asks the source, the suspension and the history, lets `acceptance` decide, and keeps
the last good configuration through everything else. Writes no map.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from bpf.errors import plainly
from reconciler import suspension
from reconciler.acceptance import Decision, Good, Rules, Standing, Use, decide
from reconciler.conditions import Trouble
from reconciler.git import GitError
from reconciler.history import Generation, History, Result, generation
from reconciler.model import Config
from reconciler.problems import Mark, Problem, Rejected
from reconciler.revision import Candidate, Revision, SourceError
from reconciler.source import Source
from reconciler.suspension import Suspension

SLOW = 3.0  # seconds that a source may take before a node with nothing takes its last good one
REMIND = 600.0
log = logging.getLogger("reconciler")


@dataclass(frozen=True, slots=True)
class Accepted:
    """A configuration that may be applied."""

    config: Config
    revision: Revision
    note: str = ""  # where it is from, if not from the source
    allow_removals: bool = False


@dataclass(frozen=True, slots=True)
class Following:
    """How the source is followed, as others are told."""

    source: str
    offered: Revision | None = None  # the newest that could be read
    trouble: Trouble | None = None  # why the source cannot be read
    rejected: Trouble | None = None  # why what it offers is not taken
    suspension: Suspension | None = None
    hint: str = ""  # why only polling finds changes; empty while events come

    @property
    def suspended(self) -> Trouble | None:
        if self.suspension is None:
            return None
        reason = "RolledBack" if self.suspension.generation else "Suspended"
        return Trouble(reason, described(self.suspension))


class Follower:
    """Owns what is accepted; `accepted` changes only in `look`."""

    def __init__(
        self,
        source: Source,
        state_dir: Path,
        check: Callable[[Revision], Config],
        rules: Rules | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._source, self._check, self._rules = source, check, rules or Rules()
        self._state_dir, self._clock = state_dir, clock
        self.history = History(state_dir / "history")
        self.accepted: Accepted | None = None
        self._offered: Candidate | Trouble | None = None
        self._following = Following(source.name)
        self._decided: object = None
        self._asked_at = clock()
        self._said: dict[str, tuple[Trouble | None, float]] = {}

    @property
    def following(self) -> Following:
        return self._following

    def look(self) -> bool:
        """Whether `accepted` is another one now."""
        before = self.accepted
        self._ask()
        pause = self._suspension()
        reasons = (self._offered, pause, self._is_slow())
        if reasons != self._decided:
            self._decided = reasons
            self._follow(pause)
        self._speak()
        return self.accepted is not before

    def hinted(self, trouble: str) -> None:
        """Whether events tell of changes, or why they do not."""
        if trouble != self._following.hint:
            self._following = replace(self._following, hint=trouble)

    def once(self) -> Accepted:
        """What is to be applied now, waiting for the source. SourceError or Rejected if nothing is."""
        pause = self._suspension()
        offered = self._read(pause)
        if offered is not None:
            self._accept(Accepted(self._check(offered.revision), offered.revision))
            self._source.accepted(offered.revision)
        assert self.accepted is not None  # noqa: S101 -- _read raises when there is nothing
        return self.accepted

    def preview(self) -> Accepted:
        """What the source offers, if it may be applied; a suspension is only mentioned."""
        offered = self._source.preview()
        if (paused := suspension.read(self._state_dir)) is not None:
            log.warning("suspended, so this would not be applied now: %s", described(paused))
        self._refuse(offered)
        return Accepted(self._check(offered.revision), offered.revision)

    def _read(self, pause: Suspension | None) -> Candidate | None:
        """What the source offers; None when something kept on disk is used instead."""
        offered: Candidate | Trouble
        error: SourceError | None = None
        if pause is not None:  # what is kept does; the source may not even be there
            waiting = decide(None, self._good(), pause.pause(), self._rules)
            self._fall_back(waiting, pause)
        if pause is not None and self.accepted is not None:
            log.warning("suspended: %s", described(pause))
            return None
        try:
            offered = self._source.read()
        except SourceError as problem:
            error, offered = problem, Trouble(problem.reason, str(problem))
        decision = decide(offered, self._good(), pause.pause() if pause else None, self._rules)
        if isinstance(offered, Candidate) and decision.refused:
            self._refuse(offered)
        self._fall_back(decision, pause)
        if self.accepted is not None:
            log.warning("%s: %s", decision.reason, decision.message)
            return None
        if isinstance(offered, Candidate):
            return offered
        raise error or SourceError(f"{self._source.name}: nothing to apply")

    def _refuse(self, offered: Candidate) -> None:
        """Rejected, when the source offers what must not be taken."""
        decision = decide(offered, self._good(), None, self._rules)
        if decision.refused:
            text = offered.revision.text
            last = Mark(text.count("\n") + (not text.endswith("\n")), 1)
            raise Rejected(offered.revision.path, [Problem(last, decision.message)], text)

    def applied(self, number: int, result: Result, note: str = "") -> None:
        """How it went; the next start may need it. A full disk is no reason to stop."""
        if self.accepted is None:
            return
        taken = self.accepted
        known = self.history.find(number)
        if known is not None and known.digest != taken.revision.digest.hex():
            known = None
        if known is not None and known.result is not Result.FAILED and result is Result.FAILED:
            return  # it was applied; what fails now is not the configuration
        when = known.time if known is not None else int(self._clock())
        made = generation(number, taken.revision, when, result, note or taken.note)
        try:
            self.history.record(made, taken.revision.text)
        except OSError as error:
            log.error("history of generation %d is not kept: %s", number, plainly(error))  # noqa: TRY400

    # ---- what there is to know

    def _ask(self) -> None:
        try:
            offered = self._source.look()
        except SourceError as error:
            self._offered = Trouble(error.reason, str(error))
        else:
            self._offered = offered or self._offered

    def _suspension(self) -> Suspension | None:
        found = suspension.read(self._state_dir)
        if found is not None and not found.active(self._clock()):
            log.warning("no longer suspended: %s; following %s", found.reason, self._source.name)
            suspension.clear(self._state_dir)
            return None
        return found

    def _is_slow(self) -> bool:
        waiting = self._offered is None and self.accepted is None
        return waiting and self._clock() - self._asked_at >= SLOW

    def _good(self) -> Good:
        if self.accepted is not None:
            revision = self.accepted.revision
            return Good(Standing.RUNNING, revision.digest, revision.sealed)
        found = self._last_good()
        if found is None:
            return Good()
        return Good(Standing.ON_DISK, found.digest, found.sealed)

    def _last_good(self) -> Revision | None:
        found = self.history.last_good()
        return self._kept(found) if found is not None else None

    def _kept(self, found: Generation) -> Revision | None:
        try:
            return self.history.revision(found)
        except OSError as error:
            log.error("%s", error)  # noqa: TRY400
            return None

    # ---- what follows from it

    def _follow(self, pause: Suspension | None) -> None:
        offered = self._offered
        if offered is None and self._is_slow():
            offered = Trouble("Waiting", f"{self._source.name}: no answer for {SLOW:g} s")
        decision = decide(offered, self._good(), pause.pause() if pause else None, self._rules)
        rejected = Trouble(decision.reason, decision.message) if decision.refused else None
        if decision.use is Use.CANDIDATE and isinstance(offered, Candidate):
            rejected = self._take(offered.revision)
            if rejected is not None:
                decision = decide(rejected, self._good(), None, self._rules)
        self._fall_back(decision, pause)
        self._following = Following(
            self._source.name,
            offered.revision if isinstance(offered, Candidate) else self._following.offered,
            offered if isinstance(offered, Trouble) else None,
            rejected,
            pause,
            self._following.hint,
        )

    def _take(self, revision: Revision) -> Trouble | None:
        """Accept what the source offers, or say what is wrong with it."""
        try:
            config = self._meaning(revision)
        except Rejected as error:
            first = error.problems[0] if error.problems else None
            where = f"{revision.path}:{first.mark.line}" if first else revision.path
            log.error("%s: rejected; what is applied stays\n%s", revision, error)  # noqa: TRY400
            said = f" ({revision.made})" if revision.commit else ""
            return Trouble("Rejected", f"{where}: {first.message if first else error}{said}")
        self._accept(Accepted(config, revision))
        try:
            self._source.accepted(revision)
        except (GitError, OSError) as error:  # remembering failed; the configuration is good
            log.error("%s: %s", self._source.name, error)  # noqa: TRY400
        return None

    def _meaning(self, revision: Revision) -> Config:
        """Checked already when only the commit is another one."""
        now = self.accepted
        if now is not None and now.revision.digest == revision.digest:
            return now.config
        return self._check(revision)

    def _fall_back(self, decision: Decision, pause: Suspension | None) -> None:
        if decision.use is Use.PINNED and pause is not None:
            self._go_back(pause)
        elif decision.use is Use.LAST_GOOD:
            self._restore()

    def _restore(self) -> None:
        found = self.history.last_good()
        revision = self._kept(found) if found is not None else None
        if found is None or revision is None:
            return
        if self._reuse(revision, found.note):
            log.warning("using generation %d, the last good one kept on disk", found.number)

    def _go_back(self, pause: Suspension) -> None:
        """What was asked for is found by content: numbers start anew when an instance does."""
        found = next(
            (one for one in self.history.generations() if one.digest == pause.digest), None
        )
        if self.accepted is not None and self.accepted.revision.digest.hex() == pause.digest:
            return
        revision = self._kept(found) if found is not None else None
        note = f"rolled back to generation {pause.generation}: {pause.reason}"
        if revision is not None and self._reuse(revision, note, pause.allow_removals):
            log.warning("%s", note)
            return
        log.error("generation %d is not kept any more: staying as it is", pause.generation)
        if self.accepted is None:
            self._restore()

    def _reuse(self, revision: Revision, note: str, allow_removals: bool = False) -> bool:
        try:
            config = self._check(revision)
        except Rejected as error:
            log.error("what was kept does not suit this node any more\n%s", error)  # noqa: TRY400
            return False
        self._accept(Accepted(config, revision, note, allow_removals))
        return True

    def _accept(self, taken: Accepted) -> None:
        """The same content again is no change, but may be known by another commit now."""
        now = self.accepted
        if now is None or now.revision != taken.revision or now.note != taken.note:
            self.accepted = taken

    # ---- and is said

    def _speak(self) -> None:
        said = self._following
        self._say("source", said.trouble, "what is applied stays")
        self._say("content", said.rejected, "what is applied stays")
        self._say("suspension", said.suspended, "the source is not followed")

    def _say(self, topic: str, trouble: Trouble | None, consequence: str) -> None:
        before, at = self._said.get(topic, (None, 0.0))
        now = self._clock()
        if trouble == before and (trouble is None or now - at < REMIND):
            return
        self._said[topic] = (trouble, now)
        if trouble is None:
            log.info("%s: well again (%s is over)", topic, before.reason if before else "")
        elif trouble.reason != "Rejected" or trouble == before:
            log.error("%s: %s; %s", topic, trouble.message, consequence)


def described(found: Suspension) -> str:
    """Who said so, why, and until when."""
    until = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(found.until))
    by = f" (by {found.by})" if found.by else ""
    back = f"; generation {found.generation} instead" if found.generation else ""
    return f"{found.reason}{by}{back}" + ("" if found.broken else f"; until {until}")
