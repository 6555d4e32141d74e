"""What operators see and say, at a real daemon under real traffic: HTTP, metrics, the socket, the command line."""

import json
import os
import pty
import select
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bpf.kernel import Instance
from reconciler import config as configuration
from reconciler import control, gitsource, node
from reconciler.follow import Accepted
from reconciler.loop import Place, Reconciler
from reconciler.neigh import Neighbours
from reconciler.overrides import Forced, Override, with_one
from reconciler.overriding import OverrideFile
from reconciler.revision import revision
from tests.support.balancer import CONFIG, Balancer
from tests.support.exposition import samples
from tests.support.lab import ROOT
from tests.support.repository import Repository
from tests.support.wait import until

HIDDEN = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /sys/fs/bpf; exec "$@"', "sh")
SCHEMA = json.loads((ROOT / "schemas/status.schema.json").read_text())
BOTH = {"web1", "web2"}


@pytest.fixture(scope="module")
def running() -> Iterator[Balancer]:
    with Balancer() as made:
        yield made


@pytest.fixture
def balancer(running: Balancer) -> Balancer:
    """As every test finds it: the daemon runs on the same file, nothing is overridden."""
    running.config.write_text(CONFIG)
    running.start()
    control.ask(running.run_dir / control.SOCKET, "clear", {"backend": "all"})
    control.ask(running.run_dir / control.SOCKET, "sync")
    return running


def valid(status: dict[str, Any]) -> dict[str, Any]:
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.validate(status, SCHEMA, format_checker=checker)
    return status


def backends(status: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one for pool in status["pools"] for one in pool["backends"]}


def condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in status["conditions"] if one["type"] == kind)
    return found


def metrics(balancer: Balancer) -> dict[str, float]:
    return samples(balancer.http("/metrics")[1])


def settled(balancer: Balancer, requests: float) -> dict[str, float]:
    """Metrics once they have counted that many flows: readings are a second apart."""
    key = 'evenkeel_service_flows_total{service="www"}'
    return until(
        lambda: found if (found := metrics(balancer)).get(key, 0) >= requests else None,
        what=f"{requests} flows in the metrics",
    )


# ---- reading


def test_status_is_what_its_schema_says_however_it_is_asked_for(balancer: Balancer) -> None:
    by_http = valid(balancer.status())
    by_socket = valid(json.loads(balancer.command("status", "--output", "json").stdout))
    assert by_http["applied"] == by_socket["applied"]
    assert {one["interface"]: one["mode"] for one in by_http["attached"]} == {
        "wan": "native",
        "lan": "native",
    }
    assert [one["serving"] for one in by_http["services"]] == ["web"]
    assert sum(one["share"] for one in backends(by_http).values()) == pytest.approx(1, abs=1e-5)
    assert condition(by_http, "Ready")["status"] == "True"


def test_text_says_the_same(balancer: Balancer) -> None:
    text = balancer.command("status").stdout
    assert "192.0.2.10:80/tcp" in text
    assert "10.1.2.101:8080" in text
    assert "\033[" not in text, "no colour where there is no terminal"


