"""Health end to end: a backend dies under load, and comes back; all die; the checker dies."""

import contextlib
import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from bpf import kernel
from bpf.abi import HealthState
from tests.support.balancer import BACKEND_PORT, PORT, Balancer
from tests.support.exposition import samples
from tests.support.lab import SERVICE
from tests.support.traffic import Connection
from tests.support.wait import until

CONFIG = """\
apiVersion: evenkeel/v1
checks:
  alive: {type: http, path: /, every: 1s, timeout: 500ms, rise: 2, fall: 2, fast: 200ms, slow-start: 3s}
pools:
  web:
    check: alive
    backends:
%s
  sorry:
    check: alive
    backends: {b6: {address: 10.1.2.106, port: 8080}}
services:
  www:
    addresses: [192.0.2.10]
    ports: [80/tcp]
    pools: [web, sorry]
    forward: nat
    down-flows: keep
    panic: 40%%
"""
WEB = [f"b{n}" for n in range(1, 6)]
DETECTED = 1.5  # seconds


class Checked(Balancer):
    backends = 6

    def _build(self) -> None:
        super()._build()
        lines = (f"      {name}: {{address: 10.1.2.10{name[1]}, port: 8080}}" for name in WEB)
        self.config.write_text(CONFIG % "\n".join(lines))
        self.check: subprocess.Popen[bytes] | None = None
        self.callback(self.end_check)

    def start_check(self) -> None:
        self.check = self.start_healthcheck()

    def end_check(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.check is not None:
            self.check.send_signal(how)
            self.check.wait(15)
            self.check = None

    def report(self) -> dict[str, dict[str, Any]]:
        """health.json, by the names of backends."""
        try:
            content = json.loads((self.run_dir / "health.json").read_text("utf-8"))
        except FileNotFoundError:
            return {}
        return {one["name"].partition("/")[2]: one for one in content["backends"]}

    def states(self) -> dict[str, str]:
        return {name: one["state"] for name, one in self.report().items()}

    def counters(self) -> dict[str, dict[str, Any]]:
        return {name: one["counters"] for name, one in self.report().items()}

    def entry(self, name: str) -> tuple[HealthState, int]:
        """What the map says of a backend, ramp included."""
        with kernel.Instance.open(self.name, read_only=True) as instance:
            number = self.report()[name]["id"]
            entry = next(one for _, one in instance.maps.health.items() if one.id == number)
            return HealthState(entry.state), entry.ramp

    def all_up(self) -> None:
        until(lambda: set(self.states().values()) == {"up"}, 30, what="all six up")
        until(lambda: self.entry("b1")[1] == self.entry("b5")[1] == 255, 30, what="whole shares")

    def who(self) -> str:
        with Connection(self.lab.client, SERVICE[4], PORT) as connection:
            return connection.get().backend


class Callers:
    """New connections, one after the other, each with the time it began and who answered."""

    def __init__(self, balancer: Checked) -> None:
        self._balancer = balancer
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._call)
        self.calls: list[tuple[float, str]] = []

    def __enter__(self) -> "Callers":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def since(self, began: float) -> list[str]:
        return [who for at, who in list(self.calls) if at >= began]

    def _call(self) -> None:
        while not self._stop.is_set():
            at = time.monotonic()
            try:
                self.calls.append((at, self._balancer.who()))
            except OSError:
                self.calls.append((at, "nobody"))


@pytest.fixture(scope="module")
def balancer() -> Iterator[Checked]:
    with Checked() as made:
        made.start()
        made.start_check()
        yield made


def test_one_of_five_dies_under_load_and_comes_back_slowly(balancer: Checked) -> None:
    balancer.all_up()
    with contextlib.ExitStack() as stack, Callers(balancer) as callers:
        flows = [
            stack.enter_context(Connection(balancer.lab.client, SERVICE[4], PORT))
            for _ in range(30)
        ]
        where = [flow.get().backend for flow in flows]
        assert "b3" in where

        balancer.lab.kill_server(balancer.lab.backends[2])
        died = time.monotonic()
        until(lambda: callers.since(died + DETECTED + 1.0), 20, what="traffic after the detection")
        late = callers.since(died + DETECTED)
        assert set(late) <= {"b1", "b2", "b4", "b5"}
        stayed = [(flow, who) for flow, who in zip(flows, where, strict=True) if who != "b3"]
        assert [flow.get().backend for flow, _ in stayed] == [who for _, who in stayed]
        until(lambda: balancer.states().get("b3") == "down", what="health.json says so")
        assert balancer.report()["b3"]["last"]["reason"] == "refused"
        refused = 'evenkeel_backend_check_reasons_total{pool="web",backend="b3",reason="refused"}'
        until(lambda: samples(balancer.http("/metrics")[1]).get(refused, 0) >= 2, what="the metric")
        assert "up -> down: refused" in (balancer.folder / "checker.log").read_text()

        balancer.lab.serve(balancer.lab.backends[2], BACKEND_PORT)
        ramps = []
        until(
            lambda: ramps.append(balancer.entry("b3")) or ramps[-1] == (HealthState.UP, 255),
            20,
            what="its whole share",
        )
        rising = [ramp for state, ramp in ramps if state is HealthState.UP]
        assert rising == sorted(rising)
        assert len(set(rising)) > 3
        back = time.monotonic()
        until(lambda: "b3" in callers.since(back), 20, what="traffic to it again")
        assert [flow.get().backend for flow, _ in stayed] == [who for _, who in stayed]


