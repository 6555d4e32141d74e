"""Routing netlink in the few words that next hops need: ask, dump, and listen.

For ten thousand backends a general library takes seconds where these take tens of
milliseconds. Nothing is decided here, and an event's content is not looked at: it
only says what to read anew.
"""

import contextlib
import errno
import itertools
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from enum import IntFlag
from types import TracebackType
from typing import Self

NEW_NEIGH, DEL_NEIGH, GET_NEIGH = 28, 29, 30
GET_ROUTE = 26
NLMSG_ERROR, NLMSG_DONE = 2, 3
REQUEST, MULTI, ACK, DUMP, REPLACE, CREATE = 1, 2, 4, 0x300, 0x100, 0x400
# Of links, neighbours, addresses, routes and rules, of both families.
_GROUPS = sum(1 << number - 1 for number in (1, 3, 5, 7, 8, 9, 11, 19))
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_NESTED = 0x3FFF  # an attribute's type without its flags
_SIZE = 1 << 18
_ROOM = 1 << 22  # for events nobody has read yet

Attributes = dict[int, bytes]


class Changed(IntFlag):
    ROUTES = 1  # links, addresses and rules included
    NEIGHBOURS = 2


class Netlink:
    """Asks and waits for the answer, in the network namespace in which it was opened."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._socket.bind((0, 0))
        self._numbers = itertools.count(1)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def ask(self, kind: int, flags: int, body: bytes) -> list[bytes]:
        """The bodies of all answers. OSError with the kernel's number when it refuses."""
        number = next(self._numbers) & 0xFFFFFFFF
        header = _HEADER.pack(_HEADER.size + len(body), kind, flags | REQUEST, number, 0)
        self._socket.send(header + body)
        answers: list[bytes] = []
        while not self._read(number, answers):
            pass
        return answers

    def _read(self, number: int, answers: list[bytes]) -> bool:
        """Whether that was the last of the answers to our question."""
        for kind, flags, sequence, body in _messages(self._socket.recv(_SIZE)):
            if sequence != number:
                continue
            if kind == NLMSG_ERROR and (code := struct.unpack_from("=i", body)[0]):
                raise OSError(-code, os.strerror(-code))
            if kind in (NLMSG_ERROR, NLMSG_DONE):
                return True
            answers.append(body)
            if not flags & MULTI:
                return True
        return False


class Listener:
    """A thread that says what has changed, and then rests for as long as the reader asks."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        with contextlib.suppress(PermissionError):
            self._socket.setsockopt(socket.SOL_SOCKET, 33, _ROOM)  # SO_RCVBUFFORCE
        self._socket.bind((0, _GROUPS))
        self._socket.setblocking(False)
        self._end = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._heard = Changed(0)
        self._lock = threading.Lock()
        self.rest = 0.0  # seconds: many events are one
        self._thread = threading.Thread(target=self._listen, name="netlink", daemon=True)
        self._thread.start()

    def heard(self) -> Changed:
        """What has changed since this was last asked."""
        with self._lock:
            heard, self._heard = self._heard, Changed(0)
        return heard

    def close(self) -> None:
        os.eventfd_write(self._end, 1)
        self._thread.join()
        self._socket.close()
        os.close(self._end)

    def _listen(self) -> None:
        while not self._ended([self._socket], None):
            changed = self._drain()
            if changed:
                with self._lock:
                    self._heard |= changed
                self._wake()
            if self._ended([], self.rest):
                return

    def _ended(self, others: list[socket.socket], patience: float | None) -> bool:
        ready, _, _ = select.select([self._end, *others], [], [], patience)
        return self._end in ready

    def _drain(self) -> Changed:
        changed = Changed(0)
        while True:
            try:
                data = self._socket.recv(_SIZE)
            except BlockingIOError:
                return changed
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                changed |= Changed.ROUTES | Changed.NEIGHBOURS  # some were lost: any
                continue
            for kind, _, _, _ in _messages(data):
                neighbour = kind in (NEW_NEIGH, DEL_NEIGH)
                changed |= Changed.NEIGHBOURS if neighbour else Changed.ROUTES


def attribute(number: int, value: bytes) -> bytes:
    padded = value + bytes(-len(value) % 4)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), number) + padded


def attributes(body: bytes, at: int) -> Attributes:
    """By number; of those that come twice, the last."""
    found: Attributes = {}
    while at + _ATTRIBUTE.size <= len(body):
        length, number = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            break
        found[number & _NESTED] = body[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3
    return found


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, flags, number, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            break
        yield kind, flags, number, data[at + _HEADER.size : at + length]
        at += length + 3 & ~3
