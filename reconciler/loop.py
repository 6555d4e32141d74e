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
from bpf.kernel import Instance, KernelError, now_tick, unheard
from bpf.pins import Pins, locked
from reconciler import config as configuration
from reconciler import published, standing
from reconciler.admission import Why
from reconciler.attaching import attach
from reconciler.blame import concerned
from reconciler.compile import Surroundings
from reconciler.counting import Books
from reconciler.dataplane import Remove
from reconciler.drain import leaving
from reconciler.drift import Seen, Vigil, differences, harmless
from reconciler.follow import Accepted, Follower
from reconciler.history import History, Result
from reconciler.look import Live, View, look
from reconciler.maps import PinnedMaps, Unwritten
from reconciler.memo import Memo, Same
from reconciler.model import Address, Config, DriftPolicy, Node
from reconciler.names import key_text
from reconciler.neigh import Neighbours, failing
from reconciler.overrides import Overrides, Unusable, in_force
from reconciler.overriding import OverrideFile
from reconciler.parts import node_problems
from reconciler.pinning import pin_again
from reconciler.plan import plan
from reconciler.problems import SHOWN, Rejected
from reconciler.retries import FIRST, Retries
from reconciler.revision import Revision
from reconciler.sideway import Sideway
from reconciler.sources import STATE_ROOT
from reconciler.standing import Standing
from reconciler.trials import tried

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
    """What the maps were made from, when its files are still there."""
    found = standing.read(place.run_dir)
    return found.config if found else None


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
    addresses = (memo or Memo()).of(_addresses, "", Same(config))
    links = neighbours.links().values()
    veth = any(link.kind == "veth" for link in links if link.name in node.interfaces)
    return Surroundings(neighbours.hops(addresses.union(also), wait), veth, epoch)


