"""Where the configuration comes from: a file, read whole or not at all.

The stat signature is the truth; events are only a hint (see `watching`). A file that
changes while it is read, changed just now or is open for writing is not read yet.
A missing, empty or unreadable one is an error, never an empty configuration.
"""

import fcntl
import os
import select
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from reconciler import provenance
from reconciler.revision import Candidate, Revision, SourceError, revision
from reconciler.yamlpos import MAX_BYTES

SETTLE = 0.2
PATIENCE = 5.0  # a file that never rests is read all the same once it reads the same twice
LOUD = 15.0  # a file that could not be read for so long is said to be restless
LOCK_GRACE = 10.0  # git's lock is left behind by crashes; then it says nothing

# (where it really is, device, inode, mtime, ctime, size); None while there is no file.
Signature = tuple[str, int, int, int, int, int]


class Source(Protocol):
    """Something that offers configurations. `look` never blocks for long."""

    name: str

    def look(self) -> Candidate | None:
        """What is new since the last look; None when nothing is. SourceError: why there is none."""

    def read(self) -> Candidate:
        """What there is, waiting for it. SourceError: why there is none."""

    def preview(self) -> Candidate:
        """The same, leaving no trace."""

    def due(self) -> float:
        """Seconds until a look may find more, however quiet it is."""

    def start(self, wake: Callable[[], None]) -> None:
        """From now on, wake the loop when there may be something new."""

    def hurry(self) -> None:
        """Somebody says that there is something new."""

    def accepted(self, taken: Revision) -> None:
        """What was offered is applied from now on."""

    def folders(self) -> tuple[Path, ...]:
        """Where something happens when there is something new."""

    def close(self) -> None: ...


class Clock(Protocol):
    def monotonic(self) -> float: ...
    def sleep(self, seconds: float, /) -> None: ...


class FileSource:
    """Follows one path, whatever it is a link to at the time."""

    def __init__(self, path: Path, clock: Clock = time) -> None:
        self.path = path
        self.name = str(path)
        self._clock = clock
        self._taken: Signature | None | str = "nothing yet"
        self._pending: Signature | None | str = "nothing yet"
        self._quiet_since = 0.0
        self._restless_since: float | None = None

    def look(self) -> Candidate | None:
        """What the file says, once it has come to rest and is another one than before."""
        try:
            found = self._signature()
            if found == self._taken:
                self._restless_since = None
                return None
            if not self._rests(found):
                self._mention_unrest()
                return None
            return self._take(found)
        except OSError as error:
            raise SourceError(f"{self.path}: {error.strerror}", "Unreadable") from error

    def preview(self) -> Candidate:
        return self.read()

    def read(self) -> Candidate:
        """The content, waiting for it to come to rest."""
        self._taken = "nothing yet"
        while (found := self.look()) is None:
            self._clock.sleep(SETTLE / 4)
        return found

    def due(self) -> float:
        if self._restless_since is None:
            return float("inf")
        left = self._quiet_since + SETTLE - self._clock.monotonic()
        return min(left, SETTLE / 4) if left > 0 else SETTLE / 4

    def start(self, wake: Callable[[], None]) -> None:
        """Looks and hints are all there is."""

    def hurry(self) -> None:
        """Every look is as quick as it can be."""

    def accepted(self, taken: Revision) -> None:
        """Nothing to remember: a file has no history."""

    def folders(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(folders_on_the_way(self.path)))

    def close(self) -> None:
        """Nothing is kept open."""

    def _signature(self) -> Signature | None:
        target = os.path.realpath(self.path)
        try:
            found = Path(target).stat()
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(found.st_mode):
            raise SourceError(f"{self.path}: not a regular file", "NotAFile")
        return (
            target, found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size,
        )  # fmt: skip

    def _rests(self, found: Signature | None) -> bool:
        now = self._clock.monotonic()
        if self._restless_since is None:
            self._restless_since = now
        if found != self._pending:
            self._pending, self._quiet_since = found, now
        quiet, restless = now - self._quiet_since, now - self._restless_since
        if found is None:
            return quiet >= SETTLE
        if provenance.checking_out(Path(found[0])) and restless < LOCK_GRACE:
            return False
        if _open_for_writing(found[0]):
            return quiet >= PATIENCE
        return quiet >= SETTLE or restless >= PATIENCE

    def _mention_unrest(self) -> None:
        since = self._restless_since
        if since is not None and self._clock.monotonic() - since > LOUD:
            raise SourceError(f"{self.path}: is being written all the time", "Restless")

    def _take(self, found: Signature | None) -> Candidate | None:
        if found is None:
            self._settled(found)
            message = f"{self.path}: there is no such file; write it, or name another with --config"
            raise SourceError(message, "FileMissing")
        data = self._content(found)
        if data is None:
            return None
        self._settled(found)
        if len(data) > MAX_BYTES:
            message = f"{self.path}: more than {MAX_BYTES >> 20} MiB, which no lb.yaml is"
            raise SourceError(message, "TooLarge")
        made = provenance.of_file(data, self.path, Path(found[0]))
        return Candidate(revision(str(self.path), data, made))

    def _settled(self, found: Signature | None) -> None:
        self._taken, self._restless_since = found, None

    def _content(self, expected: Signature) -> bytes | None:
        """Read twice; None when anything moved meanwhile."""
        first = _bytes_of(expected)
        if first is None or self._signature() != expected:
            return None
        again = _bytes_of(expected)
        return first if first == again and self._signature() == expected else None


def _bytes_of(expected: Signature) -> bytes | None:
    """The bytes of just that file; None when its name is another's by now."""
    target, device, inode, *_ = expected
    with suppress(FileNotFoundError), Path(target).open("rb") as file:
        opened = os.fstat(file.fileno())
        if (opened.st_dev, opened.st_ino) == (device, inode):
            return file.read(MAX_BYTES + 1)
    return None


def _open_for_writing(target: str) -> bool:
    """Whether someone may be half-way through: the kernel gives no read lease then.

    Where leases are not to be had (another's file without CAP_LEASE, many network file
    systems) nobody knows, and the quiet time has to do.
    """
    with suppress(FileNotFoundError), Path(target).open("rb") as file:
        try:
            # A writer that comes just now is announced by a signal: one that nobody minds.
            fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False


def folders_on_the_way(path: Path) -> Iterator[Path]:
    """The folders that hold the path's last part, and every link that is followed on the way."""
    here = Path("/")
    ahead = list(reversed(Path(os.path.abspath(path)).parts[1:]))  # noqa: PTH100 -- resolves no links
    hops = 0
    while ahead:
        part = ahead.pop()
        step = here.parent if part == ".." else here / part
        if step.is_symlink() and hops < _HOPS:
            hops += 1
            yield here
            target = step.readlink()
            here = Path("/") if target.is_absolute() else here
            ahead += [part for part in reversed(target.parts) if part != "/"]
            continue
        if not ahead:
            yield step.parent
        here = step


_HOPS = 40  # as many as the kernel follows


class Poke:
    """Something may have happened: look again. Many pokes are one.

    Also a signal handler, so it takes no lock that the interrupted code may hold.
    """

    def __init__(self) -> None:
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __call__(self, *_: Any) -> None:  # noqa: ANN401 -- signal number and frame
        os.eventfd_write(self._event, 1)

    def wait(self, timeout: float) -> bool:
        """Whether there was a poke within that time."""
        ready, _, _ = select.select([self._event], [], [], max(timeout, 0))
        if ready:
            with suppress(BlockingIOError):
                os.eventfd_read(self._event)
        return bool(ready)