def test_watch_refreshes_in_place(balancer: Balancer) -> None:
    ours, theirs = pty.openpty()
    command = (sys.executable, "-m", "reconciler", "status", "--watch", *balancer.place)
    with subprocess.Popen(command, cwd=ROOT, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        seen = ""
        while seen.count("\033[H\033[J") < 2:
            assert select.select([ours], [], [], 20)[0], seen
            seen += os.read(ours, 65536).decode()
        process.send_signal(2)
        assert process.wait(10) == 0
    os.close(ours)
    assert "web1" in seen


def test_metrics_count_what_clients_did(balancer: Balancer) -> None:
    before = metrics(balancer)
    for _ in range(7):
        balancer.request()
    key = 'evenkeel_service_flows_total{service="www"}'
    after = settled(balancer, before[key] + 7)
    assert after[key] == before[key] + 7
    by_backend = 'evenkeel_backend_flows_total{pool="web",backend="%s"}'
    assert sum(after[by_backend % name] - before[by_backend % name] for name in BOTH) == 7
    forwarded = 'evenkeel_verdict_packets_total{verdict="forwarded"}'
    per_cpu = [
        v for k, v in after.items() if k.startswith("evenkeel_cpu_verdict") and '"forwarded"' in k
    ]
    assert after[forwarded] == sum(per_cpu) > before[forwarded]
    assert after["evenkeel_generation"] >= 1


def test_rates_follow_traffic(balancer: Balancer) -> None:
    def fast() -> bool:
        balancer.request()
        rates = balancer.status()["services"][0]["rates"]
        return rates is not None and rates["flows"] > 0 and rates["reply_packets"] > 0

    until(fast, what="rates above nothing")


def test_unknown_pages_and_methods_are_refused(balancer: Balancer) -> None:
    assert balancer.http("/nothing", check=False)[0] == 404
    code = balancer.lab.balancer.run(
        "curl", "--silent", "--request", "POST", "--write-out", "%{http_code}",
        "--output", "/dev/null", "http://127.0.0.1:9160/status",
    )  # fmt: skip
    assert code == "405"


# ---- commanding


def test_an_override_takes_effect_on_packets_and_is_shown(balancer: Balancer) -> None:
    assert balancer.answering() == BOTH
    done = balancer.command(
        "override", "web/web1", "down", "--for", "30m", "--reason", "disk is replaced"
    )
    assert done.returncode == 0, done.stderr
    assert balancer.answering() == {"web2"}
    status = valid(balancer.status())
    assert backends(status)["web1"]["override"] == "down"
    assert not backends(status)["web1"]["usable"]
    assert [one["reason"] for one in status["overrides"]] == ["disk is replaced"]
    assert status["overrides"][0]["by"] == "root"
    assert condition(status, "Overridden")["message"] == "web/web1 down: disk is replaced"
    found = metrics(balancer)
    until_key = 'evenkeel_override_until_timestamp_seconds{backend="web/web1",state="down"}'
    assert found[until_key] == pytest.approx(time.time() + 1800, abs=60)
    assert found['evenkeel_backend_usable{pool="web",backend="web1"}'] == 0
    assert "disk is replaced" in balancer.command("override").stdout
    assert "forced down" in balancer.command("status").stdout
    assert balancer.command("override", "--clear", "web/web1").returncode == 0
    assert balancer.answering() == BOTH


def test_an_admin_state_of_the_file_takes_effect_on_packets_and_is_shown(
    balancer: Balancer,
) -> None:
    before = "web1: {address: 10.1.2.101, port: 8080"
    assert before in CONFIG
    balancer.config.write_text(CONFIG.replace(before, f"{before}, state: down, reason: new disk"))
    until(lambda: backends(balancer.status())["web1"]["state"] == "down", what="the new file")
    assert balancer.answering() == {"web2"}
    shown = backends(valid(balancer.status()))["web1"]
    assert (shown["reason"], shown["usable"]) == ("new disk", False)
    assert "new disk" in balancer.command("status").stdout
    balancer.config.write_text(CONFIG)
    until(lambda: backends(balancer.status())["web1"]["state"] == "up", what="the old file")
    assert balancer.answering() == BOTH


def test_an_override_that_is_over_is_let_go_without_anybody_asking(balancer: Balancer) -> None:
    balancer.command("override", "web/web2", "down", "--for", "1h", "--reason", "over soon")
    assert balancer.answering() == {"web1"}
    path = balancer.state_dir / "overrides.json"
    content = json.loads(path.read_text())
    content["overrides"][0]["until"] = time.time() - 1
    path.with_suffix(".new").write_text(json.dumps(content))
    path.with_suffix(".new").rename(path)
    until(lambda: not balancer.status()["overrides"], what="the override to be over")
    assert balancer.answering() == BOTH


def test_without_a_daemon_an_override_waits_for_the_next_pass(balancer: Balancer) -> None:
    balancer.stop()
    done = balancer.command("override", "web/web1", "down", "--for", "1h", "--reason", "x")
    assert (done.returncode, "the next pass applies it" in done.stdout) == (0, True), done.stderr
    assert balancer.answering() == BOTH
    balancer.start()
    assert balancer.answering() == {"web2"}
    balancer.stop()
    assert balancer.command("override", "--clear", "all").returncode == 0
    assert balancer.command("override").stdout == "no override is in force\n"
    balancer.start()
    assert balancer.answering() == BOTH


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (
            ("web/web3", "down", "--for", "1m", "--reason", "x"),
            1,
            "no such backend is configured. did you mean",
        ),
        (("web/web1", "down", "--reason", "x"), 64, "--for TIME"),
        (("web/web1", "down", "--for", "1m"), 64, "--reason TEXT"),
        (("web/web1", "sideways"), 64, "invalid choice"),
        (
            ("web/web1", "down", "--for", "31d", "--reason", "x"),
            1,
            "a backend's `state` in lb.yaml",
        ),
        (("--clear", "web/web1"), 1, "there is none"),
    ],
)
def test_what_cannot_be_overridden_is_said(
    balancer: Balancer, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = balancer.command("override", *arguments)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr


def test_sync_waits_for_what_became_of_a_change(balancer: Balancer) -> None:
    generation = balancer.status()["applied"]["generation"]
    balancer.config.write_text(CONFIG.replace("8080}", "8080, weight: 50}", 1))
    done = balancer.command("sync")
    assert (done.returncode, done.stdout) == (0, f"generation {generation + 1}\n"), done.stderr
    assert backends(balancer.status())["web1"]["share"] == pytest.approx(1 / 3, abs=0.01)
    balancer.config.write_text(CONFIG.replace("pools: [web]", "pools: [webb]"))
    done = balancer.command("sync")
    assert done.returncode == 3
    assert "ConfigValid" in done.stderr
    status = valid(balancer.status())
    assert status["attempted"]["result"] == "rejected"
    assert status["attempted"]["digest"] != status["applied"]["digest"]
    assert condition(status, "Ready")["status"] == "True", "what is applied goes on"


def test_sync_waits_for_the_fetch_that_it_asked_for(tmp_path: Path) -> None:
    """A git source answers from another thread: until a fetch has followed, there may be more."""
    upstream = Repository(tmp_path / "upstream")
    upstream.commit("a: 1\n", "first")
    place = gitsource.Place(upstream.url, "lb.yaml")
    source = gitsource.GitSource(place, tmp_path / "git", gitsource.Terms(every=3600))
    source.start(lambda: None)
    try:
        until(source.look, what="the first fetch")
        upstream.commit("a: 2\n", "second")
        source.hurry()
        assert source.due() < 1
        until(lambda: source.due() > 1, what="the fetch")
        found = source.look()
        assert found is not None
        assert found.revision.text == "a: 2\n"
    finally:
        source.close()


def test_a_suspension_is_loud_until_it_ends(balancer: Balancer) -> None:
    generation = balancer.status()["applied"]["generation"]
    control.ask(
        balancer.run_dir / control.SOCKET,
        "suspend",
        {"seconds": 600, "reason": "router is replaced"},
    )
    balancer.config.write_text(CONFIG.replace("8080}", "8080, weight: 50}", 1))
    balancer.command("sync")
    status = valid(balancer.status())
    assert status["applied"]["generation"] == generation, "the source is not followed"
    assert [(one["reason"], one["by"]) for one in status["suspends"]] == [
        ("router is replaced", "root")
    ]
    assert condition(status, "Suspended")["status"] == "True"
    assert metrics(balancer)["evenkeel_suspended"] == 1
    assert "router is replaced" in balancer.command("status").stdout
    control.ask(balancer.run_dir / control.SOCKET, "resume")
    balancer.command("sync")
    assert balancer.status()["applied"]["generation"] == generation + 1


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ((), "program is not there); the reconciler loads it when it starts"),
        (HIDDEN, "/sys/fs/bpf is no BPF file system in this mount namespace"),
    ],
    ids=["never loaded", "not to be seen"],
)
def test_where_nothing_is_loaded_status_says_so(where: tuple[str, ...], why: str) -> None:
    elsewhere = subprocess.run(
        (*where, sys.executable, "-m", "reconciler", "status", "--instance", "nobodys"),
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert elsewhere.returncode == 1
    assert "nothing is loaded" in elsewhere.stderr
    assert why in elsewhere.stderr


def test_a_daemon_that_stops_lets_waiting_clients_go(balancer: Balancer) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(balancer.run_dir / control.SOCKET))
        connection.settimeout(20)
        balancer.stop()
        assert connection.recv(100) == b""
    assert "Traceback" not in balancer.log
    assert "never retrieved" not in balancer.log


