"""Waiting for something that can be asked. A test never sleeps and hopes: it says what it waits for."""

import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_FIRST_PAUSE = 0.002
_LONGEST_PAUSE = 0.05
PATIENCE = float(
    os.environ.get("PATIENCE", "1")
)  # how much slower this machine is: an emulated one is


def until(
    condition: Callable[[], T], timeout: float = 10, *, what: str = "", interval: float = 0
) -> T:
    """What `condition` returns once that is true; TimeoutError naming `what` if it never is.

    `interval` asks at that pace instead of a quickly slackening one, for conditions that cost.
    """
    deadline = time.monotonic() + timeout * PATIENCE
    pause = interval or _FIRST_PAUSE
    nobody = threading.Event()
    while not (answer := condition()):
        if time.monotonic() >= deadline:
            raise TimeoutError(f"{what or _name(condition)}: not within {timeout:g} s")
        nobody.wait(min(pause, max(deadline - time.monotonic(), 0)))
        pause = interval or min(pause * 1.5, _LONGEST_PAUSE)
    return answer


def _name(condition: Callable[[], object]) -> str:
    return getattr(condition, "__qualname__", repr(condition))
