"""`reconciler validate`: the same errors for people, for programs and for pull requests."""

import json
from pathlib import Path

import jsonschema
import pytest

from reconciler import cli
from tests.support.lab import ROOT

SCHEMA = json.loads((ROOT / "schemas/validate.schema.json").read_text())
GOOD = ROOT / "examples/nat/lb.yaml"
BAD = """\
apiVersion: evenkeel/v1
pools:
  web: {backends: {web1: {address: 10.1.2.101, port: 80800}}}
services:
  www: {addresses: [192.0.2.10], ports: [80/tcp], pools: [web, "a:b,c%"]}
"""


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "a, b.yaml"
    path.write_text(BAD)
    return path


def test_text_goes_where_a_compiler_writes_it(
    bad: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["validate", str(GOOD), str(bad)]) == 3
    out, err = capsys.readouterr()
    assert out.startswith(f"{GOOD}: ok")
    assert f"{bad}:3:54: error: " in err
    assert f"{bad}:5:" in err


def test_json_has_every_file_and_its_schema(bad: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["validate", str(GOOD), str(bad), "--output", "json"]) == 3
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, SCHEMA)
    good, wrong = document["files"]
    assert (good["path"], good["ok"], good["problems"]) == (str(GOOD), True, [])
    assert [(one["line"], one["column"]) for one in wrong["problems"]] == [(3, 54), (5, 64)]
    assert cli.main(["validate", str(GOOD), "--output", "json"]) == 0


def test_github_is_told_by_workflow_commands(bad: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["validate", str(GOOD), str(bad), "--output", "github"]) == 3
    first, second = capsys.readouterr().out.splitlines()
    name = str(bad).replace(",", "%2C")
    assert first.startswith(f"::error file={name},line=3,col=54::pools[web].backends[web1].port: ")
    assert "'a:b,c%25' is not a name" in second


def test_a_wrong_node_file_is_one_of_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = tmp_path / "node.yaml"
    node.write_text("apiVersion: evenkeel/v1\ninterfaces: {}\nsise: 1\n")
    files = ("validate", str(GOOD), "--node", str(node), "--output", "json")
    assert cli.main([*files]) == 3
    wrong, good = json.loads(capsys.readouterr().out)["files"]
    assert (wrong["path"], good["path"]) == (str(node), str(GOOD))
    assert any("sise" in one["message"] for one in wrong["problems"])
