"""Every example is a file that the programs accept; `make check` says the same of the whole tree."""

from pathlib import Path

import pytest

from reconciler import cli

EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIGURATIONS = sorted(EXAMPLES.glob("**/lb.yaml"))


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.parent.name)
def test_an_example_is_valid(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node = ["--node", str(path.with_name("node.yaml"))]
    assert cli.main(["validate", str(path), *node]) == 0, capsys.readouterr().err
