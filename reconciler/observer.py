"""Gathers what a status is made from, in the loop's thread, and hands it over whole.

Looks and remembers what was said; changes nothing, and is asked by nobody whether
to. What it cannot read is left as it was: forwarding does not depend on it.
"""

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path

from bpf.kernel import Instance, KernelError, Sizes, now_tick
from bpf.record import version
from reconciler import conditions, counting, published, release, shortage
from reconciler.admission import Blocked
from reconciler.board import Board
from reconciler.conditions import Condition, Holds, Observed, Trouble, Type
from reconciler.counting import Books
from reconciler.dataplane import State
from reconciler.drift import REPAIRS, SPAN, Difference, Vigil
from reconciler.facts import Attempt, Daemon, Facts, Moment, Past, Suspend
from reconciler.follow import Following
from reconciler.healthfile import HealthFile
from reconciler.history import Generation
from reconciler.look import View
from reconciler.model import Config, Node
from reconciler.names import key_text
from reconciler.overrides import Overrides
from reconciler.pair import Pair
from reconciler.rates import Window
from reconciler.revision import Revision
from reconciler.roster import Roster
from reconciler.suspension import Suspension

PACE = 1.0  # seconds from one reading to the next, at least
SHARE = 0.02  # of the loop's time that readings may take
NAME = "conditions.json"
PATIENCE = 1.0  # seconds that a pass may wait for others before it is said
log = logging.getLogger("reconciler")


