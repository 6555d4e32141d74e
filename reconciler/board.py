"""Where the loop puts what others may know, and others find it. The only thing that both threads hold."""

import time

from reconciler.facts import Facts
from reconciler.stating import build
from reconciler.status import Status

SILENCE = 60.0  # seconds: a loop that was not seen for so long hangs


class Board:
    """The last facts; never changed, only replaced."""

    def __init__(self) -> None:
        self.facts: Facts | None = None
        self.seen = time.monotonic()  # when the loop last came by
        self._built: tuple[Facts, Status] | None = None

    def status(self) -> Status | None:
        """Built when somebody asks: few do, and facts come every second."""
        facts = self.facts
        if facts is None:
            return None
        if self._built is None or self._built[0] is not facts:
            self._built = facts, build(facts)
        return self._built[1]

    @property
    def alive(self) -> bool:
        return time.monotonic() - self.seen < SILENCE
