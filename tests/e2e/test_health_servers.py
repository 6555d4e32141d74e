"""Checks of a server that nobody wrote for them, and of hosts and links that are not there."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from healthcheck.definition import Subject
from healthcheck.exchange import Reason
from tests.support.certificates import Certificate, make
from tests.support.health import a_row_of, closed_port, probe, subject
from tests.support.lab import ROOT
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

    def http(self, path: str, **changes: object) -> Subject:
        return subject(self.port, kind="http", path=path, **changes)  # type: ignore[arg-type]

    def https(self, **changes: object) -> Subject:
        options = {"ca": str(self.certificate.chain), "host": "www.example", "path": "/ready"}
        return subject(self.secure, kind="https", **{**options, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    if not Path(NGINX).exists():
        pytest.skip("no nginx: scripts/setup installs it")
    with running(tmp_path_factory.mktemp("nginx")) as made:
        yield made


@contextmanager
def running(place: Path) -> Iterator[Nginx]:
    made = Nginx(place)
    try:
        until(lambda: probe(made.http("/ready")).reason is Reason.ANSWERED, what="nginx")
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
    nginx: Nginx, path: str, changes: dict[str, object], reason: Reason
) -> None:
    assert probe(nginx.http(path, **changes)).reason is reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, Reason.ANSWERED),
        ({"alpn": ["http/1.1"]}, Reason.ANSWERED),
        ({"host": "other.example"}, Reason.TLS_NAME),
        ({"path": "/later"}, Reason.WRONG_STATUS),
    ],
)
def test_nginx_over_tls(nginx: Nginx, changes: dict[str, object], reason: Reason) -> None:
    assert probe(nginx.https(**changes)).reason is reason


def test_a_certificate_that_the_system_does_not_know(nginx: Nginx) -> None:
    where = subject(nginx.secure, kind="https", host="www.example")
    assert probe(where).reason is Reason.TLS_UNTRUSTED


def test_plain_http_to_a_tls_port_and_tls_to_a_plain_one(nginx: Nginx) -> None:
    wrong = subject(nginx.secure, kind="http", path="/ready", expect=[[200, 299]])
    assert probe(wrong).reason is Reason.WRONG_STATUS  # nginx says 400, in plain words
    assert probe(subject(nginx.port, kind="https")).reason is Reason.TLS_PROTOCOL


@pytest.mark.parametrize("kind", ["http", "https"])
def test_a_server_that_ends_kept_connections_when_it_likes_fails_no_check(
    nginx: Nginx, kind: str
) -> None:
    where = (
        nginx.http("/ready", keep_alive=True) if kind == "http" else nginx.https(keep_alive=True)
    )
    with a_row_of(where) as row:
        assert {row.probe().reason for _ in range(10)} == {Reason.ANSWERED}


def test_a_server_that_hangs_and_one_that_is_gone(tmp_path: Path) -> None:
    """Its kernel goes on taking connections: a tcp check proves nothing more, an http check does."""
    if not Path(NGINX).exists():
        pytest.skip("no nginx: scripts/setup installs it")
    with running(tmp_path) as nginx:
        nginx.process.send_signal(signal.SIGSTOP)
        assert probe(subject(nginx.port)).reason is Reason.CONNECTED
        assert probe(nginx.http("/ready", timeout=0.3)).reason is Reason.ANSWER_TIMEOUT
        nginx.process.kill()
        nginx.process.wait(10)
        assert probe(nginx.http("/ready")).reason is Reason.REFUSED


# ---- hosts and links that are not there

FAULTS = """
import subprocess
from pathlib import Path
def ip(*commands):
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True)
ip("link set lo up", "link add ek0 type veth peer name ek1", "addr add 10.9.0.1/24 dev ek0", "link set ek0 up", "link set ek1 up")
Path("/proc/sys/net/ipv4/neigh/ek0/retrans_time_ms").write_text("50")
from tests.support.health import probe, subject
def said(address, **changes):
    result = probe(subject(8080, address, **changes))
    print(result.outcome.value, result.reason)
ip("neigh add 10.9.0.3 lladdr 02:00:00:00:00:03 dev ek0")
said("10.9.0.3", timeout=0.3)               # frames go out, nothing comes back: filtered
said("10.9.0.4", timeout=5.0)               # nobody answers for the address: the host is down
ip("route add unreachable 10.8.0.0/24")
said("10.8.0.1")                            # routing says so
said("10.7.0.1")                            # no route of ours
ip("link set ek0 down")
said("10.9.0.3", timeout=0.3)               # our own link is down
"""


CARRIER = (
    FAULTS.partition("def said")[0]
    + """
