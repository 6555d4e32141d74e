"""Reads what `doctor --keepalived` judges: the files, what is at the scripts' paths, and whether keepalived runs. Changes nothing."""

import glob
import os
import pwd
import shutil
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bpf.pins import BPFFS
from reconciler.keepalived import Parsed, parse
from reconciler.pairing import Executable, Keepalived
from reconciler.weighing import Setup, setup

DEFAULT_USER = "keepalived_script"
SHEBANG, ELF = b"#!", b"\x7fELF"


def read(files: list[Path], interfaces: list[str]) -> Keepalived:
    """The first file is this node's, the others its peers'."""
    own, peers = _parsed(files[0]), [_parsed(path) for path in files[1:]]
    made = setup(own, str(files[0]))
    return Keepalived(
        own=_found_on_path(made),
        peers=tuple(
            setup(one, str(path)) for one, path in zip(peers, files[1:], strict=True)
        ),
        executables={one.path: executable(one.path) for one in _found_on_path(made).scripts.values()},
        default_user=_uid(DEFAULT_USER) is not None,
        strangers=frozenset(_strangers(made)),
        roots=frozenset(one.pw_name for one in pwd.getpwall() if one.pw_uid == 0),
        running=any(_running()),
        pins_are_roots=not BPFFS.stat().st_mode & stat.S_IXOTH,
        conditional=own.conditional,
        absent=own.absent,
        forged=frozenset(name for name in interfaces if not _accepts_local(name)),
    )  # fmt: skip


def _parsed(path: Path) -> Parsed:
    return parse(path.read_text(encoding="utf-8", errors="replace"), str(path), _included)


def _included(pattern: str, of: str) -> Iterator[tuple[str, str]]:
    for name in sorted(glob.glob(pattern, root_dir=Path(of).parent)):  # noqa: PTH207 -- absolute ones too
        path = Path(of).parent / name
        if path.is_file():
            yield str(path), path.read_text(encoding="utf-8", errors="replace")


def _found_on_path(made: Setup) -> Setup:
    """A command without a slash is looked for as keepalived does."""
    return replace(
        made,
        scripts={
            name: replace(one, command=(shutil.which(one.path) or one.path, *one.command[1:]))
            if one.path and "/" not in one.path
            else one
            for name, one in made.scripts.items()
        },
    )


def _strangers(made: Setup) -> Iterator[str]:
    named = {made.user, *(one.user for one in made.scripts.values())}
    return (name for name in named if name and _uid(name) is None)


def _uid(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def executable(path: str) -> Executable:
    """As root, who may run whatever anybody may."""
    try:
        found = os.stat(path)  # noqa: PTH116 -- an empty path is none
    except OSError:
        return Executable(exists=False)
    if not stat.S_ISREG(found.st_mode):
        return Executable(exists=False)
    start = _start(path)
    interpreter = _interpreter(start)
    return Executable(
        runs=bool(found.st_mode & 0o111),
        program=start.startswith((SHEBANG, ELF)),
        exposed=exposed(Path(path)),
        interpreter=interpreter,
        interpreter_runs=not interpreter or os.access(interpreter, os.X_OK),
    )


def exposed(path: Path) -> str:
    """The first part of the path that others than root may change; a link is where it leads."""
    real = path.resolve()
    parts = (*reversed(real.parents), real)
    return next((str(part) for part in parts if _is_exposed(part.stat())), "")


def _is_exposed(found: os.stat_result) -> bool:
    """In a sticky folder nobody can change what is root's."""
    if found.st_uid:
        return True
    if stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX:
        return False
    group = found.st_mode & stat.S_IWGRP and found.st_gid
    return bool(found.st_mode & stat.S_IWOTH or group)


def _start(path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 -- the path of somebody else's file
            return file.readline(256)
    except OSError:
        return b""


def _interpreter(start: bytes) -> str:
    """As the kernel takes it: a carriage return is a part of its name."""
    if not start.startswith(SHEBANG):
        return ""
    line = start.removeprefix(SHEBANG).rstrip(b"\n").replace(b"\t", b" ").strip(b" ")
    return os.fsdecode(line.partition(b" ")[0])


def _running() -> Iterator[bool]:
    """Of this network namespace: another's keepalived runs another file."""
    here = os.stat("/proc/thread-self/ns/net").st_ino  # noqa: PTH116
    for process in Path("/proc").glob("[0-9]*"):
        try:
            ours = os.stat(process / "ns/net").st_ino == here  # noqa: PTH116
            if ours and (process / "comm").read_text().strip() == "keepalived":
                yield True
        except OSError:
            continue  # it ended, or is not for us to see


def _accepts_local(name: str) -> bool:
    """The kernel takes either."""
    values = (Path("/proc/sys/net/ipv4/conf", which, "accept_local") for which in ("all", name))
    return any(path.exists() and path.read_text().strip() != "0" for path in values)
