"""What the service manager hears of a daemon: sd_notify(3)'s lines over the socket that it names. Decides nothing.

Whether there is anything to say, and when, is for the loops that call this; no thread here says "alive" for a loop
that hangs. Without $NOTIFY_SOCKET nobody listens and every call does nothing. A manager that cannot be told is no
reason to stop forwarding: what cannot be sent is dropped.
"""

import os
import socket
import time
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from typing import Self

PATIENCE = 30.0  # seconds that a start may take on from its last sign of work
OFTEN = 1.0  # between two such signs
FULL = 1.0  # seconds for a manager that does not read what it is told

Send = Callable[[str], None]


class ServiceManager:
    """Whoever started us, as far as it wants to know. `send` takes one message, `watchdog` is in seconds."""

    def __init__(
        self,
        send: Send | None = None,
        watchdog: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send, self._clock = send or _dropped, clock
        self._half = watchdog / 2
        self._pinged = self._extended = -float("inf")
        self._said = ""
        self._is_ready = False
        self._reloads = 0  # asked for and not answered

    @classmethod
    def of(cls, environment: MutableMapping[str, str] = os.environ) -> Self:
        """The one that the environment names. Taken out of it: children are not ours to speak for."""
        address = environment.pop("NOTIFY_SOCKET", "")
        period = environment.pop("WATCHDOG_USEC", "")
        meant = environment.pop("WATCHDOG_PID", "") or str(os.getpid())
        watched = bool(address) and period.isdecimal() and meant == str(os.getpid())
        return cls(sender(address), int(period) / 1e6 if watched else 0.0)

    @property
    def pace(self) -> float:
        """Seconds within which `alive` wants to be called again."""
        return self._half / 2 if self._half else float("inf")

    @property
    def reloads(self) -> int:
        """How many reloads wait for their `ready`: note it before looking, and give it back then."""
        return self._reloads

    def alive(self) -> None:
        """A turn of the loop is over. Sent at half of the watchdog's time."""
        now = self._clock()
        if self._half and now - self._pinged >= self._half:
            self._pinged = now
            self._send("WATCHDOG=1")

    def working(self, patience: float = PATIENCE) -> None:
        """A step of something long is done: the start may take longer, as long as such steps go on.

        `patience` is for the next step. A manager that was told of more already keeps to that.
        """
        self.alive()
        now = self._clock()
        if not self._is_ready and now - self._extended >= OFTEN:
            self._extended = now
            self._send(f"EXTEND_TIMEOUT_USEC={round(patience * 1e6)}")

    def status(self, text: str) -> None:
        """For people who ask how we are; sent when it is news."""
        line = " ".join(text.split())
        if line != self._said:
            self._said = line
            self._send(f"STATUS={line}")

    def ready(self, text: str, reloads: int = 0) -> None:
        """The first convergence, or that after as many reloads; once for each."""
        self.status(text)
        if not self._is_ready or reloads:
            self._is_ready = True
            self._reloads -= reloads
            if not self._reloads:
                self._send("READY=1")

    def reloading(self) -> None:
        """Told to look anew. Also from a signal handler: one datagram, no lock."""
        if not self._is_ready:
            return  # the first `ready` answers this too
        self._reloads += 1
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, text: str) -> None:
        self._send(f"STOPPING=1\nSTATUS={text}")


def sender(address: str) -> Send | None:
    """To a path, or with an @ to a name in the abstract space; None when there is nobody."""
    if not address.startswith(("/", "@")):
        return None  # vsock, which is for virtual machines, is not spoken here
    where = "\0" + address[1:] if address.startswith("@") else address

    def send(message: str) -> None:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.settimeout(FULL)
            channel.sendto(message.encode(errors="replace"), where)

    return send


def _dropped(_message: str) -> None:
    """Nobody listens."""
