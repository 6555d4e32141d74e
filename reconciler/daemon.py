"""Looks when something happened, and every so often when nothing did.

Decides when there is a pass, never what it does: `loop` does that. Whatever goes
wrong in one is told and tried again; only a signal ends this.
"""

import logging
import time
from pathlib import Path

from bpf.kernel import KernelError
from readiness.manager import ServiceManager
from reconciler.desk import Desk
from reconciler.follow import Follower
from reconciler.ids import NoRoom
from reconciler.look import View
from reconciler.loop import PATIENCE, TICK, VERIFY, NotConverged, Place, Reconciler, keep
from reconciler.neigh import Changes, Neighbours
from reconciler.overrides import Overrides
from reconciler.retries import pause
from reconciler.source import Poke, Source
from reconciler.watching import Hint

log = logging.getLogger("reconciler")


def _make(state_dir: Path) -> None:
    """There before anybody writes to it, so that it can be watched."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
    except OSError as error:
        log.error("no history is kept: %s", error)  # noqa: TRY400


class Stopped(Exception):
    """While it waited for others: that is no failure of a pass."""


class Daemon:
    """Looks when something happened, and every so often when nothing did."""

    def __init__(
        self,
        reconciler: Reconciler,
        source: Source,
        follower: Follower,
        place: Place,
        desk: Desk,
        manager: ServiceManager,
    ) -> None:
        self._reconciler, self._source = reconciler, source
        self._place, self._desk, self._manager = place, desk, manager
        self.follower = follower
        self._seen: object = None  # of the last pass that went well
        self._tried: object = None  # of the last one
        self._due = 0.0
        self._failures = 0  # in a row
        self._swept = 0.0
        self.stopping = False

    def run(self, poke: Poke, neighbours: Neighbours) -> None:
        _make(self._place.state_dir)
        hint = Hint(self._folders, poke)
        self._source.start(poke)
        neighbours.follow(poke)
        try:
            while not self.stopping:
                if self._desk.take():
                    self._due = 0.0
                rested, reloads = self._rests(), self._manager.reloads
                self._follow_source(hint)
                self._pass(neighbours)
                self._sweep()
                at_rest = rested and self._rests()
                self._tell(at_rest=at_rest)
                self._desk.report(self._manager, reloads if at_rest else 0)
                poke.wait(
                    min(self._desk.pace, self._source.due(), self._manager.pace, self._wait())
                )
            self._manager.stopping("stopped; what is pinned goes on forwarding")
        finally:
            hint.close()
            self._source.close()

    def _wait(self) -> float:
        """Until a pass is due, when one is to come."""
        return max(0.0, self._due - time.monotonic()) if self.follower.accepted else TICK

    def _folders(self) -> tuple[Path, ...]:
        """Where something happens when the source or a suspension changes."""
        return (*self._source.folders(), self._place.state_dir)

    def _follow_source(self, hint: Hint) -> None:
        hint.check()
        self.follower.hinted(hint.trouble)
        if self.follower.look():
            self._due, self._failures = 0.0, 0
            self._reconciler.retries.forget()

    def _pass(self, neighbours: Neighbours) -> None:
        """A look, when there is a reason for one."""
        accepted = self.follower.accepted
        if accepted is None:
            return
        seen = (
            bytes(self._reconciler.instance.maps.health.view()),
            neighbours.changes(),
            self._reconciler.overrides(),
            self._reconciler.instance.place,
            resizing := self._reconciler.instance.is_resizing,
        )
        now = time.monotonic()
        if seen == self._tried and now < self._due:
            return
        self._tried = seen
        try:
            view = self._reconciler.reconcile(
                accepted,
                wait=0 if self._seen else PATIENCE,
                stale_hops=self._rerouted(seen),
                waiting=self._waits,
            )
            self._desk.observer.saw(view)
            unattached = self._reconciler.unattached
            soon = unattached or resizing  # whoever is at it may be killed, and leave it to us
            rest = min(TICK if soon else VERIFY, self._reconciler.due(view))
            self._seen, self._due, self._failures = seen, now + rest, 0
            if unattached:
                log.error("%s", unattached)
            self._went(unattached or view, now)
        except Stopped:
            log.info("stopped while another process had the lock")
        except (KernelError, NoRoom, NotConverged, OSError) as error:
            log.error("%s", error)  # noqa: TRY400
            self._failures += 1
            self._due = time.monotonic() + pause(self._failures)
            self._went(error, now)

    def _waits(self) -> None:
        """Others have the kernel boundary's lock, or have left much to complete: the loop goes on all the same."""
        if self.stopping:
            raise Stopped
        self._desk.waits(self.follower.following, self._reconciler.overrides(), self._manager)

    def _went(self, outcome: View | Exception, began: float) -> None:
        keep(self._reconciler, self.follower, outcome)
        kept = self._reconciler.history.generations()
        drift = self._reconciler.drift
        self._desk.observer.watch(self._reconciler.vigil)
        self._desk.went(outcome, time.monotonic() - began, kept, drift)

    def _rests(self) -> bool:
        """Asked before a look and after it: what comes in between is for the next one."""
        return self._source.due() >= TICK

    def _tell(self, *, at_rest: bool) -> None:
        self._desk.tell(self.follower.following, self._reconciler.overrides(), at_rest=at_rest)

    def _sweep(self) -> None:
        """Expire flows, and count the living anew: evictions make the counts drift."""
        if time.monotonic() < self._swept + VERIFY:
            return
        self._swept = time.monotonic()
        try:
            self._reconciler.instance.sweep()
        except KernelError as error:
            log.error("sweep: %s", error)  # noqa: TRY400

    def _rerouted(self, seen: tuple[bytes, Changes, Overrides, int, bool]) -> bool:
        """Whether hops towards clients may be stale; after a start nobody knows."""
        return not isinstance(self._seen, tuple) or self._seen[1].forget != seen[1].forget