class Observer:
    def __init__(
        self,
        instance: Instance,
        books: Books,
        node: Node,
        run_dir: Path,
        board: Board,
        pair: Pair,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._instance, self._books, self._node = instance, books, node
        self._board, self._pair, self._clock = board, pair, clock
        self._place = instance.place
        self._health = HealthFile(run_dir)
        self._window = Window()
        self._path = run_dir / NAME
        self._conditions, self._short = kept(self._path), kept_short(self._path)
        self._config: Config | None = None
        self._state, self._roster = State(), Roster()
        self._refused: tuple[str, ...] = ()
        self._blocked: tuple[Blocked, ...] = ()
        self._converged = False
        self.verified = False  # a pass of this process found the maps to be what they are to be
        self._apply: Trouble | None = None
        self._passes: Counter[str] = Counter()
        self._seconds = 0.0
        self._writes = 0
        self._started = clock()
        self._due = 0.0
        self.history: tuple[Past, ...] = ()
        self._drift: tuple[str, ...] = ()
        self._drifted = 0
        self._left = 0  # entries that differ and are not repaired
        self.stalled: Trouble | None = None
        self._waits: float | None = None  # since when a pass waits for another process
        self.blind = False  # the facts on the board are old: newer ones could not be read

    # ---- what the loop says

    def found(self, config: Config | None, state: State) -> None:
        """What the maps said before the first pass of this process."""
        self._state, self._config = state, config
        self._roster = Roster.recovered(config, state) if config else Roster()

    def saw(self, view: View) -> None:
        """What the view holds is in the maps, whatever else that pass came to."""
        self.verified = True
        self._config, self._state, self._roster = view.config, view.held, Roster.of(view.desired)

    def passed(self, view: View, seconds: float) -> None:
        self.saw(view)
        self._refused = tuple(str(finding) for finding in view.findings if finding.refused)
        self._blocked = tuple(why for _, why in sorted(view.blocked.items()))
        self._converged, self._apply = True, None
        self._writes += len(view.ops)
        self._count(_result(view), seconds)

    def failed(self, error: Exception, seconds: float) -> None:
        """The maps are what they were, or something between that and what they are to be."""
        self._apply = Trouble(type(error).__name__, str(error))
        self._count("failed", seconds)

    def waits(self) -> None:
        """A pass is due, and another process has the kernel boundary's lock."""
        self._waits = self._waits or self._clock()

    def drifted(self, found: tuple[str, ...]) -> None:
        """What the last pass found changed by others; it was repaired unless that pass failed."""
        self._drift = found
        self._drifted += len(found)

    def watch(self, vigil: Vigil) -> None:
        """What of it was left as it is, and why."""
        fought = vigil.fought
        self.stalled = Trouble("Fighting", _fight(fought)) if fought else None
        self._left = vigil.left

    def recall(self, generations: Iterable[Generation]) -> None:
        self.history = past(generations)

    def _count(self, result: str, seconds: float) -> None:
        self._waits = None
        self._passes[result] += 1
        self._seconds += seconds
        self._due = 0.0

    # ---- what others see

    def publish(self, following: Following, overrides: Overrides, *, now: bool = False) -> None:
        """New facts, when it is time or somebody waits: after a pass, else every second."""
        self._board.seen = began = time.monotonic()
        if began < self._due and not now:
            return
        try:
            self._board.facts = self._facts(following, overrides)
            self.blind = False
        except (KernelError, OSError) as error:
            self.blind = True
            log.error("status: %s", error)  # noqa: TRY400
        took = time.monotonic() - began
        self._due = began + max(PACE, took / SHARE)

    def _facts(self, following: Following, overrides: Overrides) -> Facts:
        now = self._clock()
        report = self._health.read()
        self._window.add(counting.read(self._instance))
        facts = Facts(
            instance=self._instance.name,
            now=now,
            tick=now_tick(),
            state=self._state,
            config=self._config,
            roster=self._roster,
            health=dict(self._instance.maps.health.items()),
            checked=report.backends if report else {},
            checker=report.checker if report else None,
            reading=self._window.newest,
            earlier=self._window.oldest,
            services=self._books.services,
            backends=self._books.backends,
            attached=tuple(self._instance.attachments()),
            programs=release.programs(self._instance),
            meta=self._instance.maps.meta.get(0),
            daemon=self._daemon(),
            overrides=overrides,
            refused=self._refused,
            blocked=self._blocked,
            drift=self._drift,
            suspends=suspends(following.suspension),
            history=self.history,
            vrrp=self._pair.vrrp(),
            peers=self._pair.peers(),
            clock=time.monotonic(),
        )
        observed = Observed(
            now=now,
            converged=self._converged,
            source=following.trouble,
            rejected=following.rejected,
            apply=self._apply,
            refused=self._refused,
            blocked=tuple(map(str, self._blocked)),
            interfaces=tuple(self._node.interfaces),
            attached=tuple(one.interface for one in facts.attached),
            outdated=self._others(now) or release.outdated(self._instance, self._sizes()),
            checked=_checked(self._config),
            reported_at=report.checker.at if report else None,
            checker=report.troubles if report else (),
            stalled=self.stalled,
            left=self._left,
            suspended=following.suspended,
            overrides=tuple(f"{one.name} {one.state}: {one.reason}" for one in overrides),
            peers=facts.peers,
            clock=facts.clock,
        )
        short = shortage.follow(self._short, facts)
        return replace(
            facts,
            conditions=self._judge(observed, short),
            attempt=self._attempt(facts, following),
            short_since=short,
        )

    def _others(self, now: float) -> Trouble | None:
        """What another process does with the program or its maps meanwhile."""
        if self._waits and now - self._waits >= PATIENCE:
            return release.waiting(self._waits)
        return release.RESIZING if self._instance.is_resizing else None

    def _sizes(self) -> Sizes:
        """As node.yaml had them when we started; whoever went over to other maps since has read a newer one."""
        stayed = self._instance.place == self._place
        return Sizes(**self._node.sizes) if stayed else self._instance.sizes()

    def _judge(self, observed: Observed, short: dict[str, float]) -> tuple[Condition, ...]:
        judged = conditions.follow(self._conditions, conditions.judge(observed), observed.now)
        if (judged, short) != (self._conditions, self._short):
            document = {"conditions": [asdict(condition) for condition in judged], "short": short}
            published.publish_json(self._path, document)
        self._conditions, self._short = judged, short
        return judged

    def _attempt(self, facts: Facts, following: Following) -> Attempt | None:
        offered = following.offered
        if offered is None:
            return None
        digest = bytes(facts.meta.digest) if facts.meta else b""
        known = facts.meta.generation if facts.meta else 0
        trouble = following.rejected or self._apply
        return Attempt(
            path=offered.path,
            generation=known if offered.digest == digest else known + 1,
            digest=offered.digest.hex(),
            commit=offered.commit,
            commit_text=str(offered.made),
            at=self._offered_at(offered, facts.now),
            result=self._result(offered.digest == digest, following),
            message=trouble.message if trouble else "",
        )

    def _offered_at(self, offered: Revision, now: float) -> Moment:
        before = self._board.facts.attempt if self._board.facts else None
        same = before is not None and before.digest == offered.digest.hex()
        return before.at if before is not None and same else Moment(now)

    def _result(self, is_applied: bool, following: Following) -> str:
        if following.rejected is not None:
            return "rejected"
        if self._apply is not None:
            return "failed"
        if is_applied:
            return "held" if self._refused else "partly" if self._blocked else "applied"
        return "suspended" if following.suspension else "pending"

    def _daemon(self) -> Daemon:
        return Daemon(
            pid=os.getpid(),
            version=version(),
            started=Moment(self._started),
            passes=dict(self._passes),
            pass_seconds=self._seconds,
            map_writes=self._writes,
            drift_found=self._drifted,
        )


def _result(view: View) -> str:
    if view.refused:
        return "refused"
    if view.blocked:
        return "partly"
    return "applied" if view.ops else "unchanged"


def _fight(fought: tuple[Difference, ...]) -> str:
    first = fought[0]
    return (
        f"{first.where.value} {key_text(first.key)} was repaired {REPAIRS} times within"
        f" {SPAN / 60:.0f} minutes and changed each time: something else writes the maps."
        f" They are left alone for {SPAN / 60:.0f} minutes; find the other writer"
    )


def _checked(config: Config | None) -> bool:
    return config is not None and any(pool.check for pool in config.pools.values())


def past(generations: Iterable[Generation]) -> tuple[Past, ...]:
    return tuple(
        Past(one.number, one.digest, one.commit, Moment(one.time), one.result)
        for one in generations
    )


def suspends(found: Suspension | None) -> tuple[Suspend, ...]:
    if found is None:
        return ()
    until = None if found.broken else Moment(found.until)
    return (Suspend(found.reason, found.by, Moment(found.since), until, found.generation),)


def kept(path: Path) -> tuple[Condition, ...]:
    """Since when things have been as they are, from before a restart."""
    try:
        return tuple(
            Condition(
                Type(one["type"]), Holds(one["status"]),
                str(one["reason"]), str(one["message"]), float(one["since"]),
            )
            for one in json.loads(path.read_text())["conditions"]
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return ()  # times begin anew


def kept_short(path: Path) -> dict[str, float]:
    try:
        return {name: float(at) for name, at in json.loads(path.read_text())["short"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
