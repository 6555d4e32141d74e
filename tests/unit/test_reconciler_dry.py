"""A dry run between two files, where there is no node.yaml: in CI, for every file that may be."""

import json
from pathlib import Path

import pytest

from reconciler import cli
from tests.support.lab import ROOT

FILES = sorted((ROOT / "examples").glob("*/lb.yaml"))
TEXT = """\
apiVersion: evenkeel/v1
pools:
  web: {backends: {web1: {address: 10.0.0.1, port: 80}, web2: {address: 10.0.0.2, port: 80}}}
  six: {backends: {six1: {address: "2001:db8::1", port: 80}}}
services:
  full: {addresses: [192.0.2.1], ports: [80/tcp], pools: [web], forward: fullnat}
  full6: {addresses: ["2001:db8:1::1"], ports: [80/tcp], pools: [six], forward: fullnat}
  tunnel: {addresses: [192.0.2.2], ports: [80/tcp], pools: [web, six], forward: ipip}
  gue: {addresses: [192.0.2.3], ports: [80/tcp], pools: [six], forward: gue}
tests:
  - {name: full, packet: "198.51.100.7:41000 -> 192.0.2.1:80/tcp", expect: {pool: web}}
"""
POOLS = TEXT[: TEXT.index("services:")]
PLAIN = f"{POOLS}services:\n  www: {{addresses: [192.0.2.9], ports: [80/tcp], pools: [web]}}\n"


def between(old: Path, new: Path, *options: str) -> int:
    files = ("--config", str(new), "--against", str(old), "--node", str(old.with_name("none.yaml")))
    return cli.main(["--dry-run", "--detailed-exitcode", *files, *options])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_every_example_compares_without_a_node_file(path: Path, tmp_path: Path) -> None:
    same = tmp_path / "lb.yaml"
    same.write_text(path.read_text())
    assert between(same, path) == 0


def test_modes_that_need_something_of_the_node_compare_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(TEXT)
    new.write_text(TEXT.replace("10.0.0.2", "10.0.0.3").replace("forward: gue", "forward: ipip"))
    assert between(old, new, "--output", "json") == 2
    changes = json.loads(capsys.readouterr().out)["changes"]
    assert {change["name"] for change in changes} == {"full/ipv4", "tunnel", "gue"}


def test_size_is_no_matter_where_no_node_says_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    many = ", ".join(f"b{i}: {{address: 10.1.{i // 250}.{1 + i % 250}}}" for i in range(5000))
    old.write_text(TEXT)
    new.write_text(TEXT.replace("pools:\n", f"pools:\n  many: {{backends: {{{many}}}}}\n", 1).replace(
        "pools: [web],", "pools: [web, many],"
    ))  # fmt: skip
    assert between(old, new) == 2
    assert "do not fit" not in capsys.readouterr().out


def test_with_a_node_file_what_does_not_fit_there_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new, node = (tmp_path / f"{name}.yaml" for name in ("old", "new", "node"))
    many = ", ".join(f"b{i}: {{address: 10.1.0.{1 + i}}}" for i in range(40))
    old.write_text(PLAIN)
    new.write_text(
        f"apiVersion: evenkeel/v1\npools: {{many: {{backends: {{{many}}}}}}}\nservices:\n"
        "  big: {addresses: [192.0.2.1], ports: [80/tcp], pools: [many]}\n"
    )
    node.write_text("apiVersion: evenkeel/v1\ninterfaces: {eth0: {}}\nsizes: {backends: 16}\n")
    files = ("--config", str(new), "--against", str(old), "--node", str(node))
    assert cli.main(["--dry-run", "--detailed-exitcode", *files]) == 4
    assert "services[big]: 40 more backends do not fit" in capsys.readouterr().out
    assert cli.main(["validate", str(new), "--node", str(node)]) == 3
    said = capsys.readouterr().err
    assert "new.yaml:4:1: error: services[big]: 40 more backends do not fit" in said
    assert "sizes.backends of at least 41 in node.yaml, which says 16" in said
