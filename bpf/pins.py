"""Where an instance lives: /sys/fs/bpf/evenkeel/<instance>/, and under which names.

Paths and directory entries only; what is behind a pin is not looked at. The
BPF file system takes no dots in names, so pins of tables are called 7-1 and
interface names are escaped.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import EACCES, ENODEV
from pathlib import Path
from urllib.parse import unquote

from bpf.errors import KernelError, NotPermitted, Unsupported, failed

BPFFS = Path("/sys/fs/bpf")
ROOT = BPFFS / "evenkeel"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
LOADING, REMOVING = "loading:", "removing:"  # no instance can be called so
RESIZING = (
    "resizing:"  # an instance over larger maps, on its way in; or, after that, the one before
)
AT_FDCWD, RENAME_EXCHANGE = -100, 1 << 1
VIA = "via"  # what checks with `via: service` need, while any does
TABLES = ("tables", "spares")  # inner maps are pinned beside the maps that name them
NEXT = ":next"  # a program on its way in
PREVIOUS = ":previous"  # the one before, kept for going back
AGAIN = 0.05  # seconds until a lock that another process has is asked for again


@dataclass(frozen=True, slots=True)
class Pins:
    """The paths of one instance."""

    directory: Path

    @classmethod
    def of(cls, name: str) -> Pins:
        if not NAME.fullmatch(name):
            raise KernelError(
                f"instance name {name!r}: use letters, digits, '-' and '_', at most 63,"
                " starting with a letter or digit"
            )
        return cls(ROOT / name)

    @property
    def program(self) -> Path:
        return self.directory / "program"

    @property
    def sweep(self) -> Path:
        return self.directory / "sweep"

    @property
    def links(self) -> Path:
        return self.directory / "links"

    @property
    def maps(self) -> Path:
        return self.directory / "maps"

    @property
    def records(self) -> Path:
        """What each pinned program was made of, by the program's id."""
        return self.directory / "records"

    def map(self, name: str) -> Path:
        return self.maps / name

    def make(self) -> None:
        folders = (self.maps, self.links, self.records)
        for directory in (*folders, *map(self.directory.joinpath, TABLES)):
            directory.mkdir(parents=True, exist_ok=True)

    def link(self, interface: str) -> Path:
        return self.links / quoted(interface)

    def interfaces(self) -> list[str]:
        return [unquote(entry) for entry in entries(self.links)]

    @property
    def exists(self) -> bool:
        return self.program.name in entries(self.directory)


def quoted(interface: str) -> str:
    return interface.replace("%", "%25").replace(".", "%2E")


def following(path: Path) -> Path:
    """Where the successor of a pinned program waits."""
    return path.with_name(path.name + NEXT)


def preceding(path: Path) -> Path:
    """Where the predecessor of a pinned program is kept."""
    return path.with_name(path.name + PREVIOUS)


def entries(directory: Path) -> list[str]:
    try:
        return sorted(path.name for path in directory.iterdir())
    except FileNotFoundError:
        return []
    except PermissionError as error:
        raise failed(f"{directory}: listing", EACCES) from error


def instances() -> list[str]:
    return [name for name in entries(ROOT) if NAME.fullmatch(name) and Pins.of(name).exists]


def remove(directory: Path) -> None:
    """A directory and everything pinned in it, if it is there."""
    for name in entries(directory):
        path = directory / name
        if stat.S_ISDIR(path.lstat().st_mode):
            remove(path)
        else:
            path.unlink(missing_ok=True)
    if directory.exists():
        directory.rmdir()


def remove_leftovers() -> None:
    """What loaders and teardowns that were killed half-way have left. Needs the lock.

    What another user left is in nobody's way: that stays for whoever may remove it.
    """
    for name in entries(ROOT):
        if name.startswith((LOADING, REMOVING)):
            with suppress(PermissionError, NotPermitted):
                remove(ROOT / name)


def unheard() -> None:
    """For whoever does not ask how far it is."""


class _Held(threading.local):
    depth = 0


_held = _Held()


@contextmanager
def locked(waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """One process at a time loads, attaches, replaces, resizes or tears down; a thread that has it goes on.

    `waiting` is called again and again while another has it: for those who are waited for themselves.
    """
    if _held.depth:
        yield
        return
    mounted()
    handle = os.open(ROOT, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _take(handle, waiting)
        _held.depth = 1
        yield
    finally:
        _held.depth = 0
        os.close(handle)


def _take(handle: int, waiting: Callable[[], None] | None) -> None:
    """The kernel tells nobody when a lock is let go, but who sleeps for it: so it is asked."""
    while waiting is not None:
        with suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        waiting()
        time.sleep(AGAIN)
    fcntl.flock(handle, fcntl.LOCK_EX)


def exchange(one: Path, other: Path) -> None:
    """Two directories change names, in one step."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) != 0:
        raise failed(f"{one}: changing places with {other.name}", ctypes.get_errno())


def mounted() -> None:
    """Make the BPF file system, and our directory in it, be there."""
    try:
        if not is_mounted():
            _mount()
        ROOT.mkdir(mode=0o755, exist_ok=True)
    except PermissionError as error:
        raise failed(f"{ROOT}: making it", EACCES) from error


def is_mounted() -> bool:
    """Whether the last thing mounted there is a BPF file system."""
    kind = ""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        fields, _, source = line.partition(" - ")
        if fields.split()[4] == str(BPFFS):
            kind = source.split()[0]
    return kind == "bpf"


def _mount() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"bpf", os.fsencode(BPFFS), b"bpf", ctypes.c_ulong(0), None) == 0:
        return
    code = ctypes.get_errno()
    if code == ENODEV:
        raise Unsupported(f"{BPFFS}: this kernel has no BPF file system (CONFIG_BPF_SYSCALL)")
    raise failed(
        f"{BPFFS} is no BPF file system, and mounting one failed;"
        f" as root, `mount -t bpf bpf {BPFFS}`",
        code,
    )
