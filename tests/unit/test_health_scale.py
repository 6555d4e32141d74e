"""Ten thousand targets, hours of time, and a machine that runs out of something: no wrong flip."""

import errno
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from healthcheck import probes
from healthcheck.checker import Engine, Watch
from healthcheck.exchange import Result
from healthcheck.health import State
from healthcheck.schedule import Beat, seed
from tests.support.health import (
    FAIL,
    PASS,
    Asks,
    Clock,
    a_fleet,
    backend,
    check,
    pass_until,
)

MANY = 10_000
HOUR = 3600.0
UP, DOWN = State.UP, State.DOWN
ONE, TWO = check(fall=1), check(rise=2, fall=2)


def test_an_hour_of_the_engine_is_a_probe_each_time_it_is_due_and_no_idle_look() -> None:
    """How long it takes is the bench's to say; that nothing but a start wakes an engine with nothing under way is its cause."""
    clock, heard = Clock(), Counter[int]()

    def report(watch: Watch, result: Result, latency: float) -> None:
        heard[id(watch)] += 1

    engine = Engine(report, clock=clock)
    for number in range(8):
        engine.watch(Asks(lambda: PASS), Beat(seed(f"target {number}"), 2.0), 1.0)
    looks = pass_until(engine, clock, clock.now + HOUR)
    engine.close()
    assert {abs(times - 1800) <= 2 for times in heard.values()} == {True}
    assert looks <= heard.total() + 1


def test_ten_thousand_fail_together_and_are_in_the_map_in_one_write() -> None:
    entries = [
        backend(n, address=f"10.0.{n // 250}.{n % 250}", check=ONE) for n in range(1, MANY + 1)
    ]
    with a_fleet(*entries, states=dict.fromkeys(range(1, MANY + 1), UP)) as (fleet, health_map):
        for watch in fleet.watches():
            fleet.learn(watch, FAIL, 0.001)
        fleet.settle()
        assert health_map.batches == [dict.fromkeys(range(1, MANY + 1), DOWN)]


def test_ten_thousand_that_flap_flip_when_they_should_and_never_else() -> None:
    entries = [
        backend(n, address=f"10.0.{n // 250}.{n % 250}", check=TWO) for n in range(1, MANY + 1)
    ]
    with a_fleet(*entries, states=dict.fromkeys(range(1, MANY + 1), UP)) as (fleet, health_map):
        watches = fleet.watches()
        for result in (FAIL, PASS, FAIL, PASS, FAIL):
            for watch in watches:
                fleet.learn(watch, result, 0.001)
            fleet.settle()
        assert health_map.batches == []
        for watch in watches[::2]:
            fleet.learn(watch, FAIL, 0.001)
        fleet.settle()
        assert sum(state is DOWN for state in health_map.states.values()) == MANY / 2


def test_a_clock_that_jumps_moves_nothing() -> None:
    """Times for people come from the wall clock, everything else from one that does not jump."""
    wall = Clock(1.7e9)
    with a_fleet(backend(1, check=TWO), states={1: UP}, now=wall) as (fleet, health_map):
        watch = fleet.watches()[0]
        due = watch.due
        for jump in (-1e8, 2e8, -1e9):
            wall.now += jump
            fleet.hear(PASS)
            fleet.look()
        assert watch.due == due
        assert health_map.batches == []


def test_a_minute_without_the_process_flips_nobody() -> None:
    """As SIGSTOP does it."""
    clock, heard = Clock(), list[Result]()

    def report(watch: Watch, result: Result, latency: float) -> None:
        heard.append(result)

    engine = Engine(report, clock=clock)
    for number in range(200):
        engine.watch(Asks(lambda: PASS), Beat(seed(f"target {number}"), 1.0), 0.5)
    pass_until(engine, clock, clock.now + 3)
    before = len(heard)
    clock.now += 60
    engine.wake()
    pass_until(engine, clock, clock.now + 1)
    engine.close()
    assert len(heard) - before < 450  # no catching up
    assert set(heard) == {PASS}


# ---- when this machine runs out of something


@pytest.mark.parametrize(
    "error", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL]
)
def test_what_we_lack_for_an_hour_flips_nobody_and_is_a_condition(
    error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(probes, "Socket", none)
    with a_fleet(backend(1, check=TWO), backend(2, 81), states={1: UP, 2: DOWN}) as (
        fleet,
        verdicts,
    ):
        clock = Clock(fleet.engine.clock())
        fleet.engine.clock = clock
        pass_until(fleet.engine, clock, clock.now + 60)
        assert verdicts.batches == []
        fleet.publish()
        said = {one.type: one.message for one in fleet.conditions.all()}
        assert said["own-trouble"].startswith("2 of 2 backends could not be probed: ")


EXHAUSTED = """
import socket, subprocess, sys
from pathlib import Path
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("40000 40031")
from healthcheck.stock import Stock
from tests.support.health import LOOPBACK, probe, subject
with socket.create_server((LOOPBACK, 8080)) as server:
    where = subject(8080)
    print(probe(where).outcome.name)
    held = []
    while True:
        one = socket.socket()
        try:
            one.connect((LOOPBACK, 8080))
        except OSError:
            break
        held.append(one)
    result = probe(where)
    print(result.outcome.name, result.reason, len(held))
"""


def test_no_port_left_is_not_the_backends_fault() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: a network namespace")
    run = ["unshare", "--net", sys.executable, "-c", EXHAUSTED]
    done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=Path.cwd())
    assert done.stdout.splitlines() == ["PASS", "NEUTRAL own-trouble 32"], done.stderr


LINK_LOCAL = """
import socket, subprocess
for command in ("link add ek0 type veth peer name ek1", "addr add fe80::7/64 dev ek0 nodad", "link set ek0 up",
                "link set ek1 up", "link set lo up"):
    subprocess.run(["ip", *command.split()], check=True)
from tests.support.health import probe, subject
with socket.socket(socket.AF_INET6) as server:
    server.bind(("::", 8080))
    server.listen()
    print(probe(subject(8080, "fe80::7", interface="ek0", fwmark=7)).outcome.name)
    print(probe(subject(8080, "fe80::7")).outcome.name)
"""


def test_a_link_local_address_needs_its_interface() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: a network namespace")
    run = ["unshare", "--net", sys.executable, "-c", LINK_LOCAL]
    done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=Path.cwd())
    assert done.stdout.splitlines() == ["PASS", "NEUTRAL"], done.stderr
