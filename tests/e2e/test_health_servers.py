"""Checks of a server that nobody wrote for them, and of hosts and links that are not there.

The probes are sent by a process with the user and the capabilities of healthcheck's unit (tests/support/prober.py).
"""

import itertools
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from healthcheck.exchange import Reason, Result
from healthcheck.health import State
from tests.support.certificates import Certificate, make
from tests.support.health import a_fleet, backend, check, closed_port
from tests.support.namespace import Namespace
from tests.support.prober import Prober
from tests.support.unit import open_folder
from tests.support.wait import until

NGINX = "/usr/sbin/nginx"
CONFIG = """
daemon off; master_process off; pid {place}/pid; error_log {place}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log off; keepalive_requests 3; client_body_temp_path {place}; proxy_temp_path {place};
  fastcgi_temp_path {place}; uwsgi_temp_path {place}; scgi_temp_path {place};
  server {{
    listen 127.0.0.1:{port};
    listen 127.0.0.1:{secure} ssl; ssl_certificate {chain}; ssl_certificate_key {key};
    location = /ready {{ return 200 "ready"; }}
    location = /later {{ return 503; }}
    location = /loop {{ return 302 /loop; }}
    location = /big {{ root {place}; }}
  }}
}}
"""


class Nginx:
    def __init__(self, place: Path) -> None:
        self.port, self.secure = closed_port(), 0
        self.secure = closed_port(self.port + 1)
        self.certificate: Certificate = make(place / "tls", "DNS:www.example")
        with (place / "big").open("wb") as big:
            big.truncate(1 << 30)
        text = CONFIG.format(
            place=place, port=self.port, secure=self.secure,
            chain=self.certificate.chain, key=self.certificate.key,
        )  # fmt: skip
        (place / "nginx.conf").write_text(text)
        command = [NGINX, "-p", str(place), "-e", str(place / "error.log"), "-c", "nginx.conf"]
        self.process = subprocess.Popen(command)

    def http(self, path: str, **changes: object) -> dict[str, Any]:
        return {"port": self.port, "type": "http", "path": path, **changes}

    def https(self, **changes: object) -> dict[str, Any]:
        options = {"ca": str(self.certificate.chain), "host": "www.example", "path": "/ready"}
        return {"port": self.secure, "type": "https", **options, **changes}


@pytest.fixture(scope="module")
def prober() -> Iterator[Prober]:
    with Prober() as made:
        yield made


@pytest.fixture(scope="module")
def nginx(prober: Prober) -> Iterator[Nginx]:
    with running(prober) as made:
        yield made


@contextmanager
def running(prober: Prober) -> Iterator[Nginx]:
    if not Path(NGINX).exists():
        pytest.skip("no nginx: scripts/setup installs it")
    with open_folder() as place:
        made = Nginx(place)
        try:
            until(
                lambda: prober.probe(**made.http("/ready")).reason is Reason.ANSWERED, what="nginx"
            )
            yield made
        finally:
            made.process.kill()
            made.process.wait(10)


@pytest.mark.parametrize(
    ("path", "changes", "reason"),
    [
        (
            "/ready",
            {"expect_body": "ready", "expect_headers": {"Server": "nginx"}},
            Reason.ANSWERED,
        ),
        ("/ready", {"expect_body": "never"}, Reason.WRONG_BODY),
        ("/missing", {}, Reason.WRONG_STATUS),
        ("/later", {"down_at_once": [[503, 503]]}, Reason.WRONG_STATUS),
        ("/loop", {}, Reason.ANSWERED),
        ("/loop", {"expect": [[200, 299]]}, Reason.WRONG_STATUS),
        ("/big", {}, Reason.ANSWERED),
        ("/big", {"expect_body": "never"}, Reason.TOO_LARGE),
    ],
)
def test_nginx_over_http(
    nginx: Nginx, prober: Prober, path: str, changes: dict[str, object], reason: Reason
) -> None:
    assert prober.probe(**nginx.http(path, **changes)).reason is reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, Reason.ANSWERED),
        ({"alpn": ["http/1.1"]}, Reason.ANSWERED),
        ({"host": "other.example"}, Reason.TLS_NAME),
        ({"path": "/later"}, Reason.WRONG_STATUS),
    ],
)
def test_nginx_over_tls(
    nginx: Nginx, prober: Prober, changes: dict[str, object], reason: Reason
) -> None:
    assert prober.probe(**nginx.https(**changes)).reason is reason


def test_a_certificate_that_the_system_does_not_know(nginx: Nginx, prober: Prober) -> None:
    found = prober.probe(nginx.secure, type="https", host="www.example")
    assert found.reason is Reason.TLS_UNTRUSTED


def test_plain_http_to_a_tls_port_and_tls_to_a_plain_one(nginx: Nginx, prober: Prober) -> None:
    wrong = prober.probe(nginx.secure, type="http", path="/ready", expect=[[200, 299]])
    assert wrong.reason is Reason.WRONG_STATUS  # nginx says 400, in plain words
    assert prober.probe(nginx.port, type="https").reason is Reason.TLS_PROTOCOL


@pytest.mark.parametrize("kind", ["http", "https"])
def test_a_server_that_ends_kept_connections_when_it_likes_fails_no_check(
    nginx: Nginx, prober: Prober, kind: str
) -> None:
    where = (
        nginx.http("/ready", keep_alive=True) if kind == "http" else nginx.https(keep_alive=True)
    )
    assert {one.reason for one in prober.row(times=10, **where)} == {Reason.ANSWERED}


