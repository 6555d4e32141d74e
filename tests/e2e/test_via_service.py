"""`via: service` end to end: who answers on its own address, and not for the service, is down."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpf import kernel
from tests.support.balancer import NODE, Balancer
from tests.support.checksums import problems
from tests.support.lab import BALANCER, ROOT, SERVICE
from tests.support.namespace import Namespace
from tests.support.wait import until

MODES = {"dsr": 8081, "ipip": 8082, "gue": 8083}
FAMILIES = (4, 6)
LONG = "x" * 3000  # a request of several packets
SINK = f"""\
checks:
  own: {{type: http, path: /, every: 500ms, timeout: 500ms, rise: 2, fall: 2, fast: 200ms}}
  through: {{type: http, path: /, every: 500ms, timeout: 500ms, rise: 2, fall: 2, fast: 200ms, via: service, headers: {{X-Long: {LONG}}}}}
  echo: {{type: udp, send: ping, receive: ping, every: 500ms, timeout: 500ms, rise: 2, fall: 2, fast: 200ms, via: service}}
"""


def config_text() -> str:
    """A pool for each mode, family and kind of check, and one that is checked by its own address."""
    pools, services = [], []
    for mode, port in MODES.items():
        listed = []
        for kind in ("through", "echo"):
            for family in FAMILIES:
                name = f"{mode}{family}-{kind}"
                listed.append(name)
                pools.append(f"  {name}:\n    check: {kind}\n    backends: {_backends(family)}")
        services.append(
            f"  {mode}:\n    addresses: [{SERVICE[4]}, '{SERVICE[6]}']\n    forward: {mode}\n"
            f"    ports: [{port}/tcp, {port}/udp]\n    pools: [{', '.join(listed)}]"
        )
    pools += [f"  own{n}:\n    check: own\n    backends: {_backends(n, 8081)}" for n in FAMILIES]
    services.append(
        "  own:\n    addresses: ['192.0.2.99']\n    forward: ipip\n    ports: [80/tcp]\n"
        "    pools: [own4, own6]"
    )
    text = ["apiVersion: evenkeel/v1", SINK, "pools:", *pools, "services:", *services]
    return "\n".join(text) + "\n"


def _backends(family: int, port: int = 0) -> str:
    host = "10.1.2.10{}" if family == 4 else "fd01:2::10{}"
    given = f", port: {port}" if port else ""
    return "{" + ", ".join(f"b{n}: {{address: '{host.format(n)}'{given}}}" for n in (1, 2)) + "}"


class Through(Balancer):
    def _build(self) -> None:
        super()._build()
        self.config.write_text(config_text())
        self.node.write_text(
            NODE + f"tunnel-source: {{ipv4: {BALANCER[4]}, ipv6: '{BALANCER[6]}'}}\n"
        )
        for backend in self.lab.backends:
            self.lab.own_service_address(backend)
            self.lab.decapsulate(backend)
            self.lab.kill_server(backend)
            self.lab.serve(backend, *MODES.values(), service=True)
            backend.namespace.run("ethtool", "-K", "eth0", "tx", "on")
            backend.namespace.sysctl("net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0")
        self.offload("on")
        self.check: subprocess.Popen[bytes] | None = None
        self.callback(self.end_check)

    def offload(self, how: str) -> None:
        """Whether the balancer's link makes checksums, and cuts what is too long."""
        self.lab.balancer.run("ethtool", "-K", "lan", "tx", how)

    def start_check(self) -> None:
        self.check = self.start_healthcheck()

    def end_check(self) -> None:
        if self.check is not None:
            self.check.send_signal(signal.SIGTERM)
            self.check.wait(15)
            self.check = None

    def report(self) -> dict[str, dict[str, Any]]:
        try:
            content = json.loads((self.run_dir / "health.json").read_text("utf-8"))
        except FileNotFoundError:
            return {}
        return {one["name"]: one for one in content["backends"]}

    def down(self) -> set[str]:
        """Without their kind of check, where both kinds agree."""
        return {name for name, one in self.report().items() if one["state"] == "down"}

    def all_up(self) -> None:
        until(lambda: {one["state"] for one in self.report().values()} == {"up"}, 30, what="all up")

    def passed(self, name: str) -> int:
        found: int = self.report()[name]["counters"]["passed"]
        return found

    def probed(self, times: int = 2) -> None:
        """So many good answers more from everybody."""
        before = {name: self.passed(name) for name in self.report()}
        until(
            lambda: all(self.passed(name) >= count + times for name, count in before.items()),
            30,
            what=f"{times} more good answers from everybody",
        )

    def once(self, *before: str) -> tuple[int, dict[str, dict[str, Any]]]:
        """`healthcheck --once`, by backend."""
        command = (*before, sys.executable, "-m", "healthcheck", "--once", "--output", "json")
        done = subprocess.run(
            self.lab.balancer.inside(*command, "--targets", str(self.run_dir / "targets.json")),
            cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        return done.returncode, {one["name"]: one for one in json.loads(done.stdout)["backends"]}

    def filters(self, interface: str = "lan") -> str:
        ways = ("ingress", "egress")
        show = ("tc", "filter", "show", "dev", interface)
        return "".join(self.lab.balancer.run(*show, way) for way in ways)


def names(backend: str, *modes: str, families: tuple[int, ...] = FAMILIES) -> set[str]:
    return {
        f"{mode}{family}-{kind}/{backend}"
        for mode in modes
        for family in families
        for kind in ("through", "echo")
    }


@pytest.fixture(scope="module")
def through() -> Iterator[Through]:
    with Through() as made:
        made.start()
        made.start_check()
        made.all_up()
        yield made


@pytest.mark.parametrize("family", FAMILIES)
def test_who_has_not_the_service_address_is_down_though_it_answers_on_its_own(
    through: Through, family: int
) -> None:
    through.all_up()
    first = through.lab.backends[0]
    first.namespace.ip(f"addr del {SERVICE[family]} dev lo\n")
    expected = names("b1", *MODES, families=(family,))
    until(lambda: through.down() == expected, 20, what=f"down: {sorted(expected)}")
    last = through.report()[f"gue{family}-through/b1"]["last"]
    assert last["reason"] == "connect-timeout"
    assert f"{SERVICE[family]}" in last["detail"]
    assert last["detail"].endswith("of gue: nothing came back")
    assert through.passed(f"own{family}/b1")
    first.namespace.ip(f"addr add {SERVICE[family]} dev lo\n")
    through.all_up()


def test_who_does_not_take_the_headers_off_is_down_for_tunnels_only(through: Through) -> None:
    through.all_up()
    first = through.lab.backends[0]
    first.namespace.run("ip", "link", "set", "dev", "eth0", "xdp", "off")
    expected = names("b1", "ipip", "gue")
    until(lambda: through.down() == expected, 20, what=f"down: {sorted(expected)}")
    through.lab.decapsulate(first)
    through.all_up()


def test_a_dead_server_is_refused_by_the_service_address_as_by_its_own(through: Through) -> None:
    through.all_up()
    first = through.lab.backends[0]
    through.lab.kill_server(first)
    everything = names("b1", *MODES) | {"own4/b1", "own6/b1"}
    until(lambda: through.down() == everything, 20, what="all of b1 down")
    reasons = {name: through.report()[name]["last"]["reason"] for name in everything}
    through.lab.serve(first, *MODES.values(), service=True)
    through.all_up()
    other = {name: reason for name, reason in reasons.items() if reason != "refused"}
    assert not other, "of udp too: the error that comes back is about the service"


def test_the_service_address_may_be_this_machines_and_rp_filter_strict(through: Through) -> None:
    through.all_up()
    balancer = through.lab.balancer
    balancer.ip("".join(f"addr add {address} dev lo\n" for address in SERVICE.values()))
    balancer.sysctl("net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.lan.rp_filter=1")
    try:
        through.probed()
        assert through.once()[0] == 0
    finally:
        balancer.ip("".join(f"addr del {address} dev lo\n" for address in SERVICE.values()))
        balancer.sysctl("net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.lan.rp_filter=0")


@contextlib.contextmanager
def captured(place: Namespace, interface: str) -> Iterator[list[bytes]]:
    """Frames that go over a link meanwhile, both ways."""
    frames: list[bytes] = []
    with place.entered():
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    with tap:
        tap.bind((interface, 3))
        tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        yield frames
        tap.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                frames.append(tap.recv(65536))


def test_checksums_on_the_wire_are_right_where_the_kernel_makes_them_last(through: Through) -> None:
    through.all_up()
    through.offload("off")
    try:
        with captured(through.lab.switch, "b1") as frames:
            assert through.once()[0] == 0
    finally:
        through.offload("on")
    ours = through.lab.balancer.mac("lan")
    sent = [frame for frame in frames if frame[6:12] == ours]
    bad = {problem: frame.hex() for frame in sent for problem in problems(frame)}
    assert bad == {}
    assert {outer(frame) for frame in sent} >= {(4, 4), (4, 17), (4, 6), (6, 41), (6, 17), (6, 6)}
    assert max(map(len, sent)) <= 1514


def outer(frame: bytes) -> tuple[int, int]:
    """Family and protocol."""
    return (4, frame[23]) if frame[12:14] == b"\x08\x00" else (6, frame[20])


def test_checks_leave_no_flow_and_count_as_nobody(through: Through) -> None:
    through.all_up()
    with kernel.Instance.open(through.name, read_only=True) as instance:
        before = dict(instance.maps.service_counts.items())
        through.probed()
        assert dict(instance.maps.service_counts.items()) == before == {}
        assert not instance.maps.flows4.items() + instance.maps.flows6.items()
        assert not instance.maps.opening4.items() + instance.maps.opening6.items()


def test_a_filter_that_somebody_removes_is_put_back(through: Through) -> None:
    through.all_up()
    through.lab.balancer.run("tc", "qdisc", "del", "dev", "lan", "clsact")
    assert "via_out" not in through.filters()
    assert through.command("sync").returncode == 0  # now, instead of within ten seconds
    until(lambda: "via_out" in through.filters(), 20, what="the filter again")
    until(lambda: "the filter for checks was gone" in through.log, what="a word about it")
    through.probed()


def test_a_restart_leaves_the_filters_as_they_are(through: Through) -> None:
    through.all_up()
    before = through.filters()
    through.stop(signal.SIGKILL)
    through.start()
    assert through.filters() == before


def test_doctor_names_what_is_gone_while_nobody_puts_it_back(through: Through) -> None:
    through.all_up()
    through.stop()
    through.lab.balancer.run("tc", "filter", "del", "dev", "lan", "egress")
    with through.lab.balancer.entered():
        found = through.command("doctor", "--node", str(through.node))
    through.start()
    assert found.returncode == 2
    assert "lan: has no filter for checks with `via: service`" in found.stdout
    assert "wan: has no filter" not in found.stdout
    assert "via_out" in through.filters()


def test_without_the_right_to_mark_it_is_a_condition_and_no_verdict(through: Through) -> None:
    through.all_up()
    code, rows = through.once("setpriv", "--bounding-set=-net_admin,-net_raw")
    assert code == 1
    assert rows["dsr4-through/b1"]["outcome"] == "neutral"
    assert "needs CAP_NET_ADMIN" in rows["dsr4-through/b1"]["detail"]
    assert rows["own4/b1"]["outcome"] == "pass"


def test_one_backend_can_be_tried_by_hand(through: Through) -> None:
    through.all_up()
    command = (sys.executable, "-m", "healthcheck", "--run-dir", str(through.run_dir))
    said = through.lab.balancer.run(
        "env", f"PYTHONPATH={ROOT}", *command, "probe", "gue6-through/b1"
    )
    assert f"as clients of gue: {SERVICE[6]} port 8083, mark 0xeb5" in said
    assert "pass: answered" in said


def test_whoever_needs_it_no_more_lets_go_of_it_and_teardown_too(through: Through) -> None:
    through.all_up()
    text = through.config.read_text()
    through.config.write_text(text.replace(", via: service", ", port: 8081"))
    until(lambda: not through.filters(), 20, what="no filter")
    assert "clsact" not in through.lab.balancer.run("tc", "qdisc", "show", "dev", "lan")
    assert not Path(f"/sys/fs/bpf/evenkeel/{through.name}/via").exists()
    through.config.write_text(text)
    until(lambda: "via_in" in through.filters(), 20, what="filters again")
    through.end_check()
    through.stop()
    with through.lab.balancer.entered():
        assert through.command("teardown").returncode == 0
    assert not through.filters() + through.filters("wan")
    assert not Path(f"/sys/fs/bpf/evenkeel/{through.name}").exists()
