"""Plans against real maps: they change nothing, can be kept, and are refused when they are stale."""

import json
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from bpf import abi, mapset
from bpf.abi import HealthState
from reconciler.loop import writer
from tests.support.box import ROOT, Box, boxed, mac_of
from tests.support.unit import from_a_readable_place

OLD = """\
apiVersion: evenkeel/v1
pools:
  web:
    backends:
      web1: {address: 10.1.2.101, port: 8080}
      web2: {address: 10.1.2.102, port: 8080}
services:
  www: {addresses: [192.0.2.10], ports: [80/tcp], pools: [web]}
"""
NEW = OLD.replace("10.1.2.102, port: 8080", "10.1.2.102, port: 8080, weight: 50")
SCHEMA = json.loads((ROOT / "schemas/plan.schema.json").read_text())


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with boxed(f"ek{os.getpid()}plan", tmp_path_factory.mktemp("box")) as made:
        yield made


@pytest.fixture
def box(loaded: Box) -> Box:
    """As the old file says, whatever the test before did."""
    loaded.neighbour("10.1.2.101", mac_of(1))
    loaded.neighbour("10.1.2.102", mac_of(2))
    loaded.write(OLD)
    loaded.run("--once")
    loaded.bed.instance.maps.live.put_many((at, 0) for at in range(8))
    return loaded


def dump(box: Box) -> dict[str, object]:
    """Every map there is, whatever it is for; and every pin."""
    maps = box.bed.instance.maps
    tables = {
        name: {at: maps[name].get(at) for at in maps[name].indexes()}
        for name in ("tables", "spares")
    }
    plain = {name: maps[name].items() for name in mapset.names() if name not in tables}
    root = Path("/sys/fs/bpf/evenkeel", box.place.instance)
    return {**plain, **tables, "pins": sorted(str(path) for path in root.rglob("*"))}


