"""When the daemons say that they are ready, and what else a service manager hears of them."""

import itertools
import signal
from collections.abc import Iterator

import pytest

from bpf.pins import locked
from tests.support.balancer import CONFIG, Balancer
from tests.support.listener import Listener
from tests.support.unit import unit
from tests.support.wait import until

CHECKED = CONFIG.replace("  web:\n", "  web:\n    check: alive\n").replace(
    "pools:\n", "checks:\n  alive: {type: tcp, every: 200ms, timeout: 200ms}\npools:\n"
)
_numbers = itertools.count()


@pytest.fixture(scope="module")
def running() -> Iterator[Balancer]:
    with Balancer() as made:
        yield made


@pytest.fixture
def listener(running: Balancer) -> Iterator[Listener]:
    with Listener(str(running.folder / "notify")) as made:
        yield made


@pytest.fixture
def balancer(
    running: Balancer, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Balancer]:
    monkeypatch.setenv("NOTIFY_SOCKET", listener.address)
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    yield running
    running.stop()


def test_the_reconciler_is_ready_when_it_forwards_and_not_before(
    balancer: Balancer, listener: Listener
) -> None:
    balancer.config.write_text("apiVersion: evenkeel/v1\npools: {web: nonsense}\n")
    balancer.start(ready=False)
    until(lambda: listener.has_heard("Rejected"), what="why it waits")
    assert not listener.has_heard("READY=1")

    balancer.config.write_text(CONFIG)
    until(lambda: listener.has_heard("READY=1"), what="readiness")
    assert balancer.answering() == {"web1", "web2"}
    assert listener.has_heard("EXTEND_TIMEOUT_USEC=")
    assert listener.has_heard("STATUS=generation 1: 1 services, 2 backends, on lan, wan")

    listener.all.clear()
    until(lambda: listener.all.count("WATCHDOG=1") + len(listener.heard()) > 3, what="its pulse")
    balancer.stop()
    assert listener.has_heard("STOPPING=1")


def test_a_start_that_waits_for_another_process_asks_for_more_time_as_long_as_it_waits(
    balancer: Balancer, listener: Listener
) -> None:
    with locked():
        balancer.launch()
        until(
            lambda: len(extensions(listener)) > 2,
            20,
            what="more time is asked for, again and again",
        )
        assert not listener.has_heard("READY=1")
    until(lambda: listener.has_heard("READY=1"), what="readiness")
    limit = int(unit("reconciler").settings["TimeoutStartSec"].removesuffix("s"))
    assert extensions(listener)[0] > limit, "the verifier, who is next, cannot ask for it"


def extensions(listener: Listener) -> list[float]:
    """Seconds, each time."""
    listener.heard()
    asked = (one.partition("EXTEND_TIMEOUT_USEC=")[2] for one in listener.all)
    return [int(one) / 1e6 for one in asked if one]


def test_a_reload_is_over_once_its_file_is_applied(balancer: Balancer, listener: Listener) -> None:
    balancer.config.write_text(CONFIG)
    balancer.start()
    until(lambda: listener.has_heard("READY=1"), what="readiness")
    before = balancer.status()["applied"]["generation"]
    listener.all.clear()
    balancer.config.write_text(CONFIG.replace("pools:\n", f"# {next(_numbers)}\npools:\n", 1))
    assert balancer.process is not None
    balancer.process.send_signal(signal.SIGHUP)
    until(lambda: listener.has_heard("READY=1"), what="the end of the reload")
    news = [one for one in listener.all if one != "WATCHDOG=1"]
    assert news[0].startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert balancer.status()["applied"]["generation"] == before + 1


def test_healthcheck_is_ready_when_it_follows_targets(
    balancer: Balancer, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    (balancer.run_dir / "targets.json").unlink(missing_ok=True)
    with balancer.checker() as process:
        until(lambda: listener.has_heard("STATUS=waiting: targets: "), what="why it waits")
        assert not listener.has_heard("READY=1")
        monkeypatch.delenv("NOTIFY_SOCKET")
        balancer.config.write_text(CHECKED)
        balancer.start()
        until(lambda: listener.has_heard("STATUS=2 backends, 2 probes"), what="the targets")
        until(lambda: listener.has_heard("READY=1"), what="readiness")
        listener.all.clear()
        process.send_signal(signal.SIGHUP)
        until(lambda: listener.has_heard("READY=1"), what="the end of the reload")
        assert listener.has_heard("RELOADING=1\nMONOTONIC_USEC=")
        until(lambda: listener.has_heard("WATCHDOG=1"), what="its pulse")
    until(lambda: listener.has_heard("STOPPING=1"), what="its end")
