"""What readers copy from the documents is what the project ships."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)#:]+)\)")


def test_the_readme_explains_every_line_of_the_quickstart() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    file = (ROOT / "examples/quickstart/lb.yaml").read_text()
    shipped = [line for line in file.splitlines() if line and not line.startswith("#")]
    assert [line for block in blocks for line in block.splitlines() if line] == shipped


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text()
    assert [target for target in LINK.findall(text) if not (ROOT / target).exists()] == []