def files(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("output", ["text", "json"])
def test_a_dry_run_writes_nothing_and_takes_no_lock(box: Box, output: str) -> None:
    box.write(NEW)
    before, kept = dump(box), files(box.place.run_dir)
    assert before["backends"]
    assert before["pins"]
    with writer(box.place):
        said = box.run("--dry-run", "--output", output, "--detailed-exitcode", ok=(2,)).stdout
    assert "web/web2" in said
    assert dump(box) == before
    assert files(box.place.run_dir) == kept


def test_the_document_is_what_the_schema_says(box: Box) -> None:
    box.write(NEW)
    document = json.loads(box.run("--dry-run", "--output", "json").stdout)
    jsonschema.validate(document, SCHEMA)
    (change,) = document["changes"]
    assert (change["action"], change["name"]) == ("update", "www/ipv4")
    assert document["map_writes"]["tables"] == 1


def test_two_dry_runs_say_the_same_and_only_a_terminal_gets_colour(box: Box) -> None:
    box.write(NEW)
    first, second = box.run("--dry-run").stdout, box.run("--dry-run").stdout
    assert first == second
    assert "\033" not in first
    assert "\033[33m" in in_terminal(box, NO_COLOR="", TERM="xterm")
    assert "\033" not in in_terminal(box, NO_COLOR="1", TERM="xterm")


def in_terminal(box: Box, **environment: str) -> str:
    """What the command prints to a terminal."""
    ours, its = os.openpty()
    try:
        subprocess.run(
            box.line("--dry-run"), cwd=ROOT, stdout=its, check=True, timeout=60,
            env={**os.environ, **environment},
        )  # fmt: skip
        return os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(its)


def test_drift_is_told_apart_from_what_the_file_changes(box: Box) -> None:
    drifted = [k for k, _ in box.bed.instance.maps.frontends4.items() if k.port == 80]
    box.bed.instance.maps.frontends4.delete_many(drifted)
    assert drifted
    box.write(NEW)
    document = json.loads(box.run("--dry-run", "--output", "json").stdout)
    assert [c["name"] for c in document["changes"]] == ["www/ipv4"]
    assert document["changes"][0]["detail"] == ""
    drift = {(c["kind"], c["name"], c["detail"]) for c in document["drift"]}
    assert drift == {("frontends4", "192.0.2.10:80/tcp", "missing")}


# ---- saved


def test_a_saved_plan_is_applied_as_it_was_made(box: Box, tmp_path: Path) -> None:
    box.write(NEW)
    plan = tmp_path / "change.plan"
    box.run("--dry-run", "--out", str(plan))
    saved = json.loads(plan.read_text())
    jsonschema.validate(saved, SCHEMA)
    assert saved["plan_id"] in box.run("apply", "--plan", str(plan)).stdout
    assert {e.weight for e in box.read().backends.values()} == {100, 50}
    assert box.run("--dry-run", "--detailed-exitcode").stdout


def test_an_applied_plan_cannot_be_applied_again(box: Box, tmp_path: Path) -> None:
    box.write(NEW)
    plan = tmp_path / "change.plan"
    box.run("--dry-run", "--out", str(plan))
    box.run("apply", "--plan", str(plan))
    said = box.run("apply", "--plan", str(plan), ok=(4,)).stderr
    assert "the maps do not say any more what they said then" in said


def test_another_file_makes_a_plan_stale(box: Box, tmp_path: Path) -> None:
    box.write(NEW)
    plan = tmp_path / "change.plan"
    box.run("--dry-run", "--out", str(plan))
    box.write(NEW + "# reviewed\n")
    before = dump(box)
    said = box.run("apply", "--plan", str(plan), ok=(4,)).stderr
    assert "stale, nothing was done" in said
    assert "the configuration is not the one" in said
    assert dump(box) == before


def test_health_counters_and_flows_do_not_make_a_plan_stale(box: Box, tmp_path: Path) -> None:
    box.write(NEW)
    plan = tmp_path / "change.plan"
    box.run("--dry-run", "--out", str(plan))
    maps = box.bed.instance.maps
    at, entry = next(iter(box.read().backends.items()))
    maps.health.put(at, abi.Health(id=entry.id, state=HealthState.UP, ramp=255))
    maps.live.put(at, 7)
    box.neighbour("10.1.2.101", mac_of(9))
    box.run("apply", "--plan", str(plan))


def test_live_flows_of_a_changed_backend_are_told(box: Box) -> None:
    box.write(NEW)
    changed = next(at for at, e in box.read().backends.items() if bytes(e.addr)[3] == 102)
    box.bed.instance.maps.live.put(changed, 12)
    assert "12 live flows" in box.run("--dry-run").stdout


# ---- two files, by nobody in particular


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Where another user may read: pytest's own folders are closed to them."""
    folder = Path(tempfile.mkdtemp(prefix=f"ek{os.getpid()}"))
    folder.chmod(stat.S_IRWXU | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH)
    yield folder
    shutil.rmtree(folder)


NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def as_nobody(*arguments: str, ok: int = 0) -> subprocess.CompletedProcess[str]:
    command = from_a_readable_place(NOBODY, "-m", "reconciler", *arguments)
    done = subprocess.run(
        command, cwd=ROOT, text=True, capture_output=True, check=False, timeout=60
    )
    assert done.returncode == ok, done.stderr
    return done


def test_two_files_are_compared_without_kernel_or_privilege(open_folder: Path) -> None:
    old, new = open_folder / "old.yaml", open_folder / "new.yaml"
    old.write_text(OLD)
    new.write_text(NEW.replace("80/tcp]", "80/tcp, 443/tcp]"))
    options = ("--dry-run", "--config", str(new), "--against", str(old))
    said = as_nobody(*options, "--detailed-exitcode", ok=2).stdout
    assert "weight 100 -> 50" in said
    assert "+ 192.0.2.10:443/tcp" in said
    assert f"{new}:6" in said
    jsonschema.validate(json.loads(as_nobody(*options, "--output", "json").stdout), SCHEMA)
    same = ("--dry-run", "--config", str(old), "--against", str(old))
    assert "no changes" in as_nobody(*same, "--detailed-exitcode").stdout


def test_a_wrong_file_is_rejected_in_a_comparison_too(open_folder: Path) -> None:
    old, new = open_folder / "old.yaml", open_folder / "new.yaml"
    old.write_text(OLD)
    new.write_text(NEW.replace("pools: [web]", "pools: [wob]"))
    options = ("--dry-run", "--config", str(new), "--against", str(old))
    assert f"{new}:8:" in as_nobody(*options, ok=3).stderr


def test_without_privilege_the_live_maps_are_not_to_be_had_and_that_is_said(
    open_folder: Path, box: Box
) -> None:
    file, node = open_folder / "lb.yaml", open_folder / "node.yaml"
    file.write_text(OLD)
    node.write_text((box.place.run_dir / "node.yaml").read_text())
    said = as_nobody(
        "--dry-run", "--config", str(file), "--node", str(node), "--instance", box.place.instance,
        "--state-dir", str(open_folder), "--run-dir", str(open_folder), ok=1,
    ).stderr  # fmt: skip
    assert "--against FILE" in said


@pytest.mark.parametrize(
    "wrong",
    [("--against", "x"), ("--out", "x"), ("--dry-run", "--against", "x", "--out", "y")],
)
def test_options_that_make_no_sense_together_are_usage_errors(wrong: tuple[str, ...]) -> None:
    as_nobody(*wrong, ok=64)
