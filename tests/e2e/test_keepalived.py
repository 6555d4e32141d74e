"""keepalived's own judgement of the example, on links of its names."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.lab import ROOT
from tests.support.namespace import Namespace
from tests.support.pair import EXAMPLE, needs_keepalived

pytestmark = needs_keepalived
INSTALLED = "/usr/libexec/evenkeel/evenkeel-check"
LINKS = "link add wan type veth peer name wan-far\nlink add lan type veth peer name lan-far\n"


@pytest.fixture(scope="module")
def place() -> Iterator[Namespace]:
    made = Namespace(f"ek{os.getpid()}nkeepalived")
    try:
        made.ip(LINKS)
        yield made
    finally:
        made.delete()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where nobody but root may write: keepalived asks of every folder above."""
    with tempfile.TemporaryDirectory(prefix=f"ek{os.getpid()}-", dir="/var/lib") as made:
        Path(made).chmod(0o755)
        shutil.copy(ROOT / "libexec/evenkeel-check", made)
        yield Path(made)


@pytest.mark.parametrize("name", ["lb1", "lb2"])
def test_keepalived_accepts_the_example(place: Namespace, folder: Path, name: str) -> None:
    text = (EXAMPLE / name / "keepalived.conf").read_text()
    file = folder / "keepalived.conf"
    file.write_text(text.replace(INSTALLED, str(folder / "evenkeel-check")))
    done = subprocess.run(
        place.inside("keepalived", "-t", "-f", str(file)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not re.search("ignor|disabl|unknown|remov", done.stdout + done.stderr, re.IGNORECASE)


def test_both_files_differ_in_name_and_priority_alone() -> None:
    one, two = ((EXAMPLE / name / "keepalived.conf").read_text() for name in ("lb1", "lb2"))
    lines = zip(one.splitlines(), two.splitlines(), strict=True)
    words = {left.split()[0] for left, right in lines if left != right and left[0] != "#"}
    assert words == {"router_id", "priority"}
