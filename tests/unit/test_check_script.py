"""The script that keepalived runs: every heartbeat it may meet, in dash, without starting a process."""

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from reconciler.heart import since_boot
from reconciler.heartbeat import Heartbeat
from tests.support.lab import ROOT

NOBODY = 65534
WELL, UNFIT, UNUSABLE, CANNOT_LOOK, USAGE = 0, 1, 2, 3, 64
HERE = "lo"  # there and up in every network namespace that a test may run in


@dataclass(frozen=True, slots=True)
class Script:
    folder: Path

    @property
    def heartbeat(self) -> Path:
        return self.folder / "heartbeat"

    def write(self, text: str) -> None:
        self.heartbeat.write_text(text, encoding="utf-8", errors="surrogateescape")

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """As somebody who may not start any process, and has no PATH to find one in."""
        return subprocess.run(
            ["/bin/dash", self.folder / "evenkeel-check", *arguments],
            env={"PATH": ""},
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
            user=NOBODY if os.geteuid() == 0 else None,
            preexec_fn=forbid_processes,
        )

    def says(self, *arguments: str) -> int:
        return self.run("--heartbeat", str(self.heartbeat), *arguments).returncode


def forbid_processes() -> None:
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


@pytest.fixture(scope="module")
def script() -> Iterator[Script]:
    with TemporaryDirectory(prefix="ek-check-") as folder:
        Path(folder).chmod(0o755)
        shutil.copy(ROOT / "libexec/evenkeel-check", folder)
        yield Script(Path(folder))


def beat(script: Script, age: float = 0, **changes: object) -> Heartbeat:
    there = str(script.folder)
    plain = {
        "dataplane": "ok",
        "control": "ok",
        "generation": 7,
        "pins": (there,),
        "interfaces": (HERE,),
    }
    return Heartbeat(at=int(since_boot() - age), **{**plain, **changes})  # type: ignore[arg-type] # fmt: skip


def test_the_cage_is_one(script: Script) -> None:
    """Else the other tests would prove nothing about processes."""
    forks = script.folder / "forks"
    forks.write_text("#!/bin/dash\nx=$(:)\nexit 0\n")
    caged = Script(script.folder)
    done = subprocess.run(
        ["/bin/dash", forks],
        capture_output=True,
        check=False,
        text=True,
        user=NOBODY if os.geteuid() == 0 else None,
        preexec_fn=forbid_processes,
    )
    assert done.returncode != 0
    assert "fork" in done.stderr
    assert caged.run("--help").returncode == WELL


def test_a_fresh_heartbeat_is_well(script: Script) -> None:
    script.write(beat(script).text())
    assert script.says("dataplane") == WELL
    assert script.says("control") == WELL
    assert script.says("control", "10") == WELL


def test_a_stale_one_says_that_the_loop_is_gone_and_no_more(script: Script) -> None:
    script.write(beat(script, age=8).text())
    assert script.says("dataplane") == WELL, "what is pinned forwards without the daemon"
    assert script.says("control") == UNFIT
    assert script.says("control", "3") == UNFIT
    assert script.says("control", "60") == WELL


def test_each_signal_has_its_own_state(script: Script) -> None:
    script.write(beat(script, dataplane="NotAttached").text())
    assert (script.says("dataplane"), script.says("control")) == (UNFIT, WELL)
    script.write(beat(script, control="Rejected").text())
    assert (script.says("dataplane"), script.says("control")) == (WELL, UNFIT)
    assert "control: Rejected" in script.run("--heartbeat", str(script.heartbeat), "control").stderr


@pytest.mark.parametrize("age", [0, since_boot()])
def test_the_script_looks_at_pins_itself(script: Script, age: float) -> None:
    gone = str(script.folder / "gone")
    script.write(beat(script, age, pins=(str(script.folder), gone)).text())
    assert script.says("dataplane") == UNFIT
    assert script.says("control", "999999999") == WELL


@pytest.mark.parametrize("name", ["no-such-device", "..", ".", "../net/lo", "", "lo lo", "*"])
def test_the_script_looks_at_interfaces_itself(script: Script, name: str) -> None:
    script.write(beat(script, interfaces=(HERE, name)).text())
    assert script.says("dataplane") == UNFIT


