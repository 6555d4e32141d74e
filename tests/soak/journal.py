"""What happened, written down by several threads as it happens. Judges nothing: `excuses` does."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable

from tests.soak.excuses import Mishap, Trouble

Until = Callable[[], bool]


def now() -> float:
    return time.monotonic()


class Journal:
    def __init__(self) -> None:
        self.began = now()
        self.mishaps: list[Mishap] = []
        self.complaints: list[tuple[float, str]] = []  # what no client saw, and must not be
        self.done: list[tuple[float, str]] = []
        self.seen: list[tuple[float, str, str]] = []  # in the maps: when, of which pool, what
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._over: list[Trouble] = []
        self._open: list[tuple[Trouble, Until]] = []

    @property
    def troubles(self) -> list[Trouble]:
        with self._lock:
            return [*self._over, *(trouble for trouble, _ in self._open)]

    def did(self, what: str) -> None:
        self.done.append((now(), what))

    def saw(self, pool: str, what: str) -> None:
        self.seen.append((now(), pool, what))

    def begin(self, troubles: Iterable[Trouble], until: Until) -> None:
        """They go on until that is seen to be so: before it is done, whatever it is."""
        with self._lock:
            self._open += [(one, until) for one in troubles]

    def look(self) -> None:
        """End what is over. Called by one thread only."""
        with self._lock:
            waiting = list(self._open)
        over = [pair for pair in waiting if pair[1]()]
        with self._lock:
            self._open = [pair for pair in self._open if pair not in over]
            self._over += [trouble.over(now()) for trouble, _ in over]

    def mishap(self, mishap: Mishap) -> None:
        self.mishaps.append(mishap)

    def complain(self, what: str) -> None:
        self.complaints.append((now(), what))

    def count(self, *what: str) -> None:
        with self._lock:
            self.counts.update(what)
