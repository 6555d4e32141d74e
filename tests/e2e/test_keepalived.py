"""keepalived's own judgement of the example; and how it ignores scripts, beside what doctor says of them.

keepalived is root's, as in its own unit: it sends raw packets and moves addresses. So is `reconciler doctor`, which
an operator types. None of our daemons runs here.
"""

import contextlib
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from reconciler import cli
from tests.support.lab import ROOT
from tests.support.namespace import Namespace
from tests.support.pair import EXAMPLE, needs_keepalived
from tests.support.wait import until

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


# ---- scripts that keepalived ignores

CONF = """\
global_defs {{
  vrrp_version 3
  enable_script_security
  {user}
}}
vrrp_script chk {{
  script "{script}"
  interval 1
  timeout 1
  fall 1
  init_fail
}}
vrrp_script count {{
  script "{count}"
  interval 1
  weight -1
  user root
}}
vrrp_instance VI {{
  interface wan
  state BACKUP
  virtual_router_id {number}
  priority 100
  advert_int 0.1
  virtual_ipaddress {{
    10.99.0.{number}/32
  }}
  track_script {{
    chk
    count
  }}
}}
"""
NODE = "apiVersion: evenkeel/v1\ninterfaces: {wan: {}, lan: {}}\n"
_numbers = itertools.count(1)


@dataclass(slots=True)
class Site:
    """A keepalived that tracks a script which always fails: unless it ignores it, it is never master."""

    place: Namespace
    folder: Path
    user: str = "script_user root"
    script: Path = field(init=False)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.script = self.folder / "chk"
        self.write(self.script, "#!/bin/sh\nexit 1\n")
        self.write(self.folder / "count", f"#!/bin/sh\necho >>{self.folder}/runs\n")

    def write(self, path: Path, text: str, mode: int = 0o755) -> None:
        path.write_text(text)
        path.chmod(mode)

    def start(self) -> None:
        file = self.folder / "k.conf"
        pids = ("-p", str(self.folder / "pid"), "-r", str(self.folder / "vpid"))
        command = ("keepalived", "--dont-fork", "--log-console", "--vrrp", "-f", str(file), *pids)
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(self.place.inside(*command), stdout=log, stderr=log)

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait(15)

    def says(self, what: str) -> bool:
        return what in (self.folder / "log").read_text()

    def runs(self) -> int:
        path = self.folder / "runs"
        return len(path.read_text()) if path.exists() else 0

    def doctor(self) -> list[str]:
        """Names of its warnings about scripts."""
        file, node = self.folder / "k.conf", self.folder / "node.yaml"
        node.write_text(NODE)
        if not file.exists():
            text = CONF.format(
                user=self.user,
                script=self.script,
                count=self.folder / "count",
                number=next(_numbers),
            )
            file.write_text(text)
        out = io.StringIO()
        with self.place.entered(), contextlib.redirect_stdout(out):
            cli.main(["doctor", "--node", str(node), "--keepalived", str(file), "--output", "json"])
        found = json.loads(out.getvalue())["findings"]
        return [one["name"] for one in found if one["about"] == "vrrp_script chk"]


@pytest.fixture
def site(place: Namespace, folder: Path) -> Iterator[Site]:
    place.ip("link set lo up\nlink set wan up\nlink set wan-far up\n")
    place.ip("addr replace 10.98.0.1/24 dev wan\n")
    made = Site(place, folder)
    yield made
    made.stop()


def test_a_script_that_is_run_is_heard_and_doctor_has_nothing_to_say(site: Site) -> None:
    assert site.doctor() == []
    site.start()
    until(lambda: site.says("VRRP_Script(chk) failed (exited with status 1)"), what="the script")
    assert not site.says("Entering MASTER STATE")


def in_an_open_folder(site: Site) -> None:
    (site.folder / "open").mkdir()
    (site.folder / "open").chmod(0o777)
    site.script = site.script.rename(site.folder / "open/chk")


