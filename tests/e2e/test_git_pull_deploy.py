"""The script of examples/pull-deploy, run for real: what it publishes and what it refuses.

By root, because that is whose lb.yaml is; with no more capabilities than its unit has. tests/e2e/package runs the unit.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.balancer import CONFIG, NODE
from tests.support.lab import ROOT
from tests.support.repository import Repository, allowed_signers, signing_key
from tests.support.unit import unit_at

SCRIPT = ROOT / "examples/pull-deploy/evenkeel-deploy"
UNIT = unit_at(SCRIPT.with_name("evenkeel-deploy.service"), "evenkeel-deploy")
OTHER = CONFIG.replace("port: 8080}", "port: 8080, weight: 50}", 1)


class Deploy:
    """A repository, a signer and a target; `run` is one tick of the timer."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.target = folder, folder / "etc/lb.yaml"
        self.target.parent.mkdir()
        self.upstream = Repository(folder / "upstream")
        self.ops = signing_key(folder, "ops")
        self.signers = allowed_signers(folder, self.ops)
        (folder / "node.yaml").write_text(NODE)
        self.first = ""

    def run(self) -> subprocess.CompletedProcess[str]:
        reconciler = (
            sys.executable, "-m", "reconciler", "--instance", f"ek{os.getpid()}none",
            "--node", str(self.folder / "node.yaml"), "--run-dir", str(self.folder / "run"),
        )  # fmt: skip
        settings = {
            "REPO": self.upstream.url,
            "TARGET": str(self.target),
            "STATE": str(self.folder / "state"),
            "ALLOWED_SIGNERS": str(self.signers),
            "RECONCILER": " ".join(reconciler),
            "PYTHONPATH": str(ROOT),
        }
        return subprocess.run(
            (*UNIT.privileges(), str(SCRIPT)),
            env=os.environ | settings,
            capture_output=True,
            text=True,
            check=False,
        )

    def published(self) -> tuple[str, str]:
        """The commit, and the content below the line that names it."""
        first, _, rest = self.target.read_text().partition("\n")
        return first.removeprefix("# commit: "), rest


@pytest.fixture
def deploy(tmp_path: Path) -> Deploy:
    made = Deploy(tmp_path)
    made.first = made.upstream.commit(CONFIG, key=made.ops)
    result = made.run()
    assert result.returncode == 0, result.stderr
    assert made.published() == (made.first, CONFIG)
    return made


def refused(deploy: Deploy, why: str) -> None:
    before = deploy.target.read_bytes()
    result = deploy.run()
    assert result.returncode == 1, result.stderr
    assert why in result.stderr
    assert deploy.target.read_bytes() == before
    assert list(deploy.target.parent.iterdir()) == [deploy.target], "nothing is left lying about"


def test_a_signed_commit_is_published_by_rename(deploy: Deploy) -> None:
    inode = deploy.target.stat().st_ino
    commit = deploy.upstream.commit(OTHER, key=deploy.ops)
    assert deploy.run().returncode == 0
    assert deploy.published() == (commit, OTHER)
    assert deploy.target.stat().st_ino != inode


def test_nothing_new_touches_nothing_and_an_absent_repository_neither(deploy: Deploy) -> None:
    before = deploy.target.stat()
    assert deploy.run().returncode == 0
    assert deploy.target.stat().st_mtime_ns == before.st_mtime_ns
    deploy.upstream.folder.rename(deploy.folder / "away")
    refused(deploy, "cannot fetch")


def test_unsigned_commits_and_strangers_signatures_are_refused(deploy: Deploy) -> None:
    deploy.upstream.commit(OTHER)
    refused(deploy, "no good signature")
    deploy.upstream.commit(OTHER + "# more\n", key=signing_key(deploy.folder, "stranger"))
    refused(deploy, "no good signature")


def test_a_force_push_is_refused_and_a_signed_revert_is_not(deploy: Deploy) -> None:
    second = deploy.upstream.commit(OTHER, key=deploy.ops)
    assert deploy.run().returncode == 0
    deploy.upstream.reset(deploy.first)
    refused(deploy, "was it force-pushed?")
    deploy.upstream.reset(second)
    reverted = deploy.upstream.revert(key=deploy.ops)
    assert deploy.run().returncode == 0
    assert deploy.published() == (reverted, CONFIG)


def test_a_mistake_in_the_file_is_refused_by_the_dry_run(deploy: Deploy) -> None:
    deploy.upstream.commit(CONFIG.replace("[web]", "[wbe]"), key=deploy.ops)
    refused(deploy, "the dry run")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    for unit in ("evenkeel-deploy.service", "evenkeel-deploy.timer"):
        text = (SCRIPT.parent / unit).read_text()
        (tmp_path / unit).write_text(text.replace("/usr/local/bin/evenkeel-deploy", str(SCRIPT)))
    units = sorted(str(path) for path in tmp_path.iterdir())
    command = ("systemd-analyze", "verify", "--man=no", *units)
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    about_us = [line for line in result.stderr.splitlines() if "evenkeel-deploy" in line]
    assert (result.returncode, about_us) == (0, []), result.stderr
