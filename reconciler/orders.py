"""What the commands of the control socket do, in the loop's thread. Writes files, never a map.

An order only changes what the next pass starts from. The pass follows at once, and
the answer after it: whoever ordered learns what it came to.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from reconciler import overrides, suspension
from reconciler.control import Document, Refused, Request
from reconciler.overrides import Forced, Override, Unusable
from reconciler.overriding import OverrideFile
from reconciler.problems import did_you_mean
from reconciler.suspension import Suspension

Backends = Callable[[], Iterable[tuple[str, str]]]


class Orders:
    """`backends` are those that are configured now."""

    def __init__(
        self,
        state_dir: Path,
        backends: Backends,
        hurry: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._state_dir, self._backends = state_dir, backends
        self._hurry, self._clock = hurry, clock
        self._file = OverrideFile(state_dir)
        self._known: dict[str, Callable[[Request], Document]] = {
            "override": self._override,
            "clear": self._clear,
            "suspend": self._suspend,
            "resume": self._resume,
            "sync": self._sync,
        }

    def carry_out(self, request: Request) -> Document:
        """Refused says why it was not."""
        if request.command not in self._known:
            raise Refused(
                f"unknown command {request.command!r}. {did_you_mean(request.command, self._known)}"
            )
        try:
            return self._known[request.command](request)
        except (Unusable, OSError) as error:
            raise Refused(str(error)) from error

    def _override(self, request: Request) -> Document:
        now = self._clock()
        pool, _, backend = request.text("backend").partition("/")
        try:
            state = Forced(request.text("state"))
        except ValueError:
            raise Refused(f"override: state {request.text('state')!r}: up or down") from None
        until = now + request.number("seconds")
        made = Override(pool, backend, state, request.text("reason"), request.by, now, until)
        set_override(self._file, made, self._backends())
        return {"override": overrides.document((made,))["overrides"][0]}

    def _clear(self, request: Request) -> Document:
        return {"cleared": clear_override(self._file, request.text("backend"))}

    def _suspend(self, request: Request) -> Document:
        now = self._clock()
        seconds = request.number("seconds")
        if not 0 < seconds <= suspension.LONGEST:
            raise Refused(
                f"suspend: for {seconds:g} s: more than 0, at most {suspension.LONGEST:g} s"
            )
        found = Suspension(request.text("reason"), now, now + seconds, request.by)
        suspension.write(self._state_dir, found)
        return {"until": found.until}

    def _resume(self, _: Request) -> Document:
        return {"was_suspended": suspension.clear(self._state_dir)}

    def _sync(self, _: Request) -> Document:
        self._hurry()
        return {}


def set_override(file: OverrideFile, made: Override, known: Iterable[tuple[str, str]]) -> None:
    """Unusable, with the nearest name, when there is no such backend."""
    configured = list(known)
    if (made.pool, made.backend) not in set(configured):
        hint = did_you_mean(made.name, (f"{pool}/{name}" for pool, name in configured))
        raise Unusable(f"override {made.name}: no such backend is configured. {hint}".rstrip())
    overrides.checked(made)
    file.change(lambda before: overrides.with_one(overrides.in_force(before, made.since), made))


def clear_override(file: OverrideFile, name: str) -> bool:
    """Whether there was one; `name` may be `all`."""
    had: list[bool] = []

    def cleared(before: overrides.Overrides) -> overrides.Overrides:
        after = () if name == "all" else overrides.without(before, name)
        had.append(after != before)
        return after

    file.change(cleared)
    return had[0]
