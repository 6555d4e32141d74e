"""Being told when something happens in a folder. A hint only: what it misses, polling finds.

Watches folders and never files: a file that is replaced takes its watch along. An
observer may report that it lives while its emitters are dead or watch what is gone,
so `check` asks them, and the inodes, and starts anew.
"""

import logging
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from threading import Lock

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

# Reading a file, our own reading included, must not wake us.
CHANGES = frozenset({"created", "moved", "deleted", "modified", "closed"})
log = logging.getLogger("reconciler")

Inode = tuple[int, int]


class Hint(FileSystemEventHandler):
    """Wakes whoever waits when something happens in one of the folders."""

    def __init__(
        self,
        folders: Callable[[], Iterable[Path]],
        wake: Callable[[], None],
        observer: Callable[[], BaseObserver] = Observer,
    ) -> None:
        self._folders, self._wake, self._make = folders, wake, observer
        self._observer: BaseObserver | None = None
        self._watched: dict[Path, Inode] = {}
        self._lock = Lock()
        self.trouble = ""  # why only polling finds changes; empty while events come

    def dispatch(self, event: FileSystemEvent) -> None:
        if event.event_type in CHANGES:
            self._wake()

    def check(self) -> bool:
        """Watch what there is to watch now; True if that had to be set up anew."""
        with self._lock:
            wanted = {folder: inode for folder in self._folders() if (inode := inode_of(folder))}
            if self._lives() and wanted == self._watched:
                return False
            self._stop()
            self._start(wanted)
            return True

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _lives(self) -> bool:
        observer = self._observer
        return (
            observer is not None
            and observer.is_alive()
            and len(observer.emitters) == len(self._watched)
            and all(emitter.is_alive() for emitter in observer.emitters)
        )

    def _start(self, wanted: dict[Path, Inode]) -> None:
        observer = self._make()
        observer.daemon = True
        self._observer = observer
        try:
            for folder in wanted:
                observer.schedule(self, str(folder), recursive=False)
            observer.start()
        except OSError as error:
            self._stop()
            self._say(f"no file events ({error.strerror or error}): changes are found by polling")
            return
        # What was replaced while the watch was set up is another one than what is watched.
        self._watched = {folder: inode for folder, inode in wanted.items() if inode_of(folder)}
        self._say("")

    def _stop(self) -> None:
        observer, self._observer, self._watched = self._observer, None, {}
        if observer is None:
            return
        with suppress(RuntimeError, OSError):
            observer.unschedule_all()
        if observer.is_alive():
            observer.stop()
            observer.join()

    def _say(self, trouble: str) -> None:
        if trouble and trouble != self.trouble:
            log.warning("%s", trouble)
        self.trouble = trouble


def inode_of(folder: Path) -> Inode | None:
    """Which folder that name is now; None when it is none."""
    try:
        found = os.stat(folder)  # noqa: PTH116 -- a loop may be in the path
    except OSError:
        return None
    return (found.st_dev, found.st_ino)
