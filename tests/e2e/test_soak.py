"""The soak finds nothing in twenty seconds, ends when it is told to, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import namespace
from tests.support.lab import BPFFS, ROOT

PROGRESS = 4  # lines, one every five seconds


@contextmanager
def soak(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        (sys.executable, "-m", "tests.soak", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)


def left_by(process: subprocess.Popen[str]) -> list[Path]:
    places = [place for place in (namespace.FOLDER, BPFFS) if place.is_dir()]
    return [path for place in places for path in place.glob(f"ek{process.pid}n*")]


def test_twenty_seconds_of_everything_are_explained_and_ctrl_c_ends_them_with_a_report() -> None:
    with soak("--duration", "1h", "--seed", "5") as process:
        assert process.stdout is not None
        told = 0
        while told < PROGRESS:
            line = process.stdout.readline()
            assert line, "it ended before it was told to"
            told += "echoes" in line
        assert left_by(process)
        os.kill(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert "TCP requests answered" in output
    assert output.splitlines()[-1].startswith("soak ok: nothing unexplained"), output
    assert left_by(process) == []
