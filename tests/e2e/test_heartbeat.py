"""The real daemon's heartbeat, and what the script makes of it while parts of the balancer go."""

import signal
import subprocess
from collections.abc import Iterator

import pytest

from bpf.pins import Pins
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


def test_a_teardown_leaves_no_heartbeat(balancer: Balancer) -> None:
    balancer.stop()
    assert fit(balancer), "stopping changes nothing"
    assert balancer.command("teardown").returncode == 0
    assert says(balancer, "dataplane") == UNUSABLE
