"""Probing over raw non-blocking sockets. Knows no time: whoever waits says when patience has run out.

A probe ends with a reset instead of a close. So a tcp check is SYN, SYN-ACK, RST: the application behind the port
never sees a connection, and neither side keeps one in TIME-WAIT, which would use up our own ports.
What goes wrong on our side of the wire (no descriptor, no port, no route) is not the backend's fault and is never
counted as a failure of it.
"""

import errno
import os
import socket
import struct

# The C type itself: socket.socket's constructor costs as much as the system call in it.
from _socket import socket as Socket  # noqa: N812
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from select import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP
from typing import Protocol

from healthcheck.exchange import Exchange, Reason, Result, failed
from healthcheck.health import Outcome

CONNECTED = Result(Outcome.PASS, Reason.CONNECTED)
OVER = EPOLLERR | EPOLLHUP

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_WINDOW = 4096  # bytes read at once; a healthy answer's headers fit

# What the network and the backend can do to a probe. Every other errno is about ourselves.
_FAULTS = {
    errno.ECONNREFUSED: Reason.REFUSED,
    errno.ECONNRESET: Reason.RESET,
    errno.ECONNABORTED: Reason.RESET,
    errno.EPIPE: Reason.RESET,
    errno.ENOTCONN: Reason.RESET,  # gone before we could ask whom we had reached
    errno.EPROTO: Reason.RESET,
    errno.EHOSTUNREACH: Reason.UNREACHABLE,
    errno.EHOSTDOWN: Reason.UNREACHABLE,
    errno.ENOPROTOOPT: Reason.UNREACHABLE,  # ICMP: protocol unreachable
    errno.ETIMEDOUT: Reason.CONNECT_TIMEOUT,
}
# On the wire "network unreachable" is a router's word; from connect() itself it is our own routing table's.
_FAULTS_ON_THE_WIRE = {**_FAULTS, errno.ENETUNREACH: Reason.UNREACHABLE}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to connect, in the form that the kernel takes."""

    family: int
    sockaddr: tuple[str, int] | tuple[str, int, int, int]
    may_be_ourselves: bool  # a port of ours could connect to itself, where nothing listens


def endpoint(address: str, port: int) -> Endpoint:
    parsed = ip_address(address)
    risky = port >= lowest_own_port()
    if isinstance(parsed, IPv6Address):
        return Endpoint(socket.AF_INET6, (str(parsed), port, 0, 0), risky)
    return Endpoint(socket.AF_INET, (str(parsed), port), risky)


def lowest_own_port() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split()[0])
    except OSError:
        return 1  # not known: take every port for one


def own_trouble(error: int, what: str) -> Result:
    return Result(Outcome.NEUTRAL, Reason.OWN_TROUBLE, f"{what}: {os.strerror(error)}")


class Attempt(Protocol):
    """A probe under way. Whoever waits for it registers `fd` for `events`, once."""

    fd: int
    events: int

    def ready(self, events: int) -> Result | None:
        """Go on as far as the socket allows; the result when there is one."""

    def overdue(self) -> Result:
        """What it means that there is no result by now."""

    def close(self) -> None: ...


class Connection:
    """An attempt over TCP, from SYN to verdict."""

    __slots__ = ("_connected", "_endpoint", "_exchange", "_socket", "events", "fd")

    def __init__(self, sock: Socket, where: Endpoint, exchange: Exchange | None) -> None:
        self._socket = sock
        self._endpoint = where
        self._exchange = exchange
        self._connected = False
        self.fd = sock.fileno()
        # Edges, registered once: never touched again until the socket is closed.
        self.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET if exchange else EPOLLOUT

    def ready(self, events: int) -> Result | None:
        try:
            if not self._connected:
                if result := self._connect(events):
                    return result
                self._connected = True
            return self._talk()
        except BlockingIOError:
            return None
        except OSError as error:
            return _fault(error.errno or 0, _FAULTS_ON_THE_WIRE, "talking")

    def overdue(self) -> Result:
        if self._exchange and self._connected:
            return failed(Reason.ANSWER_TIMEOUT, self._exchange.progress())
        return failed(Reason.CONNECT_TIMEOUT, "nothing came back")

    def close(self) -> None:
        self._socket.close()

    def _connect(self, events: int) -> Result | None:
        if events & OVER and (error := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
            return _fault(error, _FAULTS_ON_THE_WIRE, "connecting")
        if self._endpoint.may_be_ourselves and self._is_ourselves():
            return failed(Reason.REFUSED, "nothing listens: the connection met itself")
        return None if self._exchange else CONNECTED

    def _is_ourselves(self) -> bool:
        return bool(self._socket.getsockname() == self._socket.getpeername())

    def _talk(self) -> Result | None:
        exchange = self._exchange
        if exchange is None:
            raise AssertionError("a connection without an exchange ends when it opens")
        if exchange.request:
            sent = self._socket.send(exchange.request)
            exchange.request = exchange.request[sent:]
        while not (result := exchange.receive(self._socket.recv(_WINDOW))):
            pass
        return result


Probe = Callable[[], Attempt | Result]


def begin(where: Endpoint, exchange: Exchange | None = None) -> Attempt | Result:
    """An attempt under way, or why there is none."""
    try:
        sock = Socket(where.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as error:
        return own_trouble(error.errno or 0, "socket")
    try:
        # The answer's ACK waits for our data or our reset: a packet less, and no connection for the application.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        error_number = sock.connect_ex(where.sockaddr)
    except OSError as error:
        error_number = error.errno or errno.EINVAL
    if error_number in (0, errno.EINPROGRESS):
        return Connection(sock, where, exchange)
    sock.close()
    return _fault(error_number, _FAULTS, "connect")


def _fault(error: int, faults: dict[int, Reason], what: str) -> Result:
    reason = faults.get(error)
    return failed(reason, os.strerror(error)) if reason else own_trouble(error, what)
