"""Make the maps equal what the file says, again and again.

Level-triggered: whatever happens only means "look again", and every look starts
from the file and the maps themselves. Nothing is removed because something could
not be read; on stop everything stays pinned and goes on forwarding.
"""

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bpf.kernel import Instance, KernelError, Mode
from bpf.pins import Pins
from reconciler import config as configuration
from reconciler import published
from reconciler.compile import Surroundings
from reconciler.ids import NoRoom
from reconciler.look import Live, View, look
from reconciler.maps import PinnedMaps
from reconciler.model import Address, Config, Node
from reconciler.neigh import Neighbours
from reconciler.overrides import Overrides, Unusable, in_force
from reconciler.overriding import OverrideFile
from reconciler.parts import node_problems
from reconciler.plan import plan
from reconciler.problems import Mark, Problem, Rejected
from reconciler.source import FileSource, Poke, Revision, SourceError

TICK = 1.0  # how long a change may go unnoticed when no event told of it
VERIFY = 10.0  # how long a map may differ before it is read again; also between sweeps
PATIENCE = 3.0  # for neighbours to answer, when there is no second look
log = logging.getLogger("reconciler")


class NotConverged(Exception):
    """The maps differ from what was just written: someone else writes them."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A configuration that may be applied."""

    config: Config
    revision: Revision


@dataclass(frozen=True, slots=True)
class Place:
    """Which instance, and where its files are."""

    instance: str
    run_dir: Path

    @property
    def applied(self) -> Path:
        """The last file that was applied whole: names of what is in the maps."""
        return self.run_dir / "applied.yaml"


@contextmanager
def writer(place: Place) -> Iterator[None]:
    """Only one reconciler writes an instance's maps."""
    place.run_dir.mkdir(parents=True, exist_ok=True)
    path = place.run_dir / "reconciler.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"{path}: another reconciler holds it; stop that one first") from None
        yield
    finally:
        os.close(descriptor)


def accept(revision: Revision, node: Node, place: Place) -> Accepted:
    """The configuration in the revision, if it may replace what is applied."""
    config = configuration.load(revision.text, revision.path)
    problems = [*node_problems(config, node), *_cut_off(revision, place)]
    if problems:
        raise Rejected(revision.path, problems, revision.text)
    return Accepted(config, revision)


def applied(place: Place) -> Config | None:
    """The last configuration that was applied whole, when its file is still there."""
    try:
        return configuration.load(place.applied.read_text(), str(place.applied))
    except (OSError, Rejected):
        return None


def _cut_off(revision: Revision, place: Place) -> list[Problem]:
    """A file that once ended with `...` must go on doing so: half of one is valid YAML too."""
    try:
        was_sealed = configuration.sealed(place.applied.read_text())
    except FileNotFoundError:
        return []
    if not was_sealed or configuration.sealed(revision.text):
        return []
    last = Mark(revision.text.count("\n") + 1, 1)
    message = "the end marker `...` that the applied file has is missing: was this one cut off?"
    return [Problem(last, message, f"add it; if it is meant to go, remove {place.applied} first")]