def missing(site: Site) -> None:
    site.script.unlink()


def nobody_to_run_it(site: Site) -> None:
    site.user = ""


def somebody_else_to_run_it(site: Site) -> None:
    site.user = "script_user evenkeel-ghost"


def without_interpreter(site: Site) -> None:
    site.write(site.script, "#!/no/such/python3\nexit 1\n")


def without_first_line(site: Site) -> None:
    site.write(site.script, "exit 1\n")


def written_on_windows(site: Site) -> None:
    site.script.write_bytes(b"#!/bin/sh\r\nexit 1\r\n")


def without_permission(site: Site) -> None:
    site.script.chmod(0o644)


@pytest.mark.parametrize(
    ("breaks", "name"),
    [
        (in_an_open_folder, "vrrp-script-insecure"),
        (missing, "vrrp-script-missing"),
        (nobody_to_run_it, "vrrp-script-user"),
        (somebody_else_to_run_it, "vrrp-script-user"),
        (without_interpreter, "vrrp-script-interpreter"),
        (without_first_line, "vrrp-script-interpreter"),
        (written_on_windows, "vrrp-script-interpreter"),
        (without_permission, "vrrp-script-permission"),
    ],
)
def test_a_script_that_keepalived_ignores_is_found_by_doctor(
    site: Site, breaks: Callable[[Site], None], name: str
) -> None:
    breaks(site)
    assert site.doctor() == [name]
    site.start()
    until(lambda: site.says("Entering MASTER STATE"), what="master without its script")


def test_a_script_deleted_meanwhile_is_found_by_doctor_and_by_nobody_else(site: Site) -> None:
    site.write(site.script, "#!/bin/sh\nexit 0\n")
    assert site.doctor() == []
    site.start()
    until(lambda: site.says("Entering MASTER STATE"), what="master")
    site.script.unlink()
    before = site.runs()
    until(lambda: site.runs() >= before + 3, what="three more looks")
    assert not site.says("VRRP_Script(chk) failed")
    assert not site.says("FAULT")
    assert site.doctor() == ["vrrp-script-deleted"]


def test_what_keepalived_takes_for_secure_doctor_does_too(site: Site) -> None:
    """keepalived -t is asked about the same paths."""
    sticky = site.folder / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    owned, grouped, writable = (site.folder / name for name in ("owned", "grouped", "writable"))
    for path in (sticky / "chk", owned, grouped, writable):
        site.write(path, "#!/bin/sh\nexit 1\n")
    os.chown(owned, 65534, -1)
    os.chown(grouped, -1, 65534)
    grouped.chmod(0o775)
    writable.chmod(0o757)
    (site.folder / "link").symlink_to(sticky / "chk")
    for path in (sticky / "chk", owned, grouped, writable, site.folder / "link", site.script):
        site.script = path
        (site.folder / "k.conf").unlink(missing_ok=True)
        ours = "vrrp-script-insecure" in site.doctor()
        theirs = subprocess.run(
            site.place.inside("keepalived", "-t", "-f", str(site.folder / "k.conf")),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ours == ("insecure" in theirs.stdout + theirs.stderr), (path, theirs)


def test_the_pair_of_the_example_is_well_and_a_broken_file_is_said(
    place: Namespace, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = folder / "node.yaml"
    node.write_text(NODE)
    files = []
    for name in ("lb1", "lb2"):
        files.append(folder / f"{name}.conf")
        text = (EXAMPLE / name / "keepalived.conf").read_text()
        files[-1].write_text(text.replace(INSTALLED, str(folder / "evenkeel-check")))
    options = [word for file in files for word in ("--keepalived", str(file))]
    line = ["doctor", "--node", str(node), *options]
    with place.entered():
        cli.main(line)
        assert "vrrp" not in capsys.readouterr().out
        files[1].write_text("vrrp_instance edge {\n")
        assert cli.main(line) == 1
    assert f"{files[1]}:1: the block is not closed" in capsys.readouterr().err
