"""Probing over raw non-blocking sockets. Knows no time: whoever waits says when patience has run out.

A probe ends with a reset instead of a close. So a tcp check is SYN, SYN-ACK, RST: the application behind the port
never sees a connection, and neither side keeps one in TIME-WAIT, which would use up our own ports.
What goes wrong on our side of the wire (no descriptor, no port, no route, no carrier) is not the backend's fault and
is never counted as a failure of it.
"""

import errno
import os
import socket
import struct

# The C type itself: socket.socket's constructor costs as much as the system call in it.
from _socket import socket as Socket  # noqa: N812
from collections.abc import Callable
from select import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP
from typing import Protocol

from healthcheck import carrier
from healthcheck.endpoint import Endpoint
from healthcheck.exchange import Exchange, Reason, Result, failed
from healthcheck.health import Outcome
from healthcheck.stock import Stock

CONNECTED = Result(Outcome.PASS, Reason.CONNECTED)
OVER = EPOLLERR | EPOLLHUP
# Edges, registered once: never touched again until the socket is closed.
EDGES = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_AT_ONCE = 4096  # bytes read in one go; a healthy answer's headers fit
_TCP = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_UDP = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
NO_PING = "checks by icmp need CAP_NET_RAW, or our group within net.ipv4.ping_group_range"
_RAW = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_DATAGRAM = 65536
_ECHO: dict[int, int] = {
    socket.AF_INET: socket.IPPROTO_ICMP,
    socket.AF_INET6: socket.IPPROTO_ICMPV6,
}

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
_SILENCES = {Reason.UNREACHABLE, Reason.CONNECT_TIMEOUT}

Converse = Callable[[], Exchange]


class Attempt(Protocol):
    """A probe under way. Whoever waits for it registers `fd` for `events`, once, unless that was done before."""

    fd: int
    events: int
    registered: bool

    def ready(self, events: int) -> "Result | Attempt | None":
        """Go on as far as the socket allows; the result when there is one, or the attempt that takes over."""

    def overdue(self) -> Result:
        """What it means that there is no result by now."""

    def close(self) -> None: ...


class Probe(Protocol):
    """One target, to be asked again and again."""

    def __call__(self) -> Attempt | Result:
        """An attempt under way, or why there is none."""

    def close(self) -> None:
        """It will not be asked again."""


def own_trouble(error: int, what: str, said: str = "") -> Result:
    return Result(Outcome.NEUTRAL, Reason.OWN_TROUBLE, f"{what}: {said or os.strerror(error)}")


class Connection:
    """An attempt over TCP, from SYN to verdict."""

    __slots__ = (
        "_connected",
        "_exchange",
        "_kept",
        "_socket",
        "_tcp",
        "events",
        "fd",
        "registered",
    )

    def __init__(
        self, tcp: "Tcp", sock: Socket, exchange: Exchange | None, *, registered: bool
    ) -> None:
        self._tcp = tcp
        self._socket = sock
        self._exchange = exchange
        self._connected = False
        self._kept = False  # from an earlier probe, and nothing was heard since
        self.fd = sock.fileno()
        self.events = EDGES
        self.registered = registered

    def ready(self, events: int) -> Result | Attempt | None:
        """To the result, or until there is nothing more to read. A kept connection that ends without a word has none."""
        exchange = self._exchange
        try:
            if not self._connected:
                doubtful = events & OVER or self._tcp.endpoint.may_be_ourselves
                if doubtful and (result := self._connect()):
                    return result
                self._connected = True
            if exchange is None:
                return CONNECTED
            while True:
                if exchange.request:
                    self._send(exchange)
                data = self._socket.recv(_AT_ONCE)
                if data:
                    self._kept = False
                if result := exchange.receive(data):
                    break
        except BlockingIOError:
            return None
        except OSError as error:
            result = on_the_wire(error.errno or 0, "talking", self._tcp.endpoint)
        return self._tcp.anew(self) if self._kept else result

    def overdue(self) -> Result:
        if self._exchange and self._connected:
            return silence(self._exchange.overdue(), self._tcp.endpoint)
        return silence(failed(Reason.CONNECT_TIMEOUT, "nothing came back"), self._tcp.endpoint)

    def close(self) -> None:
        exchange = self._exchange
        if exchange is not None and self._connected and exchange.again():
            self._tcp.rests(self)
        else:
            self._tcp.done(self._socket)

    def resume(self) -> None:
        """The request, over a connection that stands. OSError: it does not stand any more."""
        self._kept = True
        if self._exchange is not None:
            self._send(self._exchange)

    def discard(self) -> None:
        self._socket.close()

    def _connect(self) -> Result | None:
        """What is wrong with the connection; None: it stands."""
        if error := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return on_the_wire(error, "connecting", self._tcp.endpoint)
        if self._tcp.endpoint.may_be_ourselves and self._is_ourselves():
            return failed(Reason.REFUSED, "nothing listens: the connection met itself")
        return None

    def _is_ourselves(self) -> bool:
        return bool(self._socket.getsockname() == self._socket.getpeername())

    def _send(self, exchange: Exchange) -> None:
        most = self._tcp.endpoint.piece
        while request := exchange.request:
            exchange.request = request[self._socket.send(request[:most]) :]