def surroundings(
    neighbours: Neighbours, config: Config, node: Node, epoch: int, wait: float | None
) -> Surroundings:
    """What the node's kernel says about the backends and interfaces that are configured."""
    used = {name for service in config.services.values() for name in service.pools}
    addresses: set[Address] = {
        backend.address for name in used for backend in config.pools[name].backends.values()
    }
    links = neighbours.links().values()
    veth = any(link.kind == "veth" for link in links if link.name in node.interfaces)
    return Surroundings(neighbours.hops(addresses, wait), veth, epoch)


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
    ) -> None:
        self.instance = instance
        self.dataplane = PinnedMaps(instance)
        self._node, self._place, self._neighbours = node, place, neighbours
        self._allow_removals = allow_removals
        self._clock = clock
        self._overrides = OverrideFile(place.run_dir)
        self._set: Overrides = ()

    def reconcile(self, accepted: Accepted, *, wait: float = 0, stale_hops: bool = False) -> View:
        """One pass: look, write what differs, read again, and let others know."""
        actual = self.dataplane.read()
        settings = actual.settings.get(0)
        epoch = (settings.hop_epoch if settings else 0) + stale_hops
        live = Live(
            actual,
            self.dataplane.health(),
            surroundings(self._neighbours, accepted.config, self._node, epoch, wait),
            self.dataplane.room(),
            self.overrides(),
        )
        view = look(accepted.config, self._node, live, allow_removals=self._allow_removals)
        self._apply(view, accepted.revision)
        self._attach()
        self._tell(view, accepted)
        return view

    def overrides(self) -> Overrides:
        """Those in force now. When their file says nothing sensible, the last that it said."""
        try:
            self._set = self._overrides.read()
        except Unusable as error:
            log.error("%s", error)  # noqa: TRY400
        return in_force(self._set, self._clock())

    def _apply(self, view: View, revision: Revision) -> None:
        meta = self.instance.maps.meta
        before = meta.get(0)
        after = published.next_meta(before, revision.digest, revision.commit, int(time.time()))
        if not view.ops and before is not None and before.generation == after.generation:
            return
        meta.put(0, published.applying(after))
        self.dataplane.apply(view.ops)
        if plan(view.held, self.dataplane.read()):
            raise NotConverged(
                f"the maps of {self.instance.name} are not what was written: does something else"
                " write them? Trying again"
            )
        meta.put(0, after)
        log.info("generation %d: %d map writes", after.generation, len(view.ops))

    def _attach(self) -> None:
        """Only now that the maps are complete; interfaces that are no longer named let go."""
        attached = {found.interface: found for found in self.instance.attachments()}
        for interface, mode in self._node.interfaces.items():
            if interface not in attached:
                found = self.instance.attach(interface, Mode(mode))
                reason = f", {found.reason}" if found.reason else ""
                log.info("attached to %s (%s%s)", interface, found.mode.value, reason)
        for interface in attached.keys() - self._node.interfaces.keys():
            self.instance.detach(interface)
            log.info("detached from %s", interface)

    def _tell(self, view: View, accepted: Accepted) -> None:
        document = published.targets(
            accepted.config, view.desired, self.instance.name, health_map(self.instance.name)
        )
        published.publish_json(self._place.run_dir / "targets.json", document)
        if not view.refused:
            published.publish(self._place.applied, accepted.revision.text)


def health_map(instance: str) -> Path:
    return Pins.of(instance).maps / "health"


class Daemon:
    """Looks when something happened, and every so often when nothing did."""

    def __init__(
        self, reconciler: Reconciler, source: FileSource, node: Node, place: Place
    ) -> None:
        self._reconciler, self._source = reconciler, source
        self._node, self._place = node, place
        self._accepted: Accepted | None = None
        self._seen: object = None
        self._due = 0.0
        self._swept = 0.0
        self.stopping = False

    def run(self, poke: Poke, neighbours: Neighbours) -> None:
        while not self.stopping:
            self._follow_source()
            self._pass(neighbours)
            self._sweep()
            poke.wait(TICK)

    def _follow_source(self) -> None:
        if not self._source.changed():
            return
        try:
            self._accepted = accept(self._source.read(), self._node, self._place)
            self._due = 0.0
        except SourceError as error:
            log.error("%s", error)  # noqa: TRY400 -- the message is all
        except Rejected as error:
            log.error("rejected; what is applied stays\n%s", error)  # noqa: TRY400

    def _pass(self, neighbours: Neighbours) -> None:
        """A look, when there is a reason for one."""
        if self._accepted is None:
            return
        seen = (
            bytes(self._reconciler.instance.maps.health.view()),
            neighbours.fingerprint(),
            self._reconciler.overrides(),
        )
        now = time.monotonic()
        if seen == self._seen and now < self._due:
            return
        try:
            self._reconciler.reconcile(
                self._accepted, wait=0 if self._seen else PATIENCE, stale_hops=self._rerouted(seen)
            )
            self._seen, self._due = seen, now + VERIFY
        except (KernelError, NoRoom, NotConverged, OSError) as error:
            log.error("%s", error)  # noqa: TRY400

    def _sweep(self) -> None:
        """Expire flows, and count the living anew: evictions make the counts drift."""
        if time.monotonic() < self._swept + VERIFY:
            return
        self._swept = time.monotonic()
        try:
            self._reconciler.instance.sweep()
        except KernelError as error:
            log.error("sweep: %s", error)  # noqa: TRY400

    def _rerouted(self, seen: tuple[bytes, int, Overrides]) -> bool:
        """Whether hops towards clients may be stale; after a start nobody knows."""
        return not isinstance(self._seen, tuple) or self._seen[1] != seen[1]
