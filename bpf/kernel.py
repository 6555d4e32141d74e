"""The kernel boundary: an instance is a program, its maps and its links, pinned.

Everything that outlives a process is under /sys/fs/bpf/evenkeel/<instance>/ and
nowhere else. Nothing here decides what the maps ought to say. What a killed
process left is adopted or completed, never recreated behind traffic's back.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from bpf import (
    adopting,
    link,
    mapset,
    objects,
    pins,
    program,
    record,
    repinning,
    replacing,
    resizing,
    sweeping,
    via,
)
from bpf.abi import Abi, Meta, Sweep
from bpf.adopting import Version, open_map
from bpf.clock import now_tick
from bpf.errors import (
    AbiMismatch,
    Busy,
    KernelError,
    MapFull,
    NotLoaded,
    NotPermitted,
    Unsupported,
)
from bpf.link import Attachment, Mode
from bpf.maps import Map, PerCpuMap
from bpf.mapset import Maps, Sizes
from bpf.pins import Pins, following, instances, preceding, unheard
from bpf.program import Action, Loaded, ProgramInfo, Run, default_object
from bpf.tables import TableMap, pin

__all__ = [
    "AbiMismatch",
    "Action",
    "Attachment",
    "Busy",
    "Instance",
    "KernelError",
    "Map",
    "MapFull",
    "Maps",
    "Mode",
    "NotLoaded",
    "NotPermitted",
    "PerCpuMap",
    "ProgramInfo",
    "Run",
    "Sizes",
    "TableMap",
    "Unsupported",
    "Version",
    "default_object",
    "instances",
    "now_tick",
    "open_map",
    "teardown",
    "unheard",
]

Log = Callable[[str], None]


class Instance:
    """A loaded program and its maps. Closing it, or dying, leaves everything pinned as it is."""

    def __init__(self, name: str, maps: Maps, program: int, sweep: int, home: Pins | None) -> None:
        self.name = name
        self.maps = maps
        self._program = program
        self._sweep = sweep
        self._home = home  # None: a shadow, pinned nowhere
        self._place = adopting.place(home) if home else 0

    # ---- make, find, leave, remove ----

    @classmethod
    def load(
        cls,
        name: str,
        sizes: Sizes = Sizes(),  # noqa: B008 -- frozen
        *,
        object_path: Path | None = None,
        log: Log | None = None,
        working: Callable[[], None] = unheard,
    ) -> Instance:
        """Adopt what is pinned, as large as it is; else load the object and pin everything, in one step.

        `working` is called while another process has the lock, and while what one left is completed.
        """
        home = Pins.of(name)
        with pins.locked(working):
            pins.remove_leftovers()
            if not home.exists:
                _build(home, sizes, object_path or default_object(), log)
            _complete(home, working)
            instance = _adopted(home, read_only=False)
            instance.maps.tables.tidy()
            instance.maps.spares.tidy()
            return instance

    @classmethod
    def open(cls, name: str, *, read_only: bool = False) -> Instance:
        """What is pinned under this name; loads nothing."""
        return _adopted(Pins.of(name), read_only=read_only)

    def close(self) -> None:
        """Let go; what is pinned stays."""
        self.maps.close()
        for fd in (self._program, self._sweep):
            if fd >= 0:
                os.close(fd)
        self._program = self._sweep = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def teardown(self) -> None:
        """Detach, unpin, close. Flows and counters are gone after this."""
        self._pinned("teardown")
        teardown(self.name)
        self.close()

    def shadow(self, object_path: Path | None = None, sizes: Sizes | None = None) -> Instance:
        """A second program over the same configuration, with flows and counters of its own.

        `sizes` are those of its own maps.
        """
        shared = {name: self.maps[name].fd for name in mapset.CONFIGURATION}
        loaded = program.load(object_path or default_object(), sizes or self.sizes(), shared)
        tables = self.maps.tables.directory
        maps = adopting.typed(loaded.maps, tables.parent if tables else None)
        return Instance(self.name, maps, loaded.program, loaded.sweep, home=None)

    @classmethod
    def unpinned(cls, name: str, sizes: Sizes, object_path: Path | None = None) -> Instance:
        """A program with maps of its own, seen by nobody else and gone when it is closed."""
        loaded = program.load(object_path or default_object(), sizes, {})
        return cls(name, adopting.typed(loaded.maps, None), loaded.program, loaded.sweep, home=None)

    @property
    def pinned(self) -> bool:
        """Whether others see it: a shadow they do not."""
        return self._home is not None

    def sizes(self) -> Sizes:
        """What the maps were made with."""
        return Sizes(**{
            setting: self.maps[name].max_entries for name, setting in mapset.SETTING.items()
        })  # fmt: skip

    # ---- interfaces ----

    def attach(self, interface: str, mode: Mode = Mode.AUTO) -> Attachment:
        """In the calling thread's network namespace. Attached already: found, not repeated."""
        home = self._pinned("attach")
        with pins.locked():
            self._reopen(home)
            return link.attach(home, self._program, interface, mode)

    def attachments(self) -> list[Attachment]:
        return link.attachments(self._home) if self._home else []

    def detach(self, interface: str) -> None:
        home = self._pinned("detach")
        with pins.locked():
            link.detach(home.link(interface))

    def replace(
        self, object_path: Path | None = None, *, if_changed: bool = False, over: int | None = None
    ) -> bool:
        """A new program over the same maps; no packet is lost. Whether it took over.

        `over`: only in the place of the program with this id.
        """
        home, path = self._pinned("replace"), object_path or default_object()
        elf = objects.content(path)
        adopting.check_spoken(elf, path)
        with pins.locked():
            _complete(home)
            self.follow()
            fds = {name: self.maps[name].fd for name in mapset.names()}
            now = self._reopen(home)
            if over not in (None, program.info(now.program).id):
                raise _replaced(home)
            loaded = program.load(path, self.sizes(), fds)
            try:
                wanted = not if_changed or replacing.tags(loaded) != replacing.tags(now)
                if wanted:
                    replacing.stage(home, loaded, elf)
                    replacing.complete(home)
                    self._reopen(home)
            finally:
                adopting.close(loaded)
        return wanted

    def resize(
        self, sizes: Sizes, object_path: Path | None = None, *, over: int | None = None,
        working: Callable[[], None] = unheard,
    ) -> None:  # fmt: skip
        """A new program over maps of these sizes, with what is in the old ones. Others wait for its last step only.

        `working` hears of every step of those that take long.
        """
        home, path = self._pinned("resize"), object_path or default_object()
        adopting.check_spoken(objects.content(path), path)
        with ExitStack() as claim:
            with pins.locked():
                _complete(home)
                self.follow()
                place, number = self._place, self.running().program.id
                if over not in (None, number):
                    raise _replaced(home)
                claim.enter_context(resizing.begun(home))
            try:
                since = resizing.prepare(home, self.maps, path, sizes, working)
                with pins.locked():
                    if (adopting.place(home), self.running().program.id) != (place, number):
                        raise _replaced(home)
                    resizing.switch(home, since)
                resizing.finish(home, working)
            finally:
                with pins.locked():
                    claim.close()
                    self.follow()

    @property
    def is_resizing(self) -> bool:
        """Whether somebody goes over to maps of other sizes, or began to and was killed."""
        return resizing.is_under_way(self._pinned("is_resizing"))

    @property
    def is_between(self) -> bool:
        """The same, or whether another program was to take over, and has not yet."""
        return self.is_resizing or following(self._pinned("is_between").program).exists()

    @property
    def place(self) -> int:
        """Another number once another process has gone over to other maps."""
        return adopting.place(self._pinned("place"))

    def follow(self, working: Callable[[], None] = unheard) -> bool:
        """Another process may have gone over to other maps; whether one has. Needs the lock.

        What it left half-way is completed: `working` hears of the steps.
        """
        home = self._pinned("follow")
        _complete(home, working)
        if adopting.place(home) == self._place:
            return False
        repinning.pin_shared(home, self.maps)
        fresh = adopting.opened(home, read_only=False)
        for name in mapset.names():
            self.maps[name].close()
        self.maps.__dict__.update(fresh.__dict__)
        self._place = adopting.place(home)
        self._reopen(home)
        return True

    def undo(self, *, over: int | None = None) -> None:
        """The program from before in the place of this one, which is kept in turn. `over` as of replace."""
        home = self._pinned("undo")
        with pins.locked():
            _complete(home)
            self.follow()
            if over not in (None, self.running().program.id):
                raise _replaced(home)
            replacing.stage_previous(home)
            replacing.complete(home)
            self._reopen(home)

    def running(self) -> Version:
        """What is pinned now, whoever put it there."""
        home = self._pinned("running")
        found = adopting.version(home, home.program)
        if found is None:
            raise NotLoaded(f"{home.program}: is not there any more")
        return found

    def previous(self) -> Version | None:
        home = self._pinned("previous")
        return adopting.version(home, preceding(home.program))

    def kept(self, version: Version) -> bytes | None:
        """The object that a pinned program was made of."""
        return record.object_of(self._pinned("kept").records / str(version.program.id))

    def _reopen(self, home: Pins) -> Loaded:
        """The pinned programs: another process may have replaced them since."""
        now = adopting.programs(home, read_only=True)
        for fd in (self._program, self._sweep):
            if fd >= 0:
                os.close(fd)
        self._program, self._sweep = now.program, now.sweep
        return now

    # ---- runs ----

    def run(self, frame: bytes, *, ifindex: int = 1, repeat: int = 1) -> Run:
        """What the program does with a frame that comes in by this interface."""
        return program.run(self._program, frame, ifindex=ifindex, repeat=repeat)

    def run_live(self, frame: bytes, ifindex: int, repeat: int, batch: int = 64) -> int:
        """The same with frames that are really sent; mean ns a frame."""
        return program.run_live(self._program, frame, ifindex=ifindex, repeat=repeat, batch=batch)

    def sweep(self, now: int | None = None) -> Sweep:
        """Expire idle entries and count live flows anew; in the kernel where it can."""
        if self._home:
            self._reopen(self._home)
        report = Sweep(now=now_tick() if now is None else now)
        if self._sweep < 0:
            return sweeping.sweep(self.maps, report.now)
        objects.run_on(self._sweep, report, "the sweep")
        return report

    def program_info(self) -> ProgramInfo:
        return program.info(self._program)

    def _pinned(self, what: str) -> Pins:
        if self._home is None:
            raise KernelError(f"{what}: a shadow instance is pinned and attached nowhere")
        return self._home


