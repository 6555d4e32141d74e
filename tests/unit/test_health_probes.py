"""Probes of real servers on loopback, of which most misbehave."""

import errno
import socket
import struct
import threading

import pytest

from healthcheck import endpoint, probes
from healthcheck.exchange import WINDOW, Reason, Result
from healthcheck.health import Outcome
from healthcheck.web import Asking, Expected, Http
from tests.support.health import LOOPBACK, Serve, closed_port, probe, serving, silent_port, subject

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
PATIENCE = {"timeout": 0.3}


def request_of(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := connection.recv(4096)):
            break
        data += more
    return data


def answering(answer: bytes) -> Serve:
    def serve(connection: socket.socket) -> None:
        request_of(connection)
        connection.sendall(answer)
        connection.recv(1)  # until the probe is over

    return serve


def never(connection: socket.socket) -> None:
    """Accepts, reads, and never answers."""
    while connection.recv(4096):
        pass


def drip(connection: socket.socket) -> None:
    pace = threading.Event()
    for byte in OK * 100:
        connection.send(bytes([byte]))
        pace.wait(0.02)


def endless_headers(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"X-More: and more\r\n" * 100)


def endless_body(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(bytes(65536))


def closes(_connection: socket.socket) -> None:
    """Accepts and closes."""


def closes_half_way(connection: socket.socket) -> None:
    request_of(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Cut: of")


def resets(connection: socket.socket) -> None:
    connection.recv(4096)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize(
    ("serve", "reason", "detail"),
    [
        (answering(OK), Reason.ANSWERED, "status 200"),
        (answering(b"HTTP/1.0 301 Away\nLocation: /\n\n"), Reason.ANSWERED, "status 301"),
        (answering(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK), Reason.ANSWERED, "status 200"),
        (answering(b"HTTP/1.1 503\r\n\r\n"), Reason.WRONG_STATUS, "status 503, expected 200-399"),
        (answering(b"<html>0.9</html>"), Reason.BAD_ANSWER, "not HTTP/1: '<html>0.9</html>'"),
        (answering(b"SSH-2.0-x\r\n"), Reason.BAD_ANSWER, r"not HTTP/1: 'SSH-2.0-x\r\n'"),
        (answering(b"HTTP/1.1 2000 OK\r\n\r\n"), Reason.BAD_ANSWER, "no status line"),
        (endless_body, Reason.ANSWERED, "status 200"),
        (endless_headers, Reason.TOO_LARGE, f"headers go on after {WINDOW} bytes"),
        (never, Reason.ANSWER_TIMEOUT, "no answer to the request"),
        (drip, Reason.ANSWER_TIMEOUT, "headers incomplete after "),
        (closes_half_way, Reason.CLOSED_EARLY, "headers incomplete after 26 bytes"),
        (resets, Reason.RESET, "Connection reset by peer"),
    ],
)
def test_http_finds(serve: Serve, reason: Reason, detail: str) -> None:
    with serving(serve) as port:
        result = probe(subject(port, kind="http", **PATIENCE))
    assert result.reason == reason
    assert result.detail.startswith(detail)
    assert (result.outcome is Outcome.PASS) == (reason is Reason.ANSWERED)


def test_http_finds_a_server_that_closes_at_once() -> None:
    """Whether it reads as an end or as a reset depends on when our request arrives."""
    with serving(closes) as port:
        result = probe(subject(port, kind="http", **PATIENCE))
    assert result.outcome is Outcome.FAIL
    assert result.reason in {Reason.CLOSED_EARLY, Reason.RESET}


@pytest.mark.parametrize("kind", ["tcp", "http"])
def test_a_closed_port_is_refused(kind: str) -> None:
    result = probe(subject(closed_port(), kind=kind))
    assert (result.outcome, result.reason) == (Outcome.FAIL, Reason.REFUSED)


@pytest.mark.parametrize("kind", ["tcp", "http"])
def test_a_port_that_answers_nothing_times_out_connecting(kind: str) -> None:
    with silent_port() as port:
        result = probe(subject(port, kind=kind, **PATIENCE))
    assert (result.outcome, result.reason) == (Outcome.FAIL, Reason.CONNECT_TIMEOUT)


@pytest.mark.parametrize("serve", [never, closes])
def test_tcp_asks_for_nothing_but_a_connection(serve: Serve) -> None:
    with serving(serve) as port:
        assert probe(subject(port)) == Result(Outcome.PASS, Reason.CONNECTED)


def test_both_work_over_ipv6() -> None:
    with serving(answering(OK), socket.AF_INET6) as port:
        assert probe(subject(port, address="::1")).outcome is Outcome.PASS
        assert probe(subject(port, address="::1", kind="http")).outcome is Outcome.PASS


def test_a_tcp_check_leaves_nothing_to_accept() -> None:
    """SYN, SYN-ACK, RST: the application never hears of it."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        listener.listen()
        listener.setblocking(False)
        for _ in range(20):
            assert probe(subject(listener.getsockname()[1])).outcome is Outcome.PASS
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_what_is_asked_for() -> None:
    asked: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        asked.append(request_of(connection))
        connection.sendall(OK)

    where = {"kind": "http", "path": "/healthz?full=1", "host": "www.example"}
    with serving(serve) as port:
        assert probe(subject(port, **where, expect=[[200, 200]])).outcome is Outcome.PASS
        assert probe(subject(port, kind="http")).outcome is Outcome.PASS
    assert asked[0].startswith(b"GET /healthz?full=1 HTTP/1.1\r\nHost: www.example\r\n")
    assert asked[1].startswith(b"GET / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % port)
    assert b"\r\nConnection: close\r\n" in asked[0]


def test_expected_statuses_are_inclusive_ranges() -> None:
    for status, expected in ((199, False), (200, True), (204, True), (205, False), (401, True)):
        exchange = Http(Asking(b"", Expected(status=((200, 204), (401, 401)))))
        result = exchange.receive(b"HTTP/1.1 %d X\r\n\r\n" % status)
        assert (result is not None and result.outcome is Outcome.PASS) == expected


def test_an_answer_heard_before_means_the_same_to_whoever_asks_alike_and_to_nobody_else() -> None:
    answer = b"HTTP/1.1 200 OK\r\nX-Role: leader\r\nContent-Length: 5\r\n\r\nready"
    asking = Asking(b"GET", keep=True)
    first, again = asking(), asking()
    assert first.receive(answer) is again.receive(answer)
    assert (first.again(), again.again()) == (True, True), "both connections can be kept"
    for expected in (Expected(status=((204, 204),)), Expected(body=b"steady")):
        result = Asking(b"GET", expected, keep=True)().receive(answer)
        assert result is not None
        assert result.outcome is Outcome.FAIL
    assert Asking(b"GET")().again() is False
    cut = asking()
    assert cut.receive(answer[:-1]) is None, "the beginning of it is another answer"
    assert cut.receive(answer[-1:]) == again.receive(answer)


@pytest.fixture
def ourselves() -> int:
    """A port on which nothing listens but the probe itself."""
    return closed_port()


def test_a_connection_that_meets_itself_proves_nothing(
    ourselves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bound(probes.Socket):
        def connect_ex(self, address: object, /) -> int:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.bind((LOOPBACK, ourselves))
            return super().connect_ex(address)  # type: ignore[arg-type]

    monkeypatch.setattr(probes, "Socket", Bound)
    monkeypatch.setattr(endpoint, "lowest_own_port", lambda: ourselves)
    result = probe(subject(ourselves))
    assert result.reason is Reason.REFUSED
    assert result.detail == "nothing listens: the connection met itself"


@pytest.mark.parametrize(
    "error",
    [
        *(errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL),
        *(errno.ENETUNREACH, errno.ENETDOWN, errno.EACCES, errno.EPERM, errno.EAGAIN, errno.EINVAL),
    ],
)
def test_what_our_own_side_lacks_is_not_held_against_a_backend(
    error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(probes.Socket):
        def connect_ex(self, _address: object, /) -> int:
            return error

    monkeypatch.setattr(probes, "Socket", Refusing)
    result = probe(subject(80))
    assert (result.outcome, result.reason) == (Outcome.NEUTRAL, Reason.OWN_TROUBLE)
    assert result.detail.startswith("connect: ")


@pytest.mark.parametrize("error", [errno.EHOSTUNREACH, errno.EHOSTDOWN])
def test_a_host_that_the_network_does_not_reach_is(
    error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unreached(probes.Socket):
        def connect_ex(self, _address: object, /) -> int:
            return error

    monkeypatch.setattr(probes, "Socket", Unreached)
    assert probe(subject(80)).reason is Reason.UNREACHABLE