def test_the_socket_is_its_owners_and_its_groups(balancer: Balancer) -> None:
    found = (balancer.run_dir / control.SOCKET).stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o660
    asked = subprocess.run(
        ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups",
         "/usr/bin/python3", "-c",
         f"import socket; socket.socket(socket.AF_UNIX).connect({str(balancer.run_dir / control.SOCKET)!r})"),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "PermissionError" in asked.stderr


@pytest.mark.parametrize(
    "line",
    [
        b"hello\n",
        b'{"format_version": "1.0", "command": "explode"}\n',
        b'{"format_version": "2.0", "command": "sync"}\n',
        b'{"format_version": "1.0", "command": "override", "arguments": {"backend": 7}}\n',
        b'"' + b"x" * (70 << 10),
    ],
    ids=["no JSON", "unknown", "another format", "wrong types", "endless"],
)
def test_nonsense_on_the_socket_is_answered_and_changes_nothing(
    balancer: Balancer, line: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(balancer.run_dir / control.SOCKET))
        connection.settimeout(20)
        connection.sendall(line)
        with connection.makefile("rb") as answers:
            answer = json.loads(answers.readline())
    assert answer["ok"] is False
    assert answer["error"]
    assert balancer.command("sync").returncode == 0


def test_meddling_with_the_maps_is_repaired_and_told(balancer: Balancer) -> None:
    before = metrics(balancer)["evenkeel_drift_found_total"]
    with Instance.open(balancer.name) as instance:
        for key in [key for key, _ in instance.maps.frontends4.items()]:
            instance.maps.frontends4.delete(key)
        assert balancer.command("sync").returncode == 0
        assert instance.maps.frontends4.items(), "restored"
    status = valid(balancer.status())
    assert any(one.startswith("frontends4 192.0.2.10:80/tcp: missing") for one in status["drift"])
    assert metrics(balancer)["evenkeel_drift_found_total"] > before
    assert balancer.answering() == BOTH
    assert balancer.command("sync").returncode == 0
    assert balancer.status()["drift"] == []