def test_the_checker_is_killed_and_nothing_changes(balancer: Checked) -> None:
    balancer.all_up()
    before = {name: balancer.entry(name) for name in balancer.report()}
    balancer.end_check(signal.SIGKILL)
    told = balancer.counters()
    assert balancer.who() in WEB
    assert {name: balancer.entry(name) for name in before} == before

    def stale() -> bool:
        conditions = balancer.status()["conditions"]
        return any(one["reason"] == "StaleReport" for one in conditions)

    assert not stale()
    until(stale, 30, what="a condition that says that verdicts are old")
    balancer.start_check()
    until(
        lambda: all(
            now["passed"] >= told[name]["passed"] + 2 for name, now in balancer.counters().items()
        ),
        20,
        what="two rounds of the new checker",
    )
    assert {n: one["flips"] for n, one in balancer.counters().items()} == {
        n: one["flips"] for n, one in told.items()
    }
    assert {name: balancer.entry(name) for name in before} == before


def test_a_backend_that_comes_and_goes_at_the_panic_share_does_not_move_clients(
    balancer: Checked,
) -> None:
    """40 % of five are two; a pool that fell below that serves again with three."""

    def alive(*names: str) -> None:
        for name, backend in zip(WEB, balancer.lab.backends, strict=False):
            runs = balancer.states()[name] == "up"
            if runs and name not in names:
                balancer.lab.kill_server(backend)
            elif not runs and name in names:
                balancer.lab.serve(backend, BACKEND_PORT)
        until(
            lambda: {n for n in WEB if balancer.states()[n] == "up"} == set(names),
            20,
            what="checks",
        )

    def short() -> list[dict[str, Any]]:
        return list(balancer.status()["services"][0]["short"])

    balancer.all_up()
    assert short() == []
    alive("b1")
    until(lambda: balancer.who() == "b6", what="the next pool")
    until(short, what="the status says so")
    (first,) = short()
    assert (first["usable"], first["backends"], first["panic_at"], first["serves_at"]) == (
        1,
        5,
        2,
        3,
    )
    for names in (("b1", "b2"), ("b1",), ("b1", "b2")):
        alive(*names)
        until(lambda: short()[0]["usable"] == len(names), what="a status of that")  # noqa: B023
        assert {balancer.who() for _ in range(10)} == {"b6"}
    assert short()[0]["since"] == first["since"]
    alive("b1", "b2", "b3")
    until(lambda: balancer.who() in WEB, what="the pool itself again")
    until(lambda: short() == [], what="a status of that")
    alive("b1", "b2")
    assert "b6" not in {balancer.who() for _ in range(10)}
    alive(*WEB)


def test_one_that_is_removed_and_returns_keeps_its_connections(balancer: Checked) -> None:
    balancer.all_up()
    whole = balancer.config.read_text().replace("    down-flows: keep\n", "")
    balancer.config.write_text(whole)
    with contextlib.ExitStack() as stack:
        flows = [
            stack.enter_context(Connection(balancer.lab.client, SERVICE[4], PORT))
            for _ in range(30)
        ]
        old = next(flow for flow in flows if flow.get().backend == "b2")
        balancer.config.write_text(
            "".join(line for line in whole.splitlines(keepends=True) if " b2:" not in line)
        )
        until(lambda: "b2" not in balancer.report(), 20, what="b2 to be gone from the checks")

        balancer.config.write_text(whole)

        def served_and_up() -> bool:
            assert old.get().backend == "b2"
            return balancer.states().get("b2") == "up"

        until(served_and_up, 20, interval=0.01, what="b2 up again")
        assert old.get().backend == "b2"


def test_all_die_and_the_next_pool_serves_then_the_first_whole(balancer: Checked) -> None:
    balancer.all_up()
    for backend in balancer.lab.backends[:5]:
        balancer.lab.kill_server(backend)
    until(lambda: [balancer.states()[name] for name in WEB] == ["down"] * 5, 20, what="all down")
    until(lambda: balancer.who() == "b6", what="the next pool")
    assert {balancer.who() for _ in range(10)} == {"b6"}

    balancer.lab.kill_server(balancer.lab.backends[5])
    until(lambda: balancer.states()["b6"] == "down", 20, what="the last one down")
    for backend in balancer.lab.backends[:5]:  # alive again, and not known to be yet
        balancer.end_check(signal.SIGKILL)
        balancer.lab.serve(backend, BACKEND_PORT)
    assert {balancer.who() for _ in range(20)} <= set(WEB)
