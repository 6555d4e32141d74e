"""What readers copy from the documents is what the project ships."""

import re
import shlex
from pathlib import Path

import pytest

from healthcheck import cli as healthcheck
from reconciler import cli as reconciler
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


PARSERS = {"reconciler": reconciler.parser, "healthcheck": healthcheck.parser}


def commands(path: Path) -> list[list[str]]:
    """Ours, of what is there to be typed: indented lines, without what follows in a pipe and as a remark."""
    text = path.read_text().replace("\\\n", " ")
    found = re.findall(r"^ {4}(?:.* \| )?(?:sudo )?((?:reconciler|healthcheck)(?: .*)?)$", text, re.MULTILINE)  # fmt: skip
    typed = (re.split(r"\s+#|\s+\| ", line)[0] for line in found if " -> bpf" not in line)
    return [shlex.split(line) for line in typed]


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if commands(path)], ids=lambda path: str(path.relative_to(ROOT)))  # fmt: skip
def test_what_is_there_to_be_typed_can_be(path: Path) -> None:
    for name, *words in commands(path):
        PARSERS[name]().parse_args(words)


def test_commands_are_found_in_documents() -> None:
    assert len(commands(ROOT / "README.md")) > 20
    assert ["reconciler", "replay", "-"] in commands(ROOT / "README.md")


@pytest.mark.parametrize("name", sorted(p.stem for p in PAGES.glob("*.md") if p.stem != "ab-test"))
def test_what_a_howto_writes_is_accepted(name: str) -> None:
    page = Page.of(name)
    assert (
        node_problems(config.load(page.config(), "lb.yaml"), node.load(page.node(), "node")) == []
    )
