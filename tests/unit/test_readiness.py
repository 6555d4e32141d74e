"""What a service manager hears, at a real socket."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from readiness.manager import ServiceManager
from tests.support.listener import Listener


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listener]:
    name = {"path": str(tmp_path / "notify"), "abstract": f"@evenkeel-test-{os.getpid()}"}
    with Listener(name[request.param]) as made:
        yield made


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_daemon_is_ready_once(listener: Listener) -> None:
    manager = ServiceManager.of({"NOTIFY_SOCKET": listener.address})
    manager.status("waiting\nfor a file")
    manager.status("waiting for a file")
    manager.ready("generation 1")
    manager.ready("generation 2")
    manager.stopping("stopped")
    assert listener.heard() == [
        "STATUS=waiting for a file",
        "STATUS=generation 1",
        "READY=1",
        "STATUS=generation 2",
        "STOPPING=1\nSTATUS=stopped",
    ]


def test_a_reload_is_over_when_the_look_after_it_is(listener: Listener) -> None:
    manager = ServiceManager.of({"NOTIFY_SOCKET": listener.address})
    manager.reloading()
    assert listener.heard() == []  # not even started
    manager.ready("up")
    asked = manager.reloads
    manager.reloading()  # while a look is under way that may have missed what it is about
    manager.ready("up", asked)
    manager.ready("up", manager.reloads)
    told = listener.heard()
    assert told[:2] == ["STATUS=up", "READY=1"]
    assert told[2].startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert told[3:] == ["READY=1"]


def test_two_reloads_are_over_together(listener: Listener) -> None:
    manager = ServiceManager.of({"NOTIFY_SOCKET": listener.address})
    manager.ready("up")
    manager.reloading()
    first = manager.reloads
    manager.reloading()
    manager.ready("up", first)
    assert "READY=1" not in listener.heard()[2:]
    manager.ready("up", manager.reloads)
    assert listener.heard() == ["READY=1"]


def test_the_watchdog_is_fed_at_half_of_its_time() -> None:
    said: list[str] = []
    clock = Clock()
    manager = ServiceManager(said.append, 10.0, clock)
    for _ in range(40):
        manager.alive()
        clock.now += 0.25
    assert said == ["WATCHDOG=1"] * 2
    assert manager.pace < 5


def test_without_a_watchdog_nobody_waits_for_us() -> None:
    said: list[str] = []
    manager = ServiceManager(said.append)
    manager.alive()
    assert (said, manager.pace) == ([], float("inf"))


def test_a_long_start_asks_for_time_as_long_as_it_gets_on() -> None:
    said: list[str] = []
    clock = Clock()
    manager = ServiceManager(said.append, 0.0, clock)
    manager.working()
    manager.working()
    clock.now += 1
    manager.working()
    manager.ready("up")
    clock.now += 1
    manager.working()
    assert said == ["EXTEND_TIMEOUT_USEC=30000000"] * 2 + ["STATUS=up", "READY=1"]


def test_what_we_start_does_not_speak_for_us(listener: Listener) -> None:
    environment = {
        "NOTIFY_SOCKET": listener.address, "WATCHDOG_USEC": "2000000",
        "WATCHDOG_PID": str(os.getpid()), "HOME": "/",
    }  # fmt: skip
    ServiceManager.of(environment).alive()
    assert listener.heard() == ["WATCHDOG=1"]
    assert environment == {"HOME": "/"}


@pytest.mark.parametrize("watchdog", [{"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}, {}])
def test_a_watchdog_for_another_process_is_not_ours(
    listener: Listener, watchdog: dict[str, str]
) -> None:
    ServiceManager.of({"NOTIFY_SOCKET": listener.address, **watchdog}).alive()
    assert listener.heard() == []


def test_a_name_that_is_no_text_is_said_as_well_as_it_can_be(listener: Listener) -> None:
    manager = ServiceManager.of({"NOTIFY_SOCKET": listener.address, "WATCHDOG_USEC": "²"})
    manager.status(os.fsdecode(b"/etc/\xff.yaml: no such file"))
    assert listener.heard() == ["STATUS=/etc/?.yaml: no such file"]


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "/nowhere/notify"])
def test_nobody_who_listens_is_no_trouble(address: str) -> None:
    manager = ServiceManager.of({"NOTIFY_SOCKET": address})
    manager.ready("up")
    manager.reloading()
    manager.stopping("stopped")
