"""The demo does what it says and leaves nothing behind, however it ends."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import namespace
from tests.support.lab import BPFFS, ROOT
from tests.support.wait import until

RUN_DIR = Path("/run/evenkeel")


@contextmanager
def demo(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = (sys.executable, ROOT / "examples/demo/demo.py", *arguments)
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)


def left_by(process: subprocess.Popen[str]) -> list[Path]:
    places = [place for place in (namespace.FOLDER, BPFFS, RUN_DIR) if place.is_dir()]
    return [path for place in places for path in place.glob(f"ek{process.pid}n*")]


def test_fast_shows_everything_and_leaves_nothing() -> None:
    with demo("--fast") as process:
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert output.count("  ok: ") == 15
    assert left_by(process) == []


def test_ctrl_c_takes_it_down() -> None:
    with demo() as process:
        until(lambda: left_by(process), 30, what="the lab")
        _read_until(process, "spread by weight")
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0, rest
    assert "taken down" in rest
    assert left_by(process) == []


def test_a_closed_terminal_takes_it_down_and_the_next_removes_what_a_killed_one_left() -> None:
    with demo("--two-targets") as process:
        until(lambda: left_by(process), 30, what="the lab")
        process.kill()
    killed = process
    assert left_by(killed) != []
    with demo("--two-targets") as process:
        assert f"ek{killed.pid}n" in _read_until(process, "removing what it left")
        _read_until(process, "half of them each")
        assert left_by(killed) == []
        assert process.stdout is not None
        process.stdout.close()
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 1
    assert left_by(process) == []


def _read_until(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout is not None
    said = ""
    while words not in said:
        assert select.select([process.stdout], [], [], 60)[0], said
        line = process.stdout.readline()
        assert line, said
        said += line
    return said
