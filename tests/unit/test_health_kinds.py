"""Every kind of check against real servers on loopback, good ones and others."""

import shutil
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from healthcheck.exchange import WINDOW, Reason, Result
from healthcheck.health import Outcome
from tests.support.certificates import EXPIRED, Certificate, make
from tests.support.health import LOOPBACK, Row, Serve, a_row_of, probe, serving, subject

PATIENCE = {"timeout": 0.3}


def request_of(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := connection.recv(4096)):
            break
        data += more
    return data


def saying(answer: bytes) -> Serve:
    def serve(connection: socket.socket) -> None:
        request_of(connection)
        connection.sendall(answer)
        connection.recv(1)

    return serve


def ok(body: bytes = b"ready", fields: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n%s" % (fields, len(body), body)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


# ---- http


@pytest.mark.parametrize(
    ("answer", "reason", "detail"),
    [
        (ok(), Reason.ANSWERED, "status 200"),
        (ok(b"not yet"), Reason.WRONG_BODY, "without 'ready'"),
        (CHUNKED + b"3\r\nrea\r\n2\r\ndy\r\n0\r\n\r\n", Reason.ANSWERED, "status 200"),
        (CHUNKED + b"5\r\nnever\r\n0\r\n\r\n", Reason.WRONG_BODY, "without 'ready'"),
        (CHUNKED + b"3\r\nready\r\n0\r\n\r\n", Reason.BAD_ANSWER, "chunks that are none"),
        (CHUNKED + b"lies\r\nready", Reason.BAD_ANSWER, "chunks that are none"),
        (CHUNKED + b"ffff\r\nrea", Reason.ANSWER_TIMEOUT, "body incomplete after 9 bytes"),
        (ok(b"x" * 2 * WINDOW), Reason.TOO_LARGE, "expected words not in the first"),
    ],
)
def test_a_body_is_searched(answer: bytes, reason: Reason, detail: str) -> None:
    with serving(saying(answer)) as port:
        result = probe(subject(port, kind="http", expect_body="ready", **PATIENCE))
    assert result.reason == reason
    assert result.detail.startswith(detail)


def test_a_body_that_ends_with_the_connection_and_one_that_ends_too_soon() -> None:
    def until_the_end(connection: socket.socket) -> None:
        request_of(connection)
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nwell, ready")

    def too_soon(connection: socket.socket) -> None:
        request_of(connection)
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 99\r\n\r\nwell, re")

    for serve, reason in ((until_the_end, Reason.ANSWERED), (too_soon, Reason.CLOSED_EARLY)):
        with serving(serve) as port:
            result = probe(subject(port, kind="http", expect_body="ready", **PATIENCE))
        assert result.reason == reason


@pytest.mark.parametrize(
    ("fields", "reason", "detail"),
    [
        (b"server: nginx/1\r\n", Reason.ANSWERED, "status 200"),
        (b"Server: other\r\n", Reason.WRONG_HEADER, "Server without 'nginx'"),
        (b"", Reason.WRONG_HEADER, "no Server"),
    ],
)
def test_headers_are_compared(fields: bytes, reason: Reason, detail: str) -> None:
    with serving(saying(ok(fields=fields))) as port:
        result = probe(subject(port, kind="http", expect_headers={"Server": "nginx"}))
    assert (result.reason, result.detail) == (reason, detail)


def test_a_status_may_say_leave_me_out() -> None:
    with serving(saying(b"HTTP/1.1 503 Later\r\n\r\n")) as port:
        result = probe(subject(port, kind="http", down_at_once=[[503, 503]]))
    assert result.outcome is Outcome.OUT


def test_redirects_are_answers() -> None:
    asked = []

    def serve(connection: socket.socket) -> None:
        asked.append(request_of(connection))
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n")

    with serving(serve) as port:
        assert probe(subject(port, kind="http", expect=[[200, 299]])).reason == Reason.WRONG_STATUS
    assert len(asked) == 1


def test_method_and_headers_are_sent() -> None:
    asked = []

    def serve(connection: socket.socket) -> None:
        asked.append(request_of(connection))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")

    options = {"method": "HEAD", "headers": {"X-Probe": "1", "user-agent": "me"}}
    with serving(serve) as port:
        result = probe(subject(port, kind="http", keep_alive=True, **options))
    assert result.outcome is Outcome.PASS
    assert asked[0].startswith(b"HEAD / HTTP/1.1\r\n")
    assert b"\r\nX-Probe: 1\r\n" in asked[0]
    assert asked[0].lower().count(b"user-agent: ") == 1


# ---- many probes of one target


def a_row(port: int, **changes: object) -> AbstractContextManager[Row]:
    return a_row_of(subject(port, **changes))  # type: ignore[arg-type]


class Counted:
    """Serves requests over connections that stay open, for so many requests each."""

    def __init__(self, answers: int = 1000) -> None:
        self.answers = answers
        self.connections = 0
        self.requests = 0

    def __call__(self, connection: socket.socket) -> None:
        self.connections += 1
        for _ in range(self.answers):
            if not request_of(connection):
                return
            self.requests += 1
            connection.sendall(ok())


def test_a_kept_connection_serves_many_probes() -> None:
    serve = Counted()
    with serving(serve) as port, a_row(port, kind="http", keep_alive=True) as row:
        assert {row.probe().reason for _ in range(5)} == {Reason.ANSWERED}
    assert (serve.connections, serve.requests) == (1, 5)


def test_a_kept_connection_that_has_ended_says_nothing_about_the_backend() -> None:
    serve = Counted(answers=2)
    with serving(serve) as port, a_row(port, kind="http", keep_alive=True) as row:
        assert {row.probe().outcome for _ in range(6)} == {Outcome.PASS}
    assert (serve.connections, serve.requests) == (3, 6)


def test_a_kept_connection_does_not_hide_that_nobody_listens_any_more() -> None:
    with serving(Counted(answers=1)) as port, a_row(port, kind="http", keep_alive=True) as row:
        assert row.probe().outcome is Outcome.PASS
    with a_row(port, kind="http", keep_alive=True) as row:
        assert row.probe().reason is Reason.REFUSED


def test_without_keep_alive_each_probe_connects() -> None:
    serve = Counted()
    with serving(serve) as port, a_row(port, kind="http") as row:
        assert {row.probe().outcome for _ in range(5)} == {Outcome.PASS}
    assert serve.connections == 5


@pytest.mark.parametrize("kind", ["tcp", "http"])
def test_a_socket_used_again_carries_nothing_over(kind: str) -> None:
    """Good, refused, good, silent: whatever the last probe met, the next finds what is there."""
    with serving(Counted()) as good, a_row(good, kind=kind) as row, socket.socket() as closed:
        closed.bind((LOOPBACK, 0))
        bad = subject(closed.getsockname()[1], kind=kind).probe(row.begin._stock)  # type: ignore[attr-defined]
        for _ in range(20):
            row.begin, other = bad, row.begin
            assert row.probe().reason is Reason.REFUSED
            row.begin = other
            assert row.probe().outcome is Outcome.PASS


def test_sockets_used_again_leave_no_time_wait_and_take_no_ports() -> None:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        listener.listen()
        port = listener.getsockname()[1]
        with a_row(port) as row:
            assert {row.probe().outcome for _ in range(500)} == {Outcome.PASS}
        waiting = [
            line
            for line in Path("/proc/net/tcp").read_text().splitlines()
            if f":{port:04X} 06" in line
        ]
    assert waiting == []


# ---- tcp with words, udp, dns, icmp


@pytest.mark.parametrize(
    ("greeting", "reason"),
    [
        (b"+PONG\r\n", Reason.ANSWERED),
        (b"-ERR\r\n", Reason.WRONG_ANSWER),
        (b"", Reason.CLOSED_EARLY),
        (b"x" * WINDOW, Reason.TOO_LARGE),
    ],
)
def test_tcp_with_words(greeting: bytes, reason: Reason) -> None:
    def serve(connection: socket.socket) -> None:
        assert connection.recv(100) == b"PING\r\n"
        connection.sendall(greeting)

    with serving(serve) as port:
        assert probe(subject(port, send="PING\r\n", receive="+PONG")).reason is reason


@contextmanager
def answering(answer: Callable[[bytes], bytes | None]) -> Iterator[int]:
    """A UDP server."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((LOOPBACK, 0))
        port = server.getsockname()[1]

        def serve() -> None:
            while (asked := server.recvfrom(4096))[0] != b"end":
                if told := answer(asked[0]):
                    server.sendto(told, asked[1])

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield port
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
                end.sendto(b"end", (LOOPBACK, port))
            thread.join(10)


def test_udp() -> None:
    with answering(lambda asked: b"pong" if asked == b"ping" else None) as port:
        assert probe(subject(port, kind="udp", send="ping", receive="on")).reason is Reason.ANSWERED
        wrong = probe(subject(port, kind="udp", send="ping", receive="off", **PATIENCE))
        assert wrong.reason is Reason.WRONG_ANSWER
        silent = probe(subject(port, kind="udp", send="hello", **PATIENCE))
        assert silent.reason is Reason.ANSWER_TIMEOUT
    assert probe(subject(port, kind="udp", send="ping")).reason is Reason.REFUSED


def dns_answer(asked: bytes, code: int = 0, address: str = "192.0.2.1", number: int = 0) -> bytes:
    head = struct.pack(
        "!HHHHHH", (struct.unpack("!H", asked[:2])[0] + number), 0x8180 | code, 1, 1, 0, 0
    )
    record = struct.pack("!HHHIH", 0xC00C, 1, 1, 60, 4) + socket.inet_aton(address)
    return head + asked[12:] + record


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (dns_answer, Reason.ANSWERED),
        (lambda asked: dns_answer(asked, address="192.0.2.2"), Reason.WRONG_ANSWER),
        (lambda asked: dns_answer(asked, code=3), Reason.WRONG_ANSWER),
        (lambda asked: dns_answer(asked)[:-3], Reason.BAD_ANSWER),
        (lambda asked: b"?", Reason.BAD_ANSWER),
        (lambda asked: dns_answer(asked, number=1), Reason.ANSWER_TIMEOUT),
    ],
)
def test_dns(answer: Callable[[bytes], bytes], reason: Reason) -> None:
    question = {"query": "www.example", "record": "A", "answer": "192.0.2.1"}
    with answering(answer) as port:
        assert probe(subject(port, kind="dns", **question, **PATIENCE)).reason is reason


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_icmp(address: str) -> None:
    result = probe(subject(0, address, kind="icmp", **PATIENCE))
    if result.outcome is Outcome.NEUTRAL:
        pytest.skip(result.detail)
    assert result == Result(Outcome.PASS, Reason.ANSWERED)


# ---- where probes come from


def test_a_source_address() -> None:
    seen = []

    def serve(connection: socket.socket) -> None:
        seen.append(connection.getpeername()[0])
        connection.sendall(b"hello")

    with serving(serve) as port:
        assert probe(subject(port, receive="hello", source="127.0.0.9")).outcome is Outcome.PASS
    assert seen == ["127.0.0.9"]


@pytest.mark.parametrize("options", [{"source": "192.0.2.99"}, {"interface": "ek-no-such"}])
def test_what_this_machine_has_not_got_is_our_own_trouble(options: dict[str, str]) -> None:
    result = probe(subject(80, **options))  # type: ignore[arg-type]
    assert (result.outcome, result.reason) == (Outcome.NEUTRAL, Reason.OWN_TROUBLE)


# ---- tls


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Certificate]:
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make certificates with")
    place = tmp_path_factory.mktemp("tls")
    return {
        "good": make(place / "good", "DNS:www.example,IP:127.0.0.1"),
        "expired": make(place / "expired", "DNS:www.example,IP:127.0.0.1", EXPIRED),
        "other": make(place / "other", "DNS:other.example"),
    }


def over_tls(certificate: Certificate, serve: Serve, alpn: str = "") -> Serve:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.chain, certificate.key)
    if alpn:
        context.set_alpn_protocols([alpn])

    def serve_tls(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as wrapped:
            serve(wrapped)

    return serve_tls


def https(port: int, certificate: Certificate, **changes: object) -> Result:
    return probe(subject(port, kind="https", ca=str(certificate.chain), **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shown", "trusted", "changes", "reason"),
    [
        ("good", "good", {}, Reason.ANSWERED),
        ("good", "good", {"host": "www.example:443"}, Reason.ANSWERED),
        ("good", "good", {"server_name": "www.example", "alpn": ["http/1.1"]}, Reason.ANSWERED),
        ("good", "good", {"alpn": ["other"]}, Reason.TLS_ALPN),
        ("good", "good", {"host": "elsewhere.example"}, Reason.TLS_NAME),
        ("other", "other", {}, Reason.TLS_NAME),
        ("expired", "expired", {}, Reason.TLS_EXPIRED),
        ("good", "other", {}, Reason.TLS_UNTRUSTED),
        ("good", "other", {"verify": False}, Reason.ANSWERED),
        ("expired", "other", {"verify": False}, Reason.ANSWERED),
    ],
)
def test_https(
    certificates: dict[str, Certificate],
    shown: str,
    trusted: str,
    changes: dict[str, object],
    reason: Reason,
) -> None:
    with serving(over_tls(certificates[shown], saying(ok()), alpn="http/1.1")) as port:
        assert https(port, certificates[trusted], **changes).reason is reason


def garbage(connection: socket.socket) -> None:
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 400 This is no TLS\r\n\r\n")


def never(connection: socket.socket) -> None:
    while connection.recv(4096):
        pass


def hangs_up(connection: socket.socket) -> None:
    connection.recv(4096)


@pytest.mark.parametrize(
    ("serve", "reason"),
    [
        (garbage, Reason.TLS_PROTOCOL),
        (never, Reason.TLS_TIMEOUT),
        (hangs_up, Reason.CLOSED_EARLY),
    ],
)
def test_what_is_no_tls(certificates: dict[str, Certificate], serve: Serve, reason: Reason) -> None:
    with serving(serve) as port:
        assert https(port, certificates["good"], **PATIENCE).reason is reason


def test_the_end_of_a_certificate_is_told_again_when_the_session_was_resumed(
    certificates: dict[str, Certificate],
) -> None:
    resumed = []

    def serve(connection: socket.socket) -> None:
        resumed.append(connection.session_reused)  # type: ignore[attr-defined]
        saying(ok())(connection)

    options = {"ca": str(certificates["good"].chain)}
    with (
        serving(over_tls(certificates["good"], serve)) as port,
        a_row(port, kind="https", **options) as row,
    ):
        results = [row.probe() for _ in range(3)]
    assert {result.valid_until for result in results} == {
        ssl.cert_time_to_seconds("Jan  1 00:00:00 2099 GMT")
    }
    assert resumed == [False, True, True]


def test_https_over_a_kept_connection(certificates: dict[str, Certificate]) -> None:
    serve = Counted()
    options = {"ca": str(certificates["good"].chain), "keep_alive": True}
    with (
        serving(over_tls(certificates["good"], serve)) as port,
        a_row(port, kind="https", **options) as row,
    ):
        assert {row.probe().outcome for _ in range(4)} == {Outcome.PASS}
    assert (serve.connections, serve.requests) == (1, 4)


def test_a_ca_that_is_not_there_is_our_own_trouble_until_it_is(tmp_path: Path) -> None:
    result = probe(subject(443, kind="https", ca=str(tmp_path / "none.pem")))
    assert (result.outcome, result.reason) == (Outcome.NEUTRAL, Reason.OWN_TROUBLE)
    assert "none.pem" in result.detail
