"""Files as they are given to the program: every example is accepted, and one that is missing is told with its option."""

from pathlib import Path

import pytest

from reconciler import cli

EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIGURATIONS = sorted(EXAMPLES.glob("**/lb.yaml"))


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.parent.name)
def test_an_example_is_valid_on_each_of_its_nodes(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = sorted(path.parent.glob("**/node.yaml"))
    assert nodes
    for node in nodes:
        assert cli.main(["validate", str(path), "--node", str(node)]) == 0, capsys.readouterr().err


NODE = str(EXAMPLES / "quickstart/node.yaml")
LB = str(EXAMPLES / "quickstart/lb.yaml")
MISSING = {
    "validate none.yaml": "name the files to validate, or one with --config",
    "validate --config none.yaml": "name the files to validate, or one with --config",
    f"validate {LB} --node none.yaml": "name another with --node",
    f"--dry-run --config {LB} --node none.yaml": "name another with --node",
    f"--dry-run --config none.yaml --node {NODE}": "name another with --config",
    f"--dry-run --against none.yaml --config {LB}": "name the one to compare with --against",
    f"--dry-run --against {LB} --config none.yaml": "name the one to compare with --config",
    f"--once --config {LB} --node none.yaml": "name another with --node",
}


@pytest.mark.parametrize(("arguments", "remedy"), MISSING.items())
def test_a_missing_file_is_told_with_the_option_that_names_it(
    arguments: str, remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments.replace("none.yaml", str(tmp_path / "none.yaml")).split()
    assert cli.main(words) == 1
    said = capsys.readouterr().err
    assert f"{tmp_path}/none.yaml: there is no such file; " in said
    assert remedy in said