def test_health_is_shown_with_its_reason(balancer: Balancer) -> None:
    check = "checks:\n  alive: {type: tcp, every: 200ms, timeout: 200ms, rise: 1, fall: 1}\npools:\n  web:\n    check: alive\n"
    balancer.config.write_text(CONFIG.replace("pools:\n  web:\n", check, 1))
    assert balancer.command("sync").returncode == 0
    web1 = balancer.lab.backends[0]

    def health() -> tuple[str, str]:
        found = backends(balancer.status())["web1"]["health"]
        return found["state"], found["reason"]

    with balancer.checker():
        until(lambda: health() == ("up", "connected"), 20, what="web1 to be up")
        balancer.lab.kill_server(web1)
        until(lambda: health() == ("down", "refused"), 20, what="web1 to be down")
        status = valid(balancer.status())
        assert status["pools"][0]["usable"] == 1
        assert condition(status, "HealthFresh")["status"] == "True"
        assert "refused since" in balancer.command("status").stdout
        balancer.command("override", "web/web1", "up", "--for", "5m", "--reason", "check is wrong")
        assert backends(balancer.status())["web1"]["usable"], "what an operator says wins"
        balancer.command("override", "--clear", "web/web1")
        assert not backends(balancer.status())["web1"]["usable"]
        balancer.lab.serve(web1, 8080)
        until(lambda: health()[0] == "up", 20, what="web1 to be up again")


# ---- over time


def test_counters_outlive_a_restart_and_conditions_their_time(balancer: Balancer) -> None:
    balancer.answering()
    before = metrics(balancer)
    since = condition(balancer.status(), "ConfigValid")["since"]
    balancer.stop()
    for _ in range(5):
        balancer.request()
    alone = valid(json.loads(balancer.command("status", "--output", "json").stdout))
    assert alone["daemon"] is None
    assert condition(alone, "Ready")["reason"] == "NoDaemon"
    assert backends(alone)["web1"]["address"] == "10.1.2.101:8080"
    key = 'evenkeel_service_flows_total{service="www"}'
    assert alone["services"][0]["counters"]["flows"] >= before[key] + 5
    balancer.start()
    after = metrics(balancer)
    process = ("evenkeel_reconcile", "evenkeel_map_writes", "evenkeel_drift")
    fallen = {
        name: (value, after.get(name))
        for name, value in before.items()
        if "_total" in name and not name.startswith(process) and after.get(name, 0) < value
    }
    assert fallen == {}
    assert after[key] >= before[key] + 5, "what was forwarded without a daemon is counted too"
    assert condition(balancer.status(), "ConfigValid")["since"] == since


