"""Where verdicts are kept, as seen by whoever reaches them: by backend id, and nothing about the kernel."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

from healthcheck.health import FULL, State


class Verdict(NamedTuple):
    """What one entry of the map says."""

    state: State
    ramp: int = FULL  # how much of its share a backend has that came back, of 255


class VerdictsError(Exception):
    """The map cannot be read or written: what, where and what to do."""


class Verdicts(Protocol):
    def read(self) -> dict[int, Verdict]:
        """What the map says, by backend id: of those too that it has no verdict on any more."""

    def write(self, verdicts: Iterable[tuple[int, Verdict]]) -> None:
        """All in one batch."""

    def close(self) -> None: ...


# The map at this path, provided that it is this instance's; else VerdictsError.
Opener = Callable[[Path, str], Verdicts]
