"""What an operator reads who names a wrong file, or has nowhere to write: where, what and what to do; no traceback."""

import errno
import json
from pathlib import Path

import pytest

from bpf.errors import plainly
from healthcheck import cli as checker
from reconciler import cli, durable
from tests.support.lab import ROOT

LB, NODE = ROOT / "examples/quickstart/lb.yaml", ROOT / "examples/quickstart/node.yaml"
WAYS = {
    "validate": ("validate", "{}"),
    "validate's node file": ("validate", str(LB), "--node", "{}"),
    "dry run": ("--dry-run", "--against", str(LB), "--config", "{}"),
    "dry run's node file": ("--dry-run", "--node", "{}"),
    "doctor": ("doctor", "--node", str(NODE), "--config", "{}"),
    "doctor's node file": ("doctor", "--node", "{}"),
    "saved plan": ("apply", "--plan", "{}"),
}


@pytest.fixture(params=("binary", "utf-16", "a directory", "nothing", "nowhere"))
def wrong(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "named.yaml"
    if request.param == "binary":
        path.write_bytes(b"apiVersion: evenkeel/v1\npools: \xa2\xff\0")
    elif request.param == "utf-16":
        path.write_bytes(LB.read_text().encode("utf-16"))
    elif request.param == "a directory":
        path.mkdir()
    elif request.param == "nothing":
        path.touch()
    return path


@pytest.mark.parametrize("way", WAYS)
def test_a_wrong_file_is_named_whatever_is_in_it(
    wrong: Path, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([word.format(wrong) for word in WAYS[way]]) in (1, 3)
    said = capsys.readouterr().err
    assert str(wrong) in said
    assert "Errno" not in said


def test_a_file_that_is_no_text_is_pointed_at_to_the_byte(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lb.yaml"
    path.write_bytes(b"apiVersion: evenkeel/v1\npools: \xa2\n")
    assert cli.main(["validate", str(path), "--output", "json"]) == 3
    (found,) = json.loads(capsys.readouterr().out)["files"]
    (problem,) = found["problems"]
    assert (problem["line"], problem["column"]) == (2, 8)
    assert problem["message"] == "byte 0xa2 is not UTF-8"


def test_a_tab_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lb.yaml"
    path.write_text("apiVersion: evenkeel/v1\npools:\n\tweb: {}\n")
    assert cli.main(["validate", str(path)]) == 3
    said = capsys.readouterr().err
    assert f"{path}:3:1: error" in said
    assert "a tab?" in said


def test_a_checker_without_targets_says_who_publishes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "targets.json"
    for command in (["--once"], ["probe", "web/web1"]):
        assert checker.main(["--targets", str(path), *command]) == 1
        said = capsys.readouterr().err
        assert said == f"healthcheck: {path}: not there; the reconciler publishes it when it runs\n"


def test_a_full_disk_is_told_by_the_name_of_what_was_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="suspension") as raised:
        durable.write(tmp_path / "suspension.json", "{}")
    assert plainly(raised.value) == (
        f"{tmp_path}/suspension.json: No space left on device; make room there"
    )
    assert list(tmp_path.iterdir()) == []


def test_no_override_is_said_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["override", "--state-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "no override is in force\n"


def test_interfaces_as_a_list_are_answered_with_how_to_write_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "node.yaml"
    path.write_text("apiVersion: evenkeel/v1\ninterfaces: [wan, lan]\n")
    assert cli.main(["validate", "--node", str(path)]) == 3
    assert "hint: each a key: {wan: {...}, lan: {...}}" in capsys.readouterr().err


def test_a_keepalived_file_that_moves_no_address_is_not_passed_as_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keepalived.conf"
    path.write_text("global_defs {\n}\n")
    cli.main(["doctor", "--node", str(NODE), "--keepalived", str(path)])
    assert f"warning  {path}: has no vrrp_instance" in capsys.readouterr().out
