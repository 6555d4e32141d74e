"""Make the maps equal what the file says, again and again.

Level-triggered: whatever happens only means "look again", and every look starts
from the file and the maps themselves. Nothing is removed because something could
not be read; on stop everything stays pinned and goes on forwarding.
"""

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bpf import abi
from bpf.kernel import Instance, KernelError, Mode, now_tick
from bpf.pins import Pins
from readiness.manager import ServiceManager
from reconciler import config as configuration
from reconciler import published
from reconciler.compile import Surroundings
from reconciler.counting import Books
from reconciler.dataplane import State
from reconciler.desk import Desk
from reconciler.drain import leaving
from reconciler.drift import Seen, Vigil, differences, harmless
from reconciler.follow import Accepted, Follower
from reconciler.history import History, Result
from reconciler.ids import NoRoom
from reconciler.look import Live, View, look
from reconciler.maps import PinnedMaps, unheard
from reconciler.memo import Memo
from reconciler.model import Address, Config, DriftPolicy, Node, Pool
from reconciler.names import key_text
from reconciler.neigh import Changes, Neighbours, failing
from reconciler.overrides import Overrides, Unusable, in_force
from reconciler.overriding import OverrideFile
from reconciler.parts import node_problems
from reconciler.pinning import pin_again
from reconciler.plan import plan
from reconciler.problems import SHOWN, Rejected
from reconciler.revision import Revision
from reconciler.source import Poke, Source
from reconciler.sources import STATE_ROOT
from reconciler.trials import tried
from reconciler.watching import Hint

TICK = 1.0  # how long a change may go unnoticed when no event told of it
VERIFY = 10.0  # how long a map may differ before it is read again; also between sweeps
PATIENCE = 3.0  # for neighbours to answer, when there is no second look
LOCK = "reconciler.lock"  # in the run directory, held by the one that writes
log = logging.getLogger("reconciler")


class NotConverged(Exception):
    """The maps differ from what was just written: someone else writes them."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which instance, and where its files are."""

    instance: str
    run_dir: Path
    state: Path | None = None

    @property
    def state_dir(self) -> Path:
        """What outlives a reboot: history, suspension, git mirror."""
        return self.state or STATE_ROOT / self.instance

    @property
    def applied(self) -> Path:
        """The last file that was applied whole: names of what is in the maps."""
        return self.run_dir / "applied.yaml"


@contextmanager
def writer(place: Place) -> Iterator[None]:
    """Only one reconciler writes an instance's maps."""
    place.run_dir.mkdir(parents=True, exist_ok=True)
    path = place.run_dir / LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"{path}: another reconciler holds it; stop that one first") from None
        if os.fstat(descriptor).st_nlink == 0:
            raise OSError(f"{path}: a teardown has just removed it; start again")
        yield
    finally:
        os.close(descriptor)


def meaning(revision: Revision, node: Node) -> Config:
    """The configuration in the revision, if it suits this node."""
    config = configuration.load(revision.text, revision.path)
    if problems := node_problems(config, node):
        raise Rejected(revision.path, problems, revision.text)
    tests = tried(config, node)
    if tests.problems:
        raise Rejected(revision.path, tests.problems, revision.text)
    if tests.count:
        log.info("%s: %s hold", revision.path, tests)
    return config


def applied(place: Place) -> Config | None:
    """The last configuration that was applied whole, when its file is still there."""
    try:
        return configuration.load(place.applied.read_text(), str(place.applied))
    except (OSError, Rejected):
        return None


def surroundings(
    neighbours: Neighbours,
    config: Config,
    node: Node,
    epoch: int,
    wait: float | None,
    also: Iterable[Address] = (),
    memo: Memo | None = None,
) -> Surroundings:
    """What the node's kernel says about the backends and interfaces that are configured."""
    of = (memo or Memo()).of
    used = {name for service in config.services.values() for name in service.pools}
    each = (of(_addresses, name, config.pools[name]) for name in used)
    addresses: set[Address] = set().union(*each)
    links = neighbours.links().values()
    veth = any(link.kind == "veth" for link in links if link.name in node.interfaces)
    return Surroundings(neighbours.hops(addresses.union(also), wait), veth, epoch)


def _addresses(pool: Pool) -> frozenset[Address]:
    return frozenset(backend.address for backend in pool.backends.values())


