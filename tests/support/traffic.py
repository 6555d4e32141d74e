"""What clients do, from inside a namespace: HTTP and UDP over sockets that a test can keep open.

Nothing here retries: a request that fails is a failure.
"""

import contextlib
import http.client
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tests.support.namespace import Namespace
from tests.support.wait import PATIENCE

_PATIENCE = 10.0 * PATIENCE
_UNACKED = 24  # where it is in struct tcp_info
_IP_MTU, _IPV6_MTU = 14, 24  # <linux/in.h>, <linux/in6.h>
_WINDOW = 16  # UDP probes under way at once


@dataclass(frozen=True, slots=True)
class Answer:
    backend: str
    body: bytes


class Connection:
    """One HTTP connection, open until closed."""

    def __init__(
        self,
        place: Namespace,
        address: str,
        port: int,
        *,
        source: str = "",
        source_port: int = 0,
        patience: float = _PATIENCE,
    ) -> None:
        self.socket = place.socket(_family(address))
        self.socket.settimeout(patience)
        try:
            if source or source_port:
                self.socket.bind((source, source_port))
            self.socket.connect((address, port))
        except OSError:
            self.socket.close()
            raise
        self._http = http.client.HTTPConnection(address, port)
        self._http.sock = self.socket

    def get(self, path: str = "/") -> Answer:
        return self._ask("GET", path)

    def post(self, body: bytes) -> Answer:
        return self._ask("POST", "/", body)

    def _ask(self, method: str, path: str, body: bytes | None = None) -> Answer:
        self.send(method, path, body)
        return self.receive()

    def send(self, method: str = "GET", path: str = "/", body: bytes | None = None) -> None:
        """A request whose answer is left for later."""
        self._http.request(method, path, body)

    def receive(self) -> Answer:
        response = self._http.getresponse()
        return Answer(response.getheader("X-Backend", "nobody"), response.read())

    @property
    def delivered(self) -> bool:
        """The other end's kernel has said that it has all that was sent."""
        info = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED + 4)
        return not int.from_bytes(info[_UNACKED:], sys.byteorder)

    @property
    def path_mtu(self) -> int:
        """What the client's kernel believes the largest packet on the way to be."""
        if self.socket.family == socket.AF_INET6:
            return self.socket.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)
        return self.socket.getsockopt(socket.IPPROTO_IP, _IP_MTU)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def backends_of(
    place: Namespace, address: str, port: int, source_ports: Iterable[int]
) -> list[str]:
    """Which backend answers to each source port, on connections that are all open at once."""
    with contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(Connection(place, address, port, source_port=source_port))
            for source_port in source_ports
        ]
        return [connection.get().backend for connection in connections]


class Datagrams:
    """One port that sends a datagram and waits for its echo, again and again."""

    def __init__(
        self,
        place: Namespace,
        address: str,
        port: int,
        *,
        source: str = "",
        patience: float = _PATIENCE,
    ) -> None:
        self.socket = place.socket(_family(address), socket.SOCK_DGRAM)
        self.socket.settimeout(patience)
        if source:
            self.socket.bind((source, 0))
        self.socket.connect((address, port))

    def get(self, path: str) -> Answer:
        return self.echo(path.encode())

    def echo(self, data: bytes) -> Answer:
        self.socket.send(data)
        backend, _, body = self.socket.recv(65535).partition(b" ")
        return Answer(backend.decode(), body)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.socket.close()


def udp_echo(place: Namespace, address: str, port: int, data: bytes) -> Answer:
    """The echo of one datagram from a new port."""
    with Datagrams(place, address, port) as datagrams:
        return datagrams.echo(data)


class Load:
    """HTTP requests, each on a connection of its own, and UDP probes, from a thread each until stopped.

    With a rest after each, in seconds, it leaves processors to those whom it waits for.
    """

    def __init__(self, place: Namespace, address: str, port: int, rest: float = 0) -> None:
        self._place, self._address, self._port = place, address, port
        self._rest = rest
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=t) for t in (self._request, self._probe)]
        self.answered: Counter[str] = Counter()
        self.failures: list[str] = []
        self.probes = 0
        self.echoes = 0

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def lost(self) -> int:
        return len(self.failures) + self.probes - self.echoes

    @property
    def requests(self) -> int:
        return self.answered.total()

    def _request(self) -> None:
        while not self._stop.wait(self._rest):
            try:
                with Connection(self._place, self._address, self._port) as connection:
                    self.answered[connection.get("/bytes/4000").backend] += 1
            except OSError as error:
                self.failures.append(repr(error))

    def _probe(self) -> None:
        """A new flow for each window of probes, so that nothing rests on one flow's entry alone."""
        while not self._stop.wait(self._rest):
            with self._place.socket(_family(self._address), socket.SOCK_DGRAM) as udp:
                udp.settimeout(2)
                udp.connect((self._address, self._port))
                for number in range(_WINDOW):
                    udp.send(b"probe %d" % number)
                    self.probes += 1
                self._collect(udp)

    def _collect(self, udp: socket.socket) -> None:
        try:
            for _ in range(_WINDOW):
                udp.recv(2048)
                self.echoes += 1
        except OSError as error:
            self.failures.append(f"UDP: {error!r}")


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
