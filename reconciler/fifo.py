"""Listens on keepalived's notify FIFO, without ever waiting. Understands no line and acts on none.

Whoever comes first makes the FIFO: keepalived and we both leave one that is there.
It is read until it is empty; that nobody has it open for writing says that
keepalived does not run. What cannot be opened is said once and tried again.
"""

import errno
import json
import logging
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from reconciler import published, vrrp
from reconciler.vrrp import Roles, Vrrp

KEPT = "vrrp.json"
PIECE, MOST = 4096, 1 << 18  # bytes at once, and in one turn of the loop
LONGEST_LINE = 1024
log = logging.getLogger("reconciler")


class Fifo:
    def __init__(self, path: Path, run_dir: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._kept, self._clock = path, run_dir / KEPT, clock
        self._roles = kept(self._kept)
        self._descriptor = -1
        self._rest = b""
        self._said = ""

    def look(self) -> Vrrp:
        """What keepalived has said so far."""
        before = self._roles
        running = self._listen()
        if not running:
            self._roles = vrrp.orphaned(self._roles, self._clock())
        if self._roles != before:
            self._keep()
        return Vrrp(running, tuple(one for _, one in sorted(self._roles.items())))

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._rest = -1, b""

    def _listen(self) -> bool:
        """Take what there is; whether somebody has it open for writing."""
        try:
            running = self._descriptor >= 0 and self._drain()
            if self._opened_anew():
                running = self._drain()
        except OSError as error:
            self._say(f"{self._path}: {_why(error)}: the VRRP role is not known")
            self.close()
            return False
        self._said = ""
        return running

    def _opened_anew(self) -> bool:
        """Whether the path is another FIFO than the one that we have: somebody made it again."""
        if self._descriptor >= 0 and _same(self._path, self._descriptor):
            return False
        self.close()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not self._path.exists():
            os.mkfifo(self._path, 0o600)
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags)
        if not stat.S_ISFIFO(os.fstat(self._descriptor).st_mode):
            raise OSError(errno.EINVAL, "is no FIFO")
        return True

    def _drain(self) -> bool:
        taken = 0
        while taken < MOST:
            try:
                piece = os.read(self._descriptor, PIECE)
            except BlockingIOError:
                return True
            if not piece:
                self._rest = b""  # who comes next does not go on with a dead one's line
                return False
            taken += len(piece)
            self._hear(piece)
        return True

    def _hear(self, piece: bytes) -> None:
        *lines, rest = (self._rest + piece).split(b"\n")
        self._rest = rest if len(rest) <= LONGEST_LINE else b""
        said = (line.decode(errors="replace") for line in lines)
        self._roles = vrrp.heard(self._roles, said, self._clock())

    def _keep(self) -> None:
        try:
            published.publish_json(self._kept, vrrp.document(self._roles))
        except OSError as error:
            self._say(f"the VRRP role is not kept: {error}")

    def _say(self, what: str) -> None:
        if what != self._said:
            log.error("%s", what)
        self._said = what


def _same(path: Path, descriptor: int) -> bool:
    try:
        found, ours = path.lstat(), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)


def _why(error: OSError) -> str:
    if error.errno == errno.EACCES:
        return "not permitted to read it: remove it and start the reconciler before keepalived"
    return error.strerror or str(error)


def kept(path: Path) -> Roles:
    try:
        return vrrp.parse(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # until keepalived says something
