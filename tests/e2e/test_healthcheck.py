"""The checker as its unit runs it: a process of its own, a real health map, and a server that breaks and heals.

The instance is made as the reconciler's user would: which entries of it the checker's user may reach is in the pins.
"""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bpf import kernel
from bpf.abi import Health, HealthState
from bpf.pins import Pins
from tests.support.health import LOOPBACK, backend, check, closed_port, document, put
from tests.support.lab import ROOT
from tests.support.unit import open_folder, unit
from tests.support.wait import until

INCARNATION = 3 << 20
FAST = {"every": 0.2, "timeout": 0.2, "rise": 2, "fall": 3}
SCHEMA = json.loads((ROOT / "schemas/health.schema.json").read_text("utf-8"))


class Server:
    """HTTP on loopback that answers as the test says, and counts what it was asked."""

    def __init__(self) -> None:
        self.status = 200
        self.free = threading.Event()  # to answer; else it lets probes wait
        self.free.set()
        self.asked: dict[int, int] = {200: 0, 503: 0}
        counted = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                counted.asked[counted.status] += 1
                counted.free.wait(10)
                self.send_response(counted.status)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._http = ThreadingHTTPServer((LOOPBACK, 0), Handler)
        self.port = self._http.server_port
        threading.Thread(target=self._http.serve_forever, args=(0.02,)).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class Checker:
    """An instance, and the checker that follows its targets."""

    def __init__(self, folder: Path) -> None:
        self.name = f"ek{os.getpid()}check"
        self.directory = folder / "run"
        reconciler = unit("reconciler")
        reconciler.own(self.directory, reconciler.mode("RuntimeDirectory"))
        self.instance = reconciler.doing(lambda: kernel.Instance.load(self.name))
        self.process: subprocess.Popen[bytes] | None = None

    def publish(self, *backends: dict[str, Any]) -> None:
        where = Pins.of(self.name).map("health")
        targets = document(*backends, instance=self.name, health_map=where)
        put(self.directory / "targets.json", targets)

    def start(self) -> None:
        where = ("--instance", self.name, "--run-dir", str(self.directory))
        healthcheck = unit("healthcheck")
        self.process = subprocess.Popen(
            healthcheck.command(*where), cwd=ROOT, umask=healthcheck.umask
        )

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(10)
        self.process = None
        return code

    def state(self, index: int) -> HealthState:
        entry = self.instance.maps.health.get(index) or Health()
        return HealthState(entry.state if entry.id == INCARNATION | index else 0)

    def until_state(self, index: int, state: HealthState) -> None:
        until(lambda: self.runs_and(index, state), 20, what=f"backend {index} {state.name}")

    def runs_and(self, index: int, state: HealthState) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, "the checker ended: see its standard error"
        return self.state(index) is state

    def report(self, index: int) -> dict[str, Any]:
        content = json.loads((self.directory / "health.json").read_text("utf-8"))
        jsonschema.validate(content, SCHEMA)
        entries = (e for e in content["backends"] if e["id"] == INCARNATION | index)
        return next(entries, {})

    def until_reported(self, index: int, state: str) -> dict[str, Any]:
        until(lambda: self.report(index).get("state") == state, what=f"health.json says {state}")
        return self.report(index)

    def close(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait(10)
        self.instance.teardown()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def checker() -> Iterator[Checker]:
    with open_folder() as folder:
        try:
            made = Checker(folder)
        except (kernel.NotPermitted, kernel.Unsupported) as error:
            pytest.skip(str(error))
        try:
            yield made
        finally:
            made.close()


def http(index: int, port: int, **changes: object) -> dict[str, Any]:
    alive = check("http", **{**FAST, "expect": [[200, 299]], **changes})
    return backend(INCARNATION | index, port, check=alive)


def test_a_backend_falls_and_rises_in_the_map(checker: Checker, server: Server) -> None:
    checker.publish(
        http(1, server.port), backend(INCARNATION | 2, closed_port(), check=check(**FAST))
    )
    checker.start()
    checker.until_state(1, HealthState.UP)
    checker.until_state(2, HealthState.DOWN)

    server.status = 503
    checker.until_state(1, HealthState.DOWN)
    assert server.asked[503] >= FAST["fall"]
    fallen = checker.until_reported(1, "down")
    assert fallen["last"]["reason"] == "wrong-status"
    assert fallen["last"]["detail"] == "status 503, expected 200-299"

    before = server.asked[200]
    server.status = 200
    checker.until_state(1, HealthState.UP)
    assert server.asked[200] - before >= FAST["rise"]
    risen = checker.until_reported(1, "up")
    assert risen["counters"]["flips"] == 3
    assert checker.state(2) is HealthState.DOWN
    entry = checker.instance.maps.health.get(1)
    assert entry == Health(id=INCARNATION | 1, state=HealthState.UP, ramp=255)


def test_stopping_leaves_the_map_and_a_restart_takes_it_over(
    checker: Checker, server: Server
) -> None:
    checker.publish(http(1, server.port))
    checker.start()
    checker.until_state(1, HealthState.UP)
    since = checker.until_reported(1, "up")["since"]
    assert checker.end(signal.SIGTERM) == 0
    assert checker.state(1) is HealthState.UP

    server.status = 503  # the first results after the restart are contrary, and too few
    checker.publish(http(1, server.port, fall=1000))
    asked = server.asked[503]
    checker.start()
    until(lambda: server.asked[503] - asked >= 5, what="five failures after the restart")
    assert checker.state(1) is HealthState.UP
    assert checker.until_reported(1, "up")["since"] == since


def test_kill_9_leaves_the_verdicts_and_the_next_checker_goes_on(
    checker: Checker, server: Server
) -> None:
    checker.publish(http(1, server.port))
    checker.start()
    checker.until_state(1, HealthState.UP)
    checker.end(signal.SIGKILL)
    assert checker.state(1) is HealthState.UP
    server.status = 503
    checker.start()
    checker.until_state(1, HealthState.DOWN)


def test_what_is_published_is_followed(checker: Checker, server: Server) -> None:
    checker.publish(http(1, server.port))
    checker.start()
    checker.until_state(1, HealthState.UP)
    checker.publish(http(1, server.port), http(2, server.port, every=0.3))
    checker.until_state(2, HealthState.UP)
    checker.publish(http(2, server.port, every=0.3))
    checker.until_state(1, HealthState.UNKNOWN)
    assert checker.state(2) is HealthState.UP


def test_a_checker_that_was_suspended_flips_nothing(checker: Checker, server: Server) -> None:
    """Stopped in the middle of a probe, for longer than its time-out: the answer was there in time all the same."""
    checker.publish(http(1, server.port, timeout=0.5, every=0.5, fall=1))
    checker.start()
    checker.until_state(1, HealthState.UP)
    assert checker.process is not None
    for _ in range(2):
        server.free.clear()
        before = server.asked[200]
        until(lambda seen=before: server.asked[200] > seen, what="a probe under way")
        checker.process.send_signal(signal.SIGSTOP)
        server.free.set()
        stopped = time.monotonic()
        until(lambda since=stopped: time.monotonic() > since + 1, what="twice the time-out")
        before = server.asked[200]
        checker.process.send_signal(signal.SIGCONT)
        until(lambda seen=before: server.asked[200] > seen, what="a probe after waking")
    assert checker.until_reported(1, "up")["counters"]["flips"] == 1
