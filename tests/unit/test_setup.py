"""The set-up script says what is missing and what to do about it, and is quiet when nothing is."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SETUP = Path(__file__).parents[2] / "scripts/setup"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A PATH with nothing on it but what every machine has."""
    for tool in ("bash", "dirname", "awk"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    return tmp_path


def has(machine: Path, command: str, script: str) -> None:
    (machine / command).write_text(f"#!/bin/sh\n{script}\n")
    (machine / command).chmod(0o755)


def setup(machine: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SETUP, "packages"],
        env=os.environ | {"PATH": str(machine)},
        capture_output=True,
        text=True,
        check=False,
    )


def wanted(machine: Path) -> list[str]:
    """The packages that are asked for, as the script itself names them."""
    has(machine, "dpkg-query", "exit 1")
    has(machine, "id", "echo 1000")
    return setup(machine).stderr.partition("(")[2].partition(")")[0].split()


def test_a_user_is_told_the_packages_and_to_be_root(machine: Path) -> None:
    has(machine, "dpkg-query", "echo clang installed")
    has(machine, "id", "echo 1000")
    done = setup(machine)
    assert done.returncode == 1
    assert "sudo make setup" in done.stderr
    assert "python3-bpfcc" in done.stderr
    assert "clang" not in done.stderr


def test_without_a_network_it_says_so(machine: Path) -> None:
    has(machine, "dpkg-query", "exit 1")
    has(machine, "id", "echo 0")
    has(machine, "apt-get", "exit 100")
    done = setup(machine)
    assert done.returncode == 1
    assert "is there a network" in done.stderr


def test_root_gets_exactly_what_is_missing(machine: Path) -> None:
    packages = wanted(machine)
    have, missing = packages[:-2], packages[-2:]
    has(machine, "dpkg-query", "\n".join(f"echo {name} installed" for name in have))
    has(machine, "id", "echo 0")
    has(machine, "apt-get", f'echo "$@" >>{machine}/asked')
    assert setup(machine).returncode == 0
    assert (machine / "asked").read_text().splitlines()[-1].split()[-2:] == missing


def test_what_is_done_costs_no_word(machine: Path) -> None:
    packages = wanted(machine)
    has(machine, "dpkg-query", "\n".join(f"echo {name} installed" for name in packages))
    done = setup(machine)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_elsewhere_it_names_what_to_install(machine: Path) -> None:
    done = setup(machine)
    assert done.returncode == 1
    assert "no Debian or Ubuntu" in done.stderr
    assert "libbpf-dev" in done.stderr
