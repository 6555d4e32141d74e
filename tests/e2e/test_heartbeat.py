"""The real daemon's heartbeat, and what the script makes of it while parts of the balancer go."""

import signal
import subprocess
from collections.abc import Iterator

import pytest

from bpf.pins import Pins, locked
from tests.support.balancer import CONFIG, Balancer
from tests.support.lab import ROOT
from tests.support.wait import until

WELL, UNFIT, UNUSABLE = 0, 1, 2


@pytest.fixture(scope="module")
def host() -> Iterator[Balancer]:
    with Balancer() as made:
        yield made


@pytest.fixture
def balancer(host: Balancer) -> Balancer:
    """As it should be, whatever the test before left."""
    host.config.write_text(CONFIG)
    host.start()
    until(lambda: says(host, "control") == WELL and fit(host), what="a healthy heartbeat")
    return host


def says(balancer: Balancer, *signal_: str) -> int:
    """As keepalived would run it."""
    script = str(ROOT / "libexec/evenkeel-check")
    path = str(balancer.run_dir / "heartbeat")
    command = balancer.lab.balancer.seeing(script, "--heartbeat", path, *signal_)
    return subprocess.run(command, capture_output=True, check=False).returncode


def fit(balancer: Balancer) -> bool:
    return says(balancer, "dataplane") == WELL


def test_a_killed_loop_goes_stale_while_the_data_plane_stays_fit(balancer: Balancer) -> None:
    assert fit(balancer)
    balancer.stop(signal.SIGKILL)
    until(lambda: says(balancer, "control", "1") == UNFIT, what="a stale heartbeat")
    assert fit(balancer)
    assert balancer.request() in {"web1", "web2"}
    balancer.start()
    until(lambda: says(balancer, "control", "1") == WELL, what="the loop is back")


def test_a_dead_loops_last_word_is_no_proof(balancer: Balancer) -> None:
    balancer.stop(signal.SIGKILL)
    balancer.lab.balancer.ip("link set lan down\n")
    assert not fit(balancer)
    balancer.lab.balancer.ip("link set lan up\n")
    until(lambda: fit(balancer), what="lan is up")
    Pins.of(balancer.name).link("lan").unlink()
    assert not fit(balancer)


def test_a_broken_file_is_the_control_planes_matter(balancer: Balancer) -> None:
    balancer.config.write_text(CONFIG.replace("pools: [web]", "pools: [absent]"))
    until(lambda: says(balancer, "control") == UNFIT, what="the broken file was seen")
    assert "control Rejected\n" in (balancer.run_dir / "heartbeat").read_text()
    assert fit(balancer)


def test_a_loop_that_waits_for_another_process_beats_says_so_and_stops_when_told(
    balancer: Balancer,
) -> None:
    """As when that one loads a program, which takes seconds on a slow machine."""
    before = balancer.status()["applied"]["generation"]
    with locked():
        balancer.config.write_text(CONFIG.replace("port: 8080}", "port: 8080, weight: 7}", 1))
        until(lambda: waits(balancer), what="its status says that a pass waits")
        beat = balancer.beat()
        until(lambda: balancer.beat() > beat + 1, what="its heart goes on")
        assert says(balancer, "control", "2") == WELL
        assert balancer.status()["applied"]["generation"] == before
    until(lambda: balancer.status()["applied"]["generation"] > before, what="the pass")
    until(lambda: not waits(balancer), what="it waits no more")
    with locked():
        balancer.config.write_text(CONFIG)
        until(lambda: waits(balancer), what="another pass waits")
        process = balancer.process
        balancer.stop()
    assert process is not None
    assert process.returncode == 0


def waits(balancer: Balancer) -> bool:
    return bool(balancer.condition("ProgramCurrent")["reason"] == "Waiting")


def test_a_teardown_leaves_no_heartbeat(balancer: Balancer) -> None:
    balancer.stop()
    assert fit(balancer), "stopping changes nothing"
    assert balancer.command("teardown").returncode == 0
    assert says(balancer, "dataplane") == UNUSABLE