def teardown(name: str) -> None:
    """Detach and unpin an instance of whatever version, whole or not."""
    home = Pins.of(name)
    with pins.locked():
        via.remove(name, known=home.interfaces())
        for interface in home.interfaces():
            link.detach(home.link(interface))
        pins.remove(resizing.beside(home).directory)  # or flows would follow into the next one
        gone = home.directory.with_name(pins.REMOVING + name)
        pins.remove(gone)
        with suppress(FileNotFoundError):
            home.directory.rename(gone)
        pins.remove(gone)


# ---- first load ----


def _build(home: Pins, sizes: Sizes, path: Path, log: Log | None) -> None:
    """Pin under another name and rename: whoever sees the directory sees all of it."""
    if home.interfaces():
        raise AbiMismatch(
            f"{home.program}: not there, but interfaces are attached. {adopting.remedy(home)}"
        )
    building = Pins(home.directory.with_name(pins.LOADING + home.directory.name))
    loaded = program.load(path, sizes, {}, log)
    try:
        building.make()
        for name, fd in loaded.maps.items():
            pin(fd, building.map(name))
            mapset.share(name, building.map(name))
        replacing.keep(building, loaded.program, objects.content(path))
        replacing.pin_programs(loaded, building.program, building.sweep)
        _sign(loaded)
        _adopted(building, read_only=False).close()  # or the next process could not
        pins.remove(home.directory)  # neither a program nor links: nothing runs by it
        building.directory.rename(home.directory)
    finally:
        adopting.close(loaded)
        pins.remove(building.directory)


def _sign(loaded: Loaded) -> None:
    meta: Map[int, Meta] = Map("meta", os.dup(loaded.maps["meta"]), (int, Meta))
    meta.put(0, Meta(abi=Abi.VERSION))
    meta.close()


# ---- what is pinned ----


def _complete(home: Pins, working: Callable[[], None] = unheard) -> None:
    """What somebody began who was killed."""
    resizing.complete(home, working)
    replacing.complete(home)


def _replaced(home: Pins) -> Busy:
    return Busy(f"{home.program}: was replaced meanwhile; look again")


def _adopted(home: Pins, *, read_only: bool) -> Instance:
    """Once more when somebody goes over to other maps meanwhile: never half of each."""
    while True:
        before = adopting.place(home)
        found, maps = adopting.adopted(home, read_only=read_only)
        if adopting.place(home) == before:
            return Instance(home.directory.name, maps, found.program, found.sweep, home)
        adopting.close(found)
        maps.close()
