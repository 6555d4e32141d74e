"""What the daemons' users may do suffices, and what root does beside them is theirs to change."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpf.kernel import Instance
from bpf.pins import Pins
from reconciler.privilege import act_as_owner, keep_effective
from tests.support.acting import mask
from tests.support.balancer import CONFIG, NODE, Balancer, Done, forked
from tests.support.lab import BALANCER, ROOT
from tests.support.objects import SAME, changed
from tests.support.unit import from_a_readable_place, unit
from tests.support.wait import until

WAYS = {
    "source": f"type: tcp, source: {BALANCER[4]}",
    "interface": "type: tcp, interface: lan",
    "fwmark": "type: tcp, fwmark: 7",
    "ping": "type: icmp",
    "marked-ping": f"type: icmp, fwmark: 7, interface: lan, source: {BALANCER[4]}",
}
LARGER = NODE.replace("flows4: 8192", "flows4: 16384")


def every_way() -> str:
    """A check of each kind that wants something of the kernel, on one backend in a pool of its own."""
    pace = "every: 300ms, timeout: 300ms, rise: 1, fall: 2"
    checks = "".join(f"  {name}: {{{way}, {pace}}}\n" for name, way in WAYS.items())
    pools = "".join(
        f"  {name}:\n    check: {name}\n    backends: {{one: {{address: 10.1.2.101, port: 8080}}}}\n"
        for name in WAYS
    )
    text = CONFIG.replace("pools:\n", f"checks:\n{checks}pools:\n{pools}", 1)
    return text.replace("pools: [web]", f"pools: [web, {', '.join(WAYS)}]")


@pytest.fixture(scope="module")
def balancer() -> Iterator[Balancer]:
    with Balancer() as made:
        made.config.write_text(every_way())
        made.start()
        with made.checker() as process:
            made.check = process  # type: ignore[attr-defined]
            until((made.run_dir / "health.json").exists, 20, what="a report")
            yield made


def health(balancer: Balancer) -> dict[str, Any]:
    content = json.loads((balancer.run_dir / "health.json").read_text("utf-8"))
    return {one["name"]: one for one in content["backends"]}


def owners(*folders: Path) -> set[int]:
    found = (path for folder in folders for path in (folder, *folder.rglob("*")))
    return {path.lstat().st_uid for path in found}


def test_the_daemons_have_the_users_and_capabilities_of_their_units(balancer: Balancer) -> None:
    """What else these tests prove of them depends on it."""
    assert balancer.process is not None
    processes = (("reconciler", balancer.process.pid), ("healthcheck", balancer.check.pid))  # type: ignore[attr-defined]
    for daemon, pid in processes:
        wanted = f"{mask(unit(daemon).capabilities):016x}"
        said = dict(
            re.findall(r"^(\w+):\t(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        )
        assert {said[kind] for kind in ("CapPrm", "CapEff", "CapBnd")} == {wanted}
        assert said["NoNewPrivs"] == "1"
        assert set(said["Uid"].split()) == {str(unit(daemon).uid)}
        assert set(said["Gid"].split()) == {str(unit(daemon).gid)}
        assert said["Groups"].strip() == ""


def test_checks_by_source_interface_mark_and_ping_need_no_more_than_the_unit_has(
    balancer: Balancer,
) -> None:
    wanted = {f"{name}/one": "up" for name in WAYS}

    def states() -> dict[str, str]:
        return {name: one["state"] for name, one in health(balancer).items()}

    until(lambda: states() == wanted, 20, what="every check up")


def test_a_check_that_its_unit_does_not_allow_says_what_is_missing(balancer: Balancer) -> None:
    bare = (
        "setpriv", "--reuid", str(unit("healthcheck").uid), "--regid", str(unit("healthcheck").gid),
        "--clear-groups", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs",
    )  # fmt: skip
    targets = str(balancer.run_dir / "targets.json")
    asked = ("-m", "healthcheck", "--once", "--output", "json", "--targets", targets)
    done = subprocess.run(
        balancer.host.inside(*from_a_readable_place(bare, *asked)),
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    rows = {one["name"]: one for one in json.loads(done.stdout)["backends"]}
    assert done.returncode == 1
    assert {rows[f"{name}/one"]["outcome"] for name in ("source", "interface")} == {"pass"}
    for name in ("fwmark", "marked-ping", "ping"):
        assert rows[f"{name}/one"]["outcome"] == "neutral", "what we may not do is no verdict"
        assert "CAP_NET_RAW" in rows[f"{name}/one"]["detail"]


def test_what_root_upgrades_undoes_and_resizes_stays_the_daemons(
    balancer: Balancer, tmp_path: Path
) -> None:
    uid = unit("reconciler").uid
    pins = Pins.of(balancer.name).directory
    same = changed(tmp_path, "same", SAME)
    for arguments in (("--object", str(same)), ("--undo",)):
        _upgraded(balancer, *arguments)
        assert owners(pins, balancer.state_dir) == {uid}
    balancer.node.write_text(LARGER)
    _upgraded(balancer)
    assert owners(pins, balancer.state_dir) == {uid}
    assert owners(balancer.run_dir) == {uid, unit("healthcheck").uid}
    with Instance.open(balancer.name, read_only=True) as instance:
        assert instance.sizes().flows4 == 16384

    balancer.config.write_text(every_way().replace("port: 8080}", "port: 8080, weight: 7}", 1))
    assert balancer.command("sync").returncode == 0, "the daemon writes what root has made"
    balancer.stop()
    balancer.start()
    _upgraded(balancer, "--undo")
    assert owners(pins, balancer.state_dir) == {uid}
    assert balancer.answering() == {"web1", "web2"}


def _upgraded(balancer: Balancer, *arguments: str) -> None:
    with balancer.lab.balancer.entered():
        done = balancer.command("upgrade", "--node", str(balancer.node), *arguments)
    assert done.returncode == 0, done


def test_root_that_may_not_become_the_daemons_user_says_what_it_lacks(balancer: Balancer) -> None:
    """As in a unit with a short CapabilityBoundingSet."""

    def attempt() -> Done:
        keep_effective(0)
        try:
            act_as_owner(balancer.home)
        except PermissionError as error:
            return Done(1, "", str(error))
        return Done(0, "", "")

    said = forked(attempt).stderr
    assert f"{balancer.home} is uid {unit('reconciler').uid}'s" in said
    assert "CAP_SETUID and CAP_SETGID are missing" in said


def test_roots_healthcheck_leaves_nothing_that_the_units_could_not_replace(
    balancer: Balancer,
) -> None:
    before = {path.name for path in balancer.run_dir.iterdir()}
    done = subprocess.run(
        balancer.host.inside(
            sys.executable, "-m", "healthcheck", "--instance", balancer.name,
            "--run-dir", str(balancer.run_dir),
        ),
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"is uid {unit('reconciler').uid}'s" in done.stderr
    assert "systemctl start evenkeel-healthcheck" in done.stderr
    assert {path.name for path in balancer.run_dir.iterdir()} == before