class Tcp:
    """A target that is asked over TCP: over a new connection each time, or over one that is kept."""

    __slots__ = ("_converse", "_idle", "_keep", "_stock", "_used", "endpoint")

    def __init__(
        self, endpoint: Endpoint, converse: Converse | None, stock: Stock, *, keep: bool = False
    ) -> None:
        self.endpoint = endpoint
        self._converse = converse
        self._stock = stock
        self._used = stock.of(endpoint.family) if endpoint.plain else []
        self._keep = keep
        self._idle: Connection | None = None

    def __call__(self) -> Attempt | Result:
        if idle := self._idle:
            self._idle = None
            try:
                idle.resume()
            except OSError:
                idle.discard()
            else:
                return idle
        return self._begin()

    def overhear(self, wrap: Callable[[Exchange], Exchange]) -> None:
        """From the next attempt on, somebody listens in."""
        if converse := self._converse:
            self._converse = lambda: wrap(converse())

    def anew(self, stale: Connection) -> Attempt | Result:
        """A kept connection has ended, as the other side may do at any time: that says nothing. Ask again."""
        stale.close()
        return self._begin()

    def rests(self, connection: Connection) -> None:
        """Until the next attempt, if connections are kept at all."""
        if self._keep:
            connection.registered = True
            self._idle = connection
        else:
            connection.discard()

    def done(self, sock: Socket) -> None:
        if self.endpoint.plain:
            self._stock.put(sock)
        else:
            sock.close()

    def close(self) -> None:
        self._keep = False
        if self._idle:
            self._idle.discard()
            self._idle = None

    def _begin(self) -> Attempt | Result:
        where = self.endpoint
        sock = self._used.pop() if self._used else None
        fresh = sock is None
        said = ""
        try:
            if sock is None:
                sock = Socket(where.family, _TCP)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                where.prepare(sock)
            # The answer's ACK waits for our data or our reset: a packet less, and no connection for the application.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
            error_number = sock.connect_ex(where.sockaddr)
        except OSError as error:
            if sock is None:
                return own_trouble(error.errno or 0, "socket")
            error_number, said = error.errno or errno.EINVAL, error.strerror or ""
        if error_number in (0, errno.EINPROGRESS):
            exchange = self._converse() if self._converse else None
            return Connection(self, sock, exchange, registered=not fresh)
        sock.close()
        return fault(error_number, _FAULTS, "connect", said)


class Datagrams:
    """An attempt over UDP or ICMP: one datagram out, and the first one back that has a meaning."""

    __slots__ = ("_endpoint", "_exchange", "_socket", "events", "fd", "registered")

    def __init__(self, sock: Socket, exchange: Exchange, endpoint: Endpoint) -> None:
        self._socket = sock
        self._endpoint = endpoint
        self._exchange = exchange
        self.fd = sock.fileno()
        self.events = EPOLLIN | EPOLLET
        self.registered = False
        sock.send(exchange.request)
        exchange.request = b""

    def ready(self, _events: int) -> Result | None:
        try:
            while True:
                if result := self._exchange.receive(self._socket.recv(_DATAGRAM)):
                    return result
        except BlockingIOError:
            return None
        except OSError as error:
            return on_the_wire(error.errno or 0, "talking", self._endpoint)

    def overdue(self) -> Result:
        return silence(self._exchange.overdue(), self._endpoint)

    def close(self) -> None:
        self._socket.close()


class Datagram:
    """A target that is asked over UDP, or over ICMP where `echo` says so."""

    __slots__ = ("_converse", "_echo", "endpoint")

    def __init__(self, endpoint: Endpoint, converse: Converse, *, echo: bool = False) -> None:
        self.endpoint = endpoint
        self._converse = converse
        self._echo = echo

    def __call__(self) -> Attempt | Result:
        try:
            sock = self._socket()
        except OSError as error:
            return own_trouble(error.errno or 0, "socket", error.strerror or "")
        try:
            self.endpoint.prepare(sock)
            sock.connect(self.endpoint.sockaddr)
            return Datagrams(sock, self._converse(), self.endpoint)
        except OSError as error:
            sock.close()
            return fault(error.errno or errno.EINVAL, _FAULTS, "sending", error.strerror or "")

    def overhear(self, wrap: Callable[[Exchange], Exchange]) -> None:
        converse = self._converse
        self._converse = lambda: wrap(converse())

    def close(self) -> None: ...

    def _socket(self) -> Socket:
        family = self.endpoint.family
        if not self._echo:
            return Socket(family, _UDP)
        try:
            return Socket(
                family, _UDP, _ECHO[family]
            )  # a ping socket: needs no privilege, but a sysctl
        except PermissionError:
            return _raw(family)


def _raw(family: int) -> Socket:
    try:
        return Socket(family, _RAW, _ECHO[family])
    except PermissionError:
        raise PermissionError(errno.EPERM, NO_PING) from None


def fault(error: int, faults: dict[int, Reason], what: str, said: str = "") -> Result:
    reason = faults.get(error)
    return failed(reason, os.strerror(error)) if reason else own_trouble(error, what, said)


def on_the_wire(error: int, what: str, where: Endpoint) -> Result:
    result = fault(error, _FAULTS_ON_THE_WIRE, what)
    return silence(result, where) if result.reason in _SILENCES else result


def silence(result: Result, where: Endpoint) -> Result:
    """Nobody was heard. Behind a link of ours that is down that says nothing about a backend."""
    lost = carrier.lost(where)
    if not lost:
        return result
    said = f"not counted while {lost}: {result.reason}"
    return Result(Outcome.NEUTRAL, Reason.OWN_TROUBLE, said)