def _addresses(same: Same[Config]) -> frozenset[Address]:
    """Of all backends that a service has."""
    config = same.value
    used = {name for service in config.services.values() for name in service.pools}
    pools = map(config.pools.__getitem__, used)
    return frozenset(one.address for pool in pools for one in pool.backends.values())


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
        uptime: Callable[[], float] = time.monotonic,
    ) -> None:
        self.instance, self._meta = (
            instance,
            instance.maps.meta,
        )  # of the maps that `dataplane` is over
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
        self._sideway = Sideway(self.dataplane, node.interfaces)
        self.unattached: KernelError | None = None  # why an interface has no program
        self.retries = Retries()  # of services that the kernel refused
        self._uptime = uptime
        self._standing: Standing | None = None  # what is in the maps, once that is known

    def reconcile(
        self,
        accepted: Accepted,
        *,
        wait: float = 0,
        stale_hops: bool = False,
        waiting: Callable[[], None] = unheard,
    ) -> View:
        """One pass: look, write what differs, read again, and let others know.

        Under the kernel boundary's lock: an upgrade may be about to go over to other maps, or have done so.
        It is the whole host's, so neighbours are waited for before; `waiting` is called while others have it,
        and while what one of them has left half-way is completed.
        """
        if wait:
            self._surroundings(accepted.config, 0, wait, ())
        with locked(waiting):
            self._follow(waiting)
            return self._passed(accepted, stale_hops=stale_hops)

    def _follow(self, waiting: Callable[[], None]) -> None:
        """To the maps that another process went over to; whoever fails half-way tries again."""
        self.instance.follow(waiting)
        if self._meta is self.instance.maps.meta:
            return
        log.info("another process went over to other maps: following")
        self.dataplane.use(None)
        self.dataplane = PinnedMaps(self.instance, self._progress)
        self._sideway = Sideway(self.dataplane, self._node.interfaces)
        self._meta = self.instance.maps.meta

    def _passed(self, accepted: Accepted, *, stale_hops: bool) -> View:
        self.drift, self._began = (), self._uptime()
        live = self._live(accepted, stale_hops=stale_hops)
        self._progress()
        self._neighbours.doubt(failing(live.actual.backends, live.health))
        view = self._look(accepted, live)
        self._progress()
        unpinned = pin_again(self.instance)
        view, left = self._watched(view, live, accepted.revision)
        self.drift += tuple(f"map {name}: was not pinned any more" for name in unpinned)
        self.drift += self._detached(accepted.revision)
        if self.drift:
            log.warning("drift: %s", "; ".join(self.drift[:SHOWN]))
        view = self._carry_out(view, accepted, live, left=left)
        self.unattached = attach(self.instance, self._node.interfaces)
        self._keep_sideway(view)
        self._tell(view, accepted, left=left)
        return view

    def _surroundings(
        self, config: Config, epoch: int, wait: float, also: Iterable[Address]
    ) -> Surroundings:
        return surroundings(self._neighbours, config, self._node, epoch, wait, also, self._memo)

    def _live(self, accepted: Accepted, *, stale_hops: bool) -> Live:
        actual = self.dataplane.read()
        settings = actual.settings.get(0)
        epoch = (settings.hop_epoch if settings else 0) + stale_hops
        self._standing = self._standing or standing.read(self._place.run_dir, accepted)
        also = leaving(actual) | standing.addresses(self._standing)
        return Live(
            actual,
            self.dataplane.health(),
            self._surroundings(accepted.config, epoch, 0, also),
            self.dataplane.room(),
            self.overrides(),
            self.dataplane.flows(),
            self._ticks(),
            self._standing.config if self._standing else None,
            standing.is_of(self._standing, self.instance.maps.meta.get(0)),
            self.retries.resting(self._began),
        )

    def _look(self, accepted: Accepted, live: Live) -> View:
        allowed = self._allow_removals or accepted.allow_removals
        view = look(accepted.config, self._node, live, allow_removals=allowed, memo=self._memo)
        return self._sideway.possible(view, live.actual)

    def _carry_out(self, view: View, accepted: Accepted, live: Live, *, left: bool) -> View:
        """Write it; what the kernel refuses of one service is left out, and the rest goes on."""
        while True:
            self.books.follow(view.desired)
            try:
                self._apply(view, accepted.revision, left)
            except Unwritten as error:
                if left or not self._rests(error, view, live):
                    raise
                live = replace(
                    live,
                    actual=self.dataplane.read(),
                    failed=self.retries.resting(self._began),
                )
                view = self._look(accepted, live)
            else:
                self.retries.over(self._began)
                return view

    def _rests(self, error: Unwritten, view: View, live: Live) -> bool:
        """Whether leaving out the services concerned may help."""
        configs = filter(None, (view.config, live.standing))
        names = concerned(error.op, (view.held, live.actual), configs)
        log.error("%s: %s", ", ".join(sorted(names)) or "everything", error)
        return self.retries.failed(names, str(error), self._began)

    def due(self, view: View) -> float:
        """Seconds until another pass may do what this one could not."""
        crowded = any(why.why is Why.NO_ROOM for why in view.blocked.values())
        freed = crowded and any(isinstance(op, Remove) for op in view.ops)
        soon = FIRST if freed else VERIFY
        return min(soon, view.next_end, self.retries.due(self._uptime()))

    def overrides(self) -> Overrides:
        """Those in force now. When their file says nothing sensible, the last that it said."""
        try:
            self._set = self._overrides.read()
        except Unusable as error:
            log.error("%s", error)  # noqa: TRY400
        return in_force(self._set, self._clock())

    def _watched(self, view: View, live: Live, revision: Revision) -> tuple[View, bool]:
        """What others changed; and the view without repairing it, where it is to be left."""
        meta = self.instance.maps.meta.get(0)
        if meta is None or not self._was_applied(revision):
            self.vigil.anew()
            return view, False
        actual, ops = live.actual, self._settled(view, live).ops
        left = self.vigil.look(differences(ops, actual), self._clock(), meta.applied_at)
        if self._node.drift is not DriftPolicy.IGNORE:
            self.drift = tuple(map(in_words, self.vigil.seen))
        return (replace(view, ops=harmless(view.ops, actual)) if left else view), left

    def _settled(self, view: View, live: Live) -> View:
        """The view without what is only tried again now: nobody has changed that."""
        stood = self._standing
        if stood is None or not (stood.blocked or view.blocked) or stood.config == view.config:
            return view
        return look(stood.config, self._node, replace(live, failed={}), allow_removals=True)

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

    def _keep_sideway(self, view: View) -> None:
        """What checks with `via: service` need; clients' packets need none of it."""
        trouble = self._sideway.keep(view.held)
        self.unattached = self.unattached or trouble
        if self._sideway.drift:
            log.warning("drift: %s", "; ".join(self._sideway.drift))
            self.drift += self._sideway.drift

    def _tell(self, view: View, accepted: Accepted, *, left: bool) -> None:
        self._publish(view)
        before = self._standing
        if before is None or before.blocked != view.blocked:
            for why in view.blocked.values():
                log.error("%s", why)
        if not left:
            self._standing = standing.after(before, accepted.revision, view.config, view.blocked)
        if not view.refused and self._standing is not None:
            standing.write(self._place.run_dir, self._standing)

    def _publish(self, view: View) -> None:
        name, via = self.instance.name, self._sideway.trouble is None
        path = self._place.run_dir / "targets.json"
        text = published.targets(
            view.config,
            view.desired,
            name,
            health_map(name),
            self._memo,
            via=via,
            retained=published.retained(path, view.held, view.desired.state, via=via),
        )
        published.publish(path, text)


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
    elif outcome.blocked:
        follower.applied(number, Result.PARTLY, "; ".join(map(str, outcome.blocked.values())))
    else:
        follower.applied(number, Result.HELD if outcome.refused else Result.APPLIED)
