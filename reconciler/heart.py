"""Writes the heartbeat: once a second and at every change, by the loop itself, so that a loop that hangs is seen to.

Renamed into place, so that the script reads a whole one or the one before. What
cannot be written is said once and tried again: forwarding does not wait for it.
"""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from bpf.pins import Pins
from reconciler import heartbeat, published
from reconciler.facts import Facts
from reconciler.heartbeat import Heartbeat

NAME = "heartbeat"
PACE = 0.9  # seconds: the loop turns at least once a second
log = logging.getLogger("reconciler")


def since_boot() -> float:
    """The clock of /proc/uptime: it goes on while the machine sleeps, and never jumps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Heart:
    def __init__(
        self,
        run_dir: Path,
        instance: str,
        interfaces: Iterable[str],
        clock: Callable[[], float] = since_boot,
    ) -> None:
        self._path, self._clock = run_dir / NAME, clock
        self._interfaces = tuple(interfaces)
        home = Pins.of(instance)
        self._pins = (str(home.maps), *(str(home.link(name)) for name in self._interfaces))
        self._due = 0.0
        self._last = ("", "")
        self._said = ""

    def beat(self, facts: Facts | None, *, blind: bool = False) -> None:
        """`blind`: these facts are old, since newer ones could not be read."""
        if facts is None:
            return
        now = self._clock()
        made = heartbeat.of(facts, now, self._pins, self._interfaces)
        if blind:
            made = replace(made, control=heartbeat.BLIND)
        states = made.dataplane, made.control
        if states == self._last and now < self._due:
            return
        self._last, self._due = states, now + PACE
        self._write(made)

    def _write(self, made: Heartbeat) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            published.publish(self._path, made.text())
            self._said = ""
        except OSError as error:
            if self._said != str(error):
                log.error("no heartbeat: %s", error)  # noqa: TRY400
            self._said = str(error)