def test_a_server_that_hangs_and_one_that_is_gone(prober: Prober) -> None:
    """Its kernel goes on taking connections: a tcp check proves nothing more, an http check does."""
    with running(prober) as nginx:
        nginx.process.send_signal(signal.SIGSTOP)
        assert prober.probe(nginx.port).reason is Reason.CONNECTED
        silent = prober.probe(**nginx.http("/ready", timeout=0.3))
        assert silent.reason is Reason.ANSWER_TIMEOUT
        nginx.process.kill()
        nginx.process.wait(10)
        assert prober.probe(**nginx.http("/ready")).reason is Reason.REFUSED


# ---- hosts and links that are not there

LINK = """\
link set lo up
link add ek0 type veth peer name ek1
addr add 10.9.0.1/24 dev ek0
link set ek0 up
link set ek1 up
neigh add 10.9.0.3 lladdr 02:00:00:00:00:03 dev ek0
"""
_numbers = itertools.count(1)


class Wire:
    """A link on whose other end nobody is, and who probes through it. What changes on it is root's doing."""

    def __init__(self, place: Namespace, prober: Prober) -> None:
        self._place, self._prober = place, prober

    def ip(self, *commands: str) -> None:
        self._place.ip("".join(f"{command}\n" for command in commands))

    def silence_ipv6(self) -> None:
        """Else the kernel has something to say of its own."""
        self._place.sysctl("net.ipv6.conf.ek0.disable_ipv6=1")

    def probe(self, address: str, **changes: object) -> Result:
        return self._prober.probe(8080, address, **changes)

    def sent(self) -> int:
        shown = self._place.run("ip", "-json", "-statistics", "link", "show", "dev", "ek0")
        return int(json.loads(shown)[0]["stats64"]["tx"]["packets"])


@pytest.fixture
def wire() -> Iterator[Wire]:
    place = Namespace(f"ek{os.getpid()}nwire{next(_numbers)}")
    try:
        place.ip(LINK)
        place.sysctl("net.ipv4.neigh.ek0.retrans_time_ms=50")
        with Prober(place) as prober:
            yield Wire(place, prober)
    finally:
        place.delete()


def test_a_link_of_ours_without_carrier_is_held_against_nobody(wire: Wire) -> None:
    """The cable is pulled: our end is up by configuration, has its routes, and carries nothing."""
    wire.ip(
        "addr add 2001:db8::1/64 dev ek0 nodad",
        "neigh add 2001:db8::3 lladdr 02:00:00:00:00:03 dev ek0",
    )
    heard = wire.probe("10.9.0.3", timeout=0.2)
    assert said(heard) == "fail connect-timeout", "frames go out: the host's fault"

    wire.ip("link set ek1 down")  # the other end: ours stays up, without a carrier
    results = [
        wire.probe("10.9.0.3", type=kind, timeout=0.2) for kind in ("tcp", "http", "dns", "icmp")
    ]
    results.append(wire.probe("2001:db8::3", timeout=0.2))
    results.append(wire.probe("10.9.0.3", timeout=0.2, interface="ek0"))
    assert {said(one) for one in results} == {"neutral own-trouble"}
    why = {one.detail.rpartition(":")[0] for one in results}
    assert why == {"not counted while ek0 has no carrier"}
    _counts_again_once_it_is_back(wire, results)


def _counts_again_once_it_is_back(wire: Wire, results: list[Result]) -> None:
    with a_fleet(backend(1, check=check(fall=1)), states={1: State.UP}) as (fleet, health_map):
        for result in results:
            fleet.hear(result)
        fleet.publish()
        assert health_map.states[1] is State.UP
        assert [each.type for each in fleet.conditions.all()] == ["own-trouble"]

        def has_fallen() -> bool:
            fleet.hear(wire.probe("10.9.0.3", timeout=0.2))
            return health_map.states[1] is State.DOWN

        wire.ip("link set ek1 up")
        until(has_fallen, what="a failure that counts again")


def said(result: Result) -> str:
    return f"{result.outcome.value} {result.reason}"


def test_filtered_down_unreachable_and_what_is_our_own_fault(wire: Wire) -> None:
    filtered = wire.probe("10.9.0.3", timeout=0.3)
    assert said(filtered) == "fail connect-timeout", "frames go out, nothing comes back"
    down = wire.probe("10.9.0.4", timeout=5.0)
    assert said(down) == "fail unreachable", "nobody answers for the address"
    wire.ip("route add unreachable 10.8.0.0/24")
    assert said(wire.probe("10.8.0.1")) == "fail unreachable", "routing says so"
    assert said(wire.probe("10.7.0.1")) == "neutral own-trouble", "no route of ours"
    wire.ip("link set ek0 down")
    assert said(wire.probe("10.9.0.3", timeout=0.3)) == "neutral own-trouble", "nor a link"


@pytest.mark.parametrize(
    ("kind", "silence"),
    [("tcp", "connect-timeout"), ("udp", "answer-timeout"), ("icmp", "answer-timeout")],
)
def test_marked_probes_take_the_way_that_a_rule_has_for_their_mark(
    wire: Wire, kind: str, silence: str
) -> None:
    """Only packets with the mark have a route: who sees one on the wire has seen the mark."""
    wire.silence_ipv6()
    wire.ip(
        "route add unreachable 10.6.0.9/32",
        "rule add fwmark 0x2a lookup 42",
        "route add 10.6.0.9/32 via 10.9.0.3 table 42",
    )
    for fwmark in ({}, {"fwmark": 41}, {"fwmark": 42}):
        before = wire.sent()
        result = wire.probe("10.6.0.9", type=kind, send="x", timeout=0.2, **fwmark)
        has_way = fwmark == {"fwmark": 42}
        assert result.reason == (silence if has_way else "unreachable")
        assert (wire.sent() > before) == has_way
