"""The programs and maps behind `via: service`: loaded and attached only while somebody wants them.

They are an instance's, pinned in its folder under `via/`, and gone with it. Which
probes there are, and on which interfaces they leave, is the reconciler's business.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpf import errors, libbpf, objects, pins, program, tc
from bpf.abi import Address, Flow6Key, Probe
from bpf.errors import AbiMismatch, NotLoaded
from bpf.link import index_of
from bpf.maps import Map
from bpf.mapset import identity
from bpf.pins import Pins
from bpf.tables import open_pin, pin
from bpf.tc import Way

OBJECT = "via.bpf.o"
PROGRAMS = {Way.OUT: "via_out", Way.IN: "via_in"}
TYPES: dict[str, tuple[Any, Any]] = {"probes": (int, Probe), "probing": (Flow6Key, Address)}
SHAPES = {"probes": (4, 56), "probing": (40, 16)}


@dataclass(frozen=True, slots=True)
class Home:
    """Where it is pinned."""

    directory: Path

    @classmethod
    def of(cls, name: str) -> Home:
        return cls(Pins.of(name).directory / pins.VIA)

    def pin(self, what: str) -> Path:
        return self.directory / what

    @property
    def exists(self) -> bool:
        return {*PROGRAMS.values(), *TYPES} <= set(pins.entries(self.directory))


class Via:
    """Two programs and two maps. Closing it leaves everything as it is."""

    def __init__(self, home: Home, programs: dict[Way, int], fds: dict[str, int], *,
                 read_only: bool = False) -> None:  # fmt: skip
        self._home, self._programs = home, programs
        self.probes: Map[int, Probe] = Map(
            "probes", fds["probes"], TYPES["probes"], writable=not read_only
        )
        self.probing: Map[Flow6Key, Address] = Map("probing", fds["probing"], TYPES["probing"])

    @classmethod
    def load(cls, name: str, object_path: Path | None = None) -> Via:
        """What is pinned, with this version's programs; else made anew."""
        home = Home.of(name)
        with pins.locked():
            if not Pins.of(name).exists:
                raise NotLoaded(f"instance {name}: nothing is loaded, so nothing to check through")
            fds = _pinned_maps(home, read_only=False) if home.exists else {}
            made, fds = _loaded(object_path or objects.beside(OBJECT), fds)
            if not home.exists or not _alike(home, made):
                _pin_all(home, made, fds)
            _close(made)
            return cls(home, _pinned_programs(home), fds)

    @classmethod
    def open(cls, name: str, *, read_only: bool = False) -> Via | None:
        """What is pinned; None: nothing is."""
        home = Home.of(name)
        if not home.exists:
            return None
        return cls(
            home,
            _pinned_programs(home, read_only=read_only),
            _pinned_maps(home, read_only=read_only),
            read_only=read_only,
        )

    def close(self) -> None:
        self.probes.close()
        self.probing.close()
        _close(self._programs)
        self._programs = {}

    @property
    def pinned(self) -> bool:
        return self._home.exists

    def pin_again(self) -> None:
        with pins.locked():
            _pin_all(self._home, self._programs, self._fds())

    def attach(self, interface: str) -> bool:
        """In the calling thread's network namespace; whether it was not there before."""
        ifindex = index_of(interface)
        missing = [
            way
            for way, fd in self._programs.items()
            if tc.running(ifindex, way) != program.info(fd).id
        ]
        for way in missing:
            tc.attach(interface, ifindex, way, self._programs[way])
        return bool(missing)

    def attached(self) -> set[str]:
        """Interfaces of this network namespace on which both programs are."""
        wanted = {way: program.info(fd).id for way, fd in self._programs.items()}
        return {
            name
            for name, index in tc.interfaces().items()
            if all(tc.running(index, way) == number for way, number in wanted.items())
        }

    def run(self, way: Way, frame: bytes, **context: int) -> program.SkbRun:
        """BPF_PROG_TEST_RUN of one frame that a socket sent, or that came in."""
        return program.run_skb(self._programs[way], frame, **context)

    def _fds(self) -> dict[str, int]:
        return {"probes": self.probes.fd, "probing": self.probing.fd}