class Reconciler:
    """Owns the writing of one instance; holds no state that is not in its maps."""

    def __init__(
        self,
        instance: Instance,
        node: Node,
        place: Place,
        neighbours: Neighbours,
        *,
        allow_removals: bool = False,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], int] = now_tick,
        progress: Callable[[], None] = unheard,
    ) -> None:
        self.instance = instance
        self.dataplane = PinnedMaps(instance, progress)
        self._progress = progress
        self._node, self._place, self._neighbours = node, place, neighbours
        self._allow_removals = allow_removals
        self._clock, self._ticks = clock, ticks
        self._overrides = OverrideFile(place.state_dir)
        self.books = Books(place.run_dir, instance)
        self.history = History(place.state_dir / "history")
        self._memo = Memo()
        self._set: Overrides = ()
        self.drift: tuple[str, ...] = ()  # that the last pass found
        self.vigil = Vigil(node.drift)
        self._verified = b""  # digest of what this process has once found to be in the maps
        self.unattached: KernelError | None = None  # why an interface has no program

    def reconcile(self, accepted: Accepted, *, wait: float = 0, stale_hops: bool = False) -> View:
        """One pass: look, write what differs, read again, and let others know."""
        self.drift = ()
        actual = self.dataplane.read()
        settings = actual.settings.get(0)
        epoch = (settings.hop_epoch if settings else 0) + stale_hops
        live = Live(
            actual,
            self.dataplane.health(),
            self._surroundings(accepted.config, epoch, wait, leaving(actual)),
            self.dataplane.room(),
            self.overrides(),
            self.dataplane.flows(),
            self._ticks(),
        )
        self._progress()
        self._neighbours.doubt(failing(actual.backends, live.health))
        allowed = self._allow_removals or accepted.allow_removals
        view = look(accepted.config, self._node, live, allow_removals=allowed, memo=self._memo)
        self._progress()
        unpinned = pin_again(self.instance)
        view, left = self._watched(view, actual, accepted.revision)
        self.drift += tuple(f"map {name}: was not pinned any more" for name in unpinned)
        self.drift += self._detached(accepted.revision)
        if self.drift:
            log.warning("drift: %s", "; ".join(self.drift[:SHOWN]))
        self.books.follow(view.desired)
        self._apply(view, accepted.revision, left)
        self.unattached = self._attach()
        self._tell(view, accepted)
        return view

    def _surroundings(
        self, config: Config, epoch: int, wait: float, also: Iterable[Address]
    ) -> Surroundings:
        return surroundings(self._neighbours, config, self._node, epoch, wait, also, self._memo)

    def overrides(self) -> Overrides:
        """Those in force now. When their file says nothing sensible, the last that it said."""
        try:
            self._set = self._overrides.read()
        except Unusable as error:
            log.error("%s", error)  # noqa: TRY400
        return in_force(self._set, self._clock())

    def _watched(self, view: View, actual: State, revision: Revision) -> tuple[View, bool]:
        """What others changed; and the view without repairing it, where it is to be left."""
        meta = self.instance.maps.meta.get(0)
        if meta is None or not self._was_applied(revision):
            self.vigil.anew()
            return view, False
        left = self.vigil.look(differences(view.ops, actual), self._clock(), meta.applied_at)
        if self._node.drift is not DriftPolicy.IGNORE:
            self.drift = tuple(map(in_words, self.vigil.seen))
        return (replace(view, ops=harmless(view.ops, actual)) if left else view), left

    def _was_applied(self, revision: Revision) -> bool:
        """Whether the maps were made from just this, so that what differs is others' doing."""
        meta = self.instance.maps.meta.get(0)
        if meta is None or bytes(meta.digest) != revision.digest:
            return False
        return not meta.phase or self._verified == revision.digest

    def _detached(self, revision: Revision) -> tuple[str, ...]:
        if not self._was_applied(revision):
            return ()
        attached = {found.interface for found in self.instance.attachments()}
        gone = sorted(self._node.interfaces.keys() - attached)
        return tuple(f"interface {name}: the program was not attached any more" for name in gone)

    def _apply(self, view: View, revision: Revision, left: bool) -> None:
        meta = self.instance.maps.meta
        before = meta.get(0)
        after = self._next(before, revision)
        if not view.ops and before is not None and _same(before, after):
            return
        meta.put(0, published.applying(after))
        self.dataplane.apply(view.ops)
        self.vigil.repaired(self._clock(), left=left)
        if not left and plan(view.held, self.dataplane.read()):
            raise NotConverged(
                f"the maps of {self.instance.name} are not what was written: does something else"
                " write them? Trying again"
            )
        self._verified = revision.digest
        meta.put(0, after)
        log.info("generation %d: %d map writes", after.generation, len(view.ops))

    def _next(self, before: abi.Meta | None, revision: Revision) -> abi.Meta:
        newest = next(iter(self.history.generations()), None)
        kept = (newest.number, bytes.fromhex(newest.digest)) if newest else (0, b"")
        now = int(time.time())
        return published.next_meta(before, revision.digest, revision.commit, now, kept)

    def generation(self, revision: Revision) -> int:
        """The number that this content has, or will have when it is applied."""
        return int(self._next(self.instance.maps.meta.get(0), revision).generation)

    def _attach(self) -> KernelError | None:
        """Only now that the maps are complete; interfaces that are no longer named let go.

        What is the matter with one interface is no reason to leave out the others.
        """
        trouble = None
        attached = {found.interface: found for found in self.instance.attachments()}
        for interface, mode in self._node.interfaces.items():
            if interface not in attached:
                try:
                    found = self.instance.attach(interface, Mode(mode))
                except KernelError as error:
                    trouble = error
                    continue
                reason = f", {found.reason}" if found.reason else ""
                log.info("attached to %s (%s%s)", interface, found.mode.value, reason)
        for interface in attached.keys() - self._node.interfaces.keys():
            self.instance.detach(interface)
            log.info("detached from %s", interface)
        return trouble

    def _tell(self, view: View, accepted: Accepted) -> None:
        health = health_map(self.instance.name)
        text = published.targets(
            accepted.config, view.desired, self.instance.name, health, self._memo
        )
        published.publish(self._place.run_dir / "targets.json", text)
        if not view.refused:
            published.publish(self._place.applied, accepted.revision.text)


