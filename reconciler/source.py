"""Where the configuration comes from: a file, read whole or not at all.

A file that changes while it is read, or just now, is not read yet. A missing,
empty or unreadable one is an error, never an empty configuration.
"""

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from reconciler.yamlpos import MAX_BYTES

SETTLE = 0.2
PATIENCE = 5.0  # a file that never rests is read all the same once it reads the same twice
_COMMIT = re.compile(r"#\s*commit:\s*([0-9a-f]{7,64})\s*$", re.MULTILINE)
_SHA = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?\Z")
# Reading a file, our own reading included, must not wake us.
_CHANGES = frozenset({"created", "moved", "deleted", "modified", "closed"})


class SourceError(Exception):
    """The file cannot be read now; what is applied stays."""


@dataclass(frozen=True, slots=True)
class Revision:
    """A content and where it came from."""

    path: str
    text: str
    digest: bytes
    commit: str = ""


Signature = tuple[str, int, int, int, int, int]


class Clock(Protocol):
    def monotonic(self) -> float: ...
    def sleep(self, seconds: float, /) -> None: ...


class FileSource:
    """Follows one path, whatever it is a link to at the time."""

    def __init__(self, path: Path, clock: Clock = time) -> None:
        self.path = path
        self._clock = clock
        self._seen: Signature | None = None

    def changed(self) -> bool:
        """Whether the file is another one than the last that was read."""
        try:
            return self._signature() != self._seen
        except OSError:
            return self._seen is not None

    def read(self) -> Revision:
        """The content once it has come to rest."""
        deadline = self._clock.monotonic() + PATIENCE
        try:
            while True:
                before = self._signature()
                if time.time() - before[4] / 1e9 < SETTLE:
                    self._clock.sleep(SETTLE)
                data = self._content()
                rests = before == self._signature() and data == self._content()
                if rests:
                    return self._revision(data, before)
                if self._clock.monotonic() > deadline:
                    raise SourceError(f"{self.path}: still being written after {PATIENCE:g} s")
        except OSError as error:
            self._seen = None
            raise SourceError(f"{self.path}: {error.strerror}; what is applied stays") from error

    def _revision(self, data: bytes, signature: Signature) -> Revision:
        self._seen = signature
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise SourceError(f"{self.path}: byte {error.start} is not UTF-8") from error
        if not text.strip():
            raise SourceError(f"{self.path}: the file is empty; what is applied stays")
        digest = hashlib.sha256(data).digest()
        return Revision(str(self.path), text, digest, _commit(text, signature[0]))

    def _signature(self) -> Signature:
        target = os.path.realpath(self.path)
        found = Path(target).stat()
        return (
            target, found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size,
        )  # fmt: skip

    def _content(self) -> bytes:
        with self.path.open("rb") as file:
            return file.read(MAX_BYTES + 1)


def _commit(text: str, target: str) -> str:
    """As a pull script noted it, or as git-sync names its work trees."""
    noted = _COMMIT.search(text[:400])
    if noted:
        return noted[1]
    return next((part for part in reversed(Path(target).parts) if _SHA.match(part)), "")


class Hint(FileSystemEventHandler):
    """Wakes whoever waits when something happens in a directory.

    What it misses does not matter: the signature is the truth, and looked at anyway.
    """

    def __init__(self, directories: Mapping[Path, None], wake: Callable[[], None]) -> None:
        self._wake = wake
        self._observer = Observer()
        for directory in directories:
            if directory.is_dir():
                self._observer.schedule(self, str(directory), recursive=False)

    def __enter__(self) -> Self:
        self._observer.daemon = True
        with suppress(OSError):  # out of inotify watches: polling finds out too, a little later
            self._observer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._observer.is_alive():
            self._observer.stop()
            self._observer.join()

    def dispatch(self, event: FileSystemEvent) -> None:
        if event.event_type in _CHANGES:
            self._wake()


class Poke:
    """Something may have happened: look again. Many pokes are one."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __call__(self, *_: Any) -> None:  # noqa: ANN401 -- also a signal handler
        self._event.set()

    def wait(self, timeout: float) -> None:
        self._event.wait(timeout)
        self._event.clear()
