"""A service manager's socket, for tests of what daemons tell it."""

import socket
from pathlib import Path
from types import TracebackType
from typing import Self


class Listener:
    """At a path, or with an @ at a name in the abstract space. Keeps what it heard."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.all: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        if address.startswith("/"):
            Path(address).chmod(0o777)  # as systemd's: daemons of all users speak to it
        self._socket.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()
        if self.address.startswith("/"):
            Path(self.address).unlink(missing_ok=True)

    def heard(self) -> list[str]:
        """The messages since the last time."""
        messages = []
        while True:
            try:
                messages.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                self.all += messages
                return messages

    def has_heard(self, message: str) -> bool:
        self.heard()
        return any(message in one for one in self.all)