def test_a_backend_that_was_away_counts_on_where_it_was(balancer: Balancer) -> None:
    key = 'evenkeel_backend_flows_total{pool="web",backend="web2"}'
    while balancer.request() != "web2":
        pass
    before = settled(balancer, 1)[key]
    until(lambda: metrics(balancer)[key] >= max(before, 1), what="web2's counter")
    before = metrics(balancer)[key]
    without = "".join(line for line in CONFIG.splitlines(keepends=True) if "web2" not in line)
    balancer.config.write_text(
        without.replace("web1: {", "web0: {address: 10.1.2.102, port: 8080}\n      web1: {")
    )
    assert balancer.command("sync").returncode == 0
    for _ in range(6):
        balancer.request()
    balancer.config.write_text(CONFIG)
    assert balancer.command("sync").returncode == 0
    after = metrics(balancer)[key]
    assert before <= after <= before + 1, "neither forgotten nor taken over from another"


def test_while_an_interface_is_missing_the_status_says_which_and_who_is_served(
    balancer: Balancer,
) -> None:
    balancer.stop()
    plain = balancer.node.read_text()
    balancer.node.write_text(plain.replace("lan: {mode: native}", "lan: {}, gone0: {}"))
    try:
        balancer.start(ready=False)
        until(lambda: balancer.http("/status", check=False)[0] == 200, 30, what="a first look")
        until(
            lambda: not condition(balancer.status(), "DataplaneHealthy")["well"], what="the finding"
        )
        status = valid(balancer.status())
        assert "gone0" in condition(status, "DataplaneHealthy")["message"]
        assert balancer.http("/readyz", check=False)[0] == 503
        assert set(backends(status)) == BOTH
        assert balancer.answering() == BOTH
    finally:
        balancer.stop()
        balancer.node.write_text(plain)


def test_ready_only_after_the_first_pass(running: Balancer) -> None:
    running.stop()
    Instance.open(running.name).teardown()
    for left in (running.run_dir, running.state_dir / "history"):
        for path in left.iterdir():
            path.unlink()
    running.config.write_text("apiVersion: evenkeel/v2\n")
    running.start(ready=False)
    assert running.http("/readyz", check=False)[0] == 503
    until(lambda: "ConfigValid" in running.http("/readyz", check=False)[1], what="the reason")
    valid(running.status())
    running.config.write_text(CONFIG)
    until(running.ready, what="the daemon to be ready")
    assert running.answering() == BOTH


def test_an_override_ends_by_the_clock(balancer: Balancer) -> None:
    """One pass before its end and one after, in a process whose clock is ours."""
    balancer.stop()
    clock = Clock(time.time())
    place = Place(balancer.name, balancer.run_dir, balancer.state_dir)
    found = revision("lb.yaml", CONFIG.encode())
    accepted = Accepted(configuration.load(CONFIG), found)
    half_an_hour = Override("web", "web1", Forced.DOWN, "test", "root", clock.now, clock.now + 1800)
    OverrideFile(place.state_dir).change(lambda before: with_one(before, half_an_hour))
    with balancer.lab.balancer.entered(), Neighbours() as neighbours:
        instance = Instance.open(balancer.name)
        reconciler = Reconciler(
            instance, node.load(balancer.node.read_text()), place, neighbours, clock=clock
        )
        reconciler.reconcile(accepted, wait=1)
        with instance:
            assert balancer.answering() == {"web2"}
            clock.now += 1799
            reconciler.reconcile(accepted)
            assert balancer.answering() == {"web2"}
            clock.now += 1
            reconciler.reconcile(accepted)
            assert balancer.answering() == BOTH


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
