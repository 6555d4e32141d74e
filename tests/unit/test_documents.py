"""What readers copy from the documents is what the project ships."""

import re
from pathlib import Path

import pytest

from reconciler import config, node
from reconciler.parts import node_problems
from tests.support.howto import PAGES, Page

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)#:]+)\)")


def test_the_readme_explains_every_line_of_the_quickstart() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    file = (ROOT / "examples/quickstart/lb.yaml").read_text()
    shipped = [line for line in file.splitlines() if line and not line.startswith("#")]
    assert [line for block in blocks for line in block.splitlines() if line] == shipped


DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    links = LINK.findall(path.read_text())
    assert [target for target in links if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("name", sorted(p.stem for p in PAGES.glob("*.md") if p.stem != "ab-test"))
def test_what_a_howto_writes_is_accepted(name: str) -> None:
    page = Page.of(name)
    assert (
        node_problems(config.load(page.config(), "lb.yaml"), node.load(page.node(), "node")) == []
    )