def in_words(one: Seen) -> str:
    """A difference as people read it, and since when."""
    what = one.what
    well, found = (time.strftime("%H:%M:%S", time.localtime(at)) for at in (one.well, one.found))
    said = f"{what.where.value} {key_text(what.key)}: {what.how}"
    return f"{said}, since between {well} and {found}"


def _same(before: abi.Meta, after: abi.Meta) -> bool:
    known = (before.phase, before.generation, before.commit)
    return known == (after.phase, after.generation, after.commit)


def health_map(instance: str) -> Path:
    return Pins.of(instance).maps / "health"


def keep(reconciler: Reconciler, follower: Follower, outcome: View | Exception) -> None:
    """Let the history say how it went with what is accepted."""
    if follower.accepted is None:
        return
    number = reconciler.generation(follower.accepted.revision)
    if isinstance(outcome, Exception):
        follower.applied(number, Result.FAILED, str(outcome))
    else:
        follower.applied(number, Result.HELD if outcome.refused else Result.APPLIED)


def _make(state_dir: Path) -> None:
    """There before anybody writes to it, so that it can be watched."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
    except OSError as error:
        log.error("no history is kept: %s", error)  # noqa: TRY400


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
        self._seen: object = None
        self._due = 0.0
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
                poke.wait(min(self._desk.pace, self._source.due(), self._manager.pace))
            self._manager.stopping("stopped; what is pinned goes on forwarding")
        finally:
            hint.close()
            self._source.close()

    def _folders(self) -> tuple[Path, ...]:
        """Where something happens when the source or a suspension changes."""
        return (*self._source.folders(), self._place.state_dir)

    def _follow_source(self, hint: Hint) -> None:
        hint.check()
        self.follower.hinted(hint.trouble)
        if self.follower.look():
            self._due = 0.0

    def _pass(self, neighbours: Neighbours) -> None:
        """A look, when there is a reason for one."""
        accepted = self.follower.accepted
        if accepted is None:
            return
        seen = (
            bytes(self._reconciler.instance.maps.health.view()),
            neighbours.changes(),
            self._reconciler.overrides(),
        )
        now = time.monotonic()
        if seen == self._seen and now < self._due:
            return
        try:
            view = self._reconciler.reconcile(
                accepted, wait=0 if self._seen else PATIENCE, stale_hops=self._rerouted(seen)
            )
            self._desk.observer.saw(accepted.config, view)
            unattached = self._reconciler.unattached
            rest = TICK if unattached else min(VERIFY, view.next_end)
            self._seen, self._due = seen, now + rest
            if unattached:
                log.error("%s", unattached)
            self._went(accepted, unattached or view, now)
        except (KernelError, NoRoom, NotConverged, OSError) as error:
            log.error("%s", error)  # noqa: TRY400
            self._went(accepted, error, now)

    def _went(self, accepted: Accepted, outcome: View | Exception, began: float) -> None:
        keep(self._reconciler, self.follower, outcome)
        kept = self._reconciler.history.generations()
        drift = self._reconciler.drift
        self._desk.observer.watch(self._reconciler.vigil)
        self._desk.went(accepted.config, outcome, time.monotonic() - began, kept, drift)

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

    def _rerouted(self, seen: tuple[bytes, Changes, Overrides]) -> bool:
        """Whether hops towards clients may be stale; after a start nobody knows."""
        return not isinstance(self._seen, tuple) or self._seen[1].forget != seen[1].forget