def remove(name: str, *, known: Iterable[str] = ()) -> None:
    """Detach, in this network namespace, and unpin. Needs the lock. `known` interfaces are this instance's alone."""
    home = Home.of(name)
    ours = _numbers(home)
    alone = set(known)
    for interface, index in tc.interfaces().items():
        for way in Way:
            there = tc.running(index, way)
            if there and (there == ours.get(way) or interface in alone):
                tc.detach(index, way)
    pins.remove(home.directory)


def detach(interface: str) -> None:
    for way in Way:
        tc.detach(index_of(interface), way)


def _numbers(home: Home) -> dict[Way, int]:
    found = {way: open_pin(home.pin(name), read_only=True) for way, name in PROGRAMS.items()}
    try:
        return {way: program.info(fd).id for way, fd in found.items() if fd is not None}
    finally:
        _close({way: fd for way, fd in found.items() if fd is not None})


# ---- loading


def _loaded(path: Path, reuse: dict[str, int]) -> tuple[dict[Way, int], dict[str, int]]:
    """Both programs, over these maps or new ones."""
    lib = libbpf.lib()
    with libbpf.captured() as said, objects.opened(path, said) as handle:
        maps = {}
        found = None
        while found := lib.bpf_object__next_map(handle, found):
            maps[lib.bpf_map__name(found).decode()] = found
        for name, fd in reuse.items():
            lib.bpf_map__reuse_fd(maps[name], fd)
        code = lib.bpf_object__load(handle)
        if code < 0:
            raise errors.failed(f"{path}: loading", code, said)
        programs = {
            way: os.dup(
                lib.bpf_program__fd(lib.bpf_object__find_program_by_name(handle, name.encode()))
            )
            for way, name in PROGRAMS.items()
        }
        fds = reuse or {name: os.dup(lib.bpf_map__fd(maps[name])) for name in TYPES}
    return programs, fds


def _alike(home: Home, made: dict[Way, int]) -> bool:
    """Whether what is pinned is what this version would load."""
    there = _pinned_programs(home)
    try:
        return all(program.info(there[way]).tag == program.info(fd).tag for way, fd in made.items())
    finally:
        _close(there)


def _pin_all(home: Home, programs: dict[Way, int], fds: dict[str, int]) -> None:
    home.directory.mkdir(exist_ok=True)
    everything = {**fds, **{PROGRAMS[way]: fd for way, fd in programs.items()}}
    for name, fd in everything.items():
        waiting = pins.following(home.pin(name))
        waiting.unlink(missing_ok=True)
        pin(fd, waiting)
        waiting.rename(home.pin(name))


def _pinned_programs(home: Home, *, read_only: bool = False) -> dict[Way, int]:
    found = {way: open_pin(home.pin(name), read_only=read_only) for way, name in PROGRAMS.items()}
    return {way: fd for way, fd in found.items() if fd is not None}


def _pinned_maps(home: Home, *, read_only: bool) -> dict[str, int]:
    fds: dict[str, int] = {}
    for name, shape in SHAPES.items():
        fd = open_pin(home.pin(name), read_only=read_only)
        if fd is None:
            raise NotLoaded(f"{home.pin(name)}: was removed meanwhile")
        fds[name] = fd
        called, *found = identity(fd)
        if called != name or tuple(found) != shape:
            raise AbiMismatch(
                f"{home.pin(name)}: is a map {called} of another version."
                f" `rm -r {home.directory}`: it is made anew, and attached in place of the old"
            )
    return fds


def _close(programs: dict[Way, int]) -> None:
    for fd in programs.values():
        os.close(fd)