from tests.support.health import FAIL, a_fleet, backend, check, probe, subject
from healthcheck.health import State
from tests.support.wait import until
ip("neigh add 10.9.0.3 lladdr 02:00:00:00:00:03 dev ek0", "-6 addr add 2001:db8::1/64 dev ek0 nodad",
   "neigh add 2001:db8::3 lladdr 02:00:00:00:00:03 dev ek0")
def said(address, kind, **changes):
    result = probe(subject(8080, address, type=kind, timeout=0.2, **changes))
    print(kind, result.outcome.value, result.reason, result.detail)
    return result
KINDS = (("10.9.0.3", "tcp"), ("10.9.0.3", "http"), ("10.9.0.3", "dns"), ("10.9.0.3", "icmp"), ("2001:db8::3", "tcp"))
said("10.9.0.3", "tcp")                     # frames go out: the host's fault
ip("link set ek1 down")                     # the other end: ours stays up, without a carrier
results = [said(*each) for each in KINDS]
results.append(said("10.9.0.3", "tcp", interface="ek0"))
one = backend(1, check=check(fall=1))
with a_fleet(one, states={1: State.UP}) as (fleet, health_map):
    for result in results:
        fleet.hear(result)
        fleet.settle()
    fleet.publish()
    print(health_map.states[1].name.lower(), [each.type for each in fleet.conditions.all()])
    ip("link set ek1 up")
    until(lambda: not fleet.hear(probe(subject(8080, "10.9.0.3", timeout=0.2))) and fleet.settle()
          or health_map.states[1] is State.DOWN, what="a failure that counts again")
    print(health_map.states[1].name.lower())
"""
)


def test_a_link_of_ours_without_carrier_is_held_against_nobody() -> None:
    """The cable is pulled: our end is up by configuration, has its routes, and carries nothing."""
    run = ["unshare", "--net", sys.executable, "-c", CARRIER]
    done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=ROOT)
    heard = done.stdout.splitlines()
    assert heard[0] == "tcp fail connect-timeout nothing came back", done.stderr
    said = "neutral own-trouble not counted while ek0 has no carrier"
    assert [line.rpartition(":")[0] for line in heard[1:7]] == [
        f"{kind} {said}" for kind in ("tcp", "http", "dns", "icmp", "tcp", "tcp")
    ], done.stderr
    assert heard[7] == "up ['own-trouble']", done.stderr
    assert heard[8:] == ["down"], done.stderr


def test_filtered_down_unreachable_and_what_is_our_own_fault() -> None:
    run = ["unshare", "--net", sys.executable, "-c", FAULTS]
    done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.splitlines() == [
        "fail connect-timeout",
        "fail unreachable",
        "fail unreachable",
        "neutral own-trouble",
        "neutral own-trouble",
    ], done.stderr


MARKED = (
    FAULTS.partition("def said")[0]
    + """
from tests.support.health import probe, subject
ip("route add unreachable 10.6.0.9/32", "rule add fwmark 0x2a lookup 42", "route add 10.6.0.9/32 via 10.9.0.3 table 42",
   "neigh add 10.9.0.3 lladdr 02:00:00:00:00:03 dev ek0")
def sent():
    return int(Path("/sys/class/net/ek0/statistics/tx_packets").read_text())
for kind in ("tcp", "udp", "icmp"):
    for mark in (0, 41, 42):
        before = sent()
        result = probe(subject(8080, "10.6.0.9", type=kind, send="x", timeout=0.2, **({"fwmark": mark} if mark else {})))
        print(kind, mark, result.reason, sent() - before > 0)
"""
)


def test_marked_probes_take_the_way_that_a_rule_has_for_their_mark() -> None:
    """Only packets with the mark have a route: who sees one on the wire has seen the mark."""
    run = [
        "unshare",
        "--net",
        "--mount",
        "sh",
        "-c",
        'mount -t sysfs sysfs /sys && exec "$@"',
        "sh",
    ]
    done = subprocess.run(
        [*run, sys.executable, "-c", MARKED], capture_output=True, text=True, check=False, cwd=ROOT
    )
    silent = {"tcp": "connect-timeout", "udp": "answer-timeout", "icmp": "answer-timeout"}
    assert done.stdout.splitlines() == [
        f"{kind} {mark} {silence if mark == 42 else 'unreachable'} {mark == 42}"
        for kind, silence in silent.items()
        for mark in (0, 41, 42)
    ], done.stderr