def test_every_part_of_a_heartbeat_is_none(script: Script) -> None:
    whole = beat(script).text()
    for length in range(len(whole)):
        script.write(whole[:length])
        assert script.says("dataplane") == UNUSABLE, whole[:length]
        assert script.says("control") == UNUSABLE, whole[:length]


def test_a_missing_heartbeat_is_no_health(script: Script) -> None:
    script.heartbeat.unlink(missing_ok=True)
    assert script.says("dataplane") == UNUSABLE
    assert script.says("control") == UNUSABLE
    script.heartbeat.mkdir()
    assert script.says("dataplane") == UNUSABLE
    script.heartbeat.rmdir()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.replace("heartbeat 1", "heartbeat 2"),
        lambda text: text.replace("at ", "at x"),
        lambda text: text.replace("at ", "at -"),
        lambda text: text.replace("at ", "at 0"),
        lambda text: text.replace("at ", "at 99999999999999999999"),
        lambda text: text.replace("at ", "at a[$(touch $0)]"),
        lambda text: text.replace("at ", "at $(touch pwned) "),
        lambda text: text.replace("generation 7", "generation `touch pwned`"),
        lambda text: text.replace("control ok", "control"),
        lambda text: text.replace("control ok\n", ""),
        lambda text: text.replace("dataplane ok", "surprise ok"),
        lambda text: text.replace("\n", " "),
        lambda text: text.replace("end", "pin /\n" * 2000 + "end"),
        lambda text: text[::-1],
        lambda _: "\x00\xff\n" * 9,
        lambda _: "\n",
        lambda _: "end\n",
    ],
)  # fmt: skip
def test_garbage_is_no_health(script: Script, spoil: object) -> None:
    assert callable(spoil)
    script.write(spoil(beat(script).text()))
    assert script.says("dataplane") == UNUSABLE
    assert script.says("control") == UNUSABLE


def test_nothing_that_it_reads_is_carried_out(script: Script) -> None:
    trap = script.folder / "trap"
    evil = f"$(:>{trap})`:>{trap}`;:>{trap}"
    script.folder.chmod(0o777)
    try:
        for change in ("dataplane", "control"):
            script.write(beat(script, **{change: evil}).text())
            assert script.says("dataplane") != script.says("control")
        script.write(beat(script, pins=(evil,), interfaces=(evil,)).text())
        assert script.says("dataplane") == UNFIT
    finally:
        script.folder.chmod(0o755)
    assert not trap.exists()


def test_a_heartbeat_of_another_boot_is_none(script: Script) -> None:
    script.write(beat(script, age=-1000).text())
    assert script.says("dataplane") == UNUSABLE
    assert script.says("control", "9999") == UNUSABLE


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, which nobody is not: sudo make test")
def test_who_may_not_look_says_so(script: Script) -> None:
    script.write(beat(script).text())
    script.heartbeat.chmod(0)
    try:
        assert script.says("dataplane") == CANNOT_LOOK
    finally:
        script.heartbeat.chmod(0o644)


@pytest.mark.parametrize(
    "line",
    [
        "", "health", "dataplane 5", "control soon", "control 5 6", "control 08", "--heartbeat",
        "--instance", "--verbose dataplane",
    ],
)  # fmt: skip
def test_wrong_use_is_told_apart_from_ill_health(script: Script, line: str) -> None:
    done = script.run(*line.split())
    assert done.returncode == USAGE
    assert "usage: evenkeel-check" in done.stderr


def test_help_names_every_exit_code(script: Script) -> None:
    said = script.run("--help").stdout
    for code in ("0 well", "1 not", "2 no usable", "3 cannot look", "64 usage"):
        assert code in said


def test_an_instance_has_its_place(script: Script) -> None:
    done = script.run("--instance", "no-such-instance", "dataplane")
    assert done.returncode == UNUSABLE
    assert "/run/evenkeel/no-such-instance/heartbeat" in done.stderr
