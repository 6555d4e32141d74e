"""A how-to page as what it tells its reader to write and to type. Runs nothing."""

import re
from dataclasses import dataclass
from pathlib import Path

PAGES = Path(__file__).parents[2] / "docs/howto"
_POOLS = """\
apiVersion: evenkeel/v1
pools:
  {pool}:
    backends:
      b1: {{address: "{network}101"{port}}}
      b2: {{address: "{network}102"{port}}}
"""
_NETWORKS = {4: "10.1.2.", 6: "fd01:2::"}


@dataclass(frozen=True, slots=True)
class Page:
    name: str
    text: str

    @classmethod
    def of(cls, name: str) -> "Page":
        return cls(name, (PAGES / f"{name}.md").read_text())

    @property
    def yaml(self) -> list[str]:
        return re.findall(r"```yaml\n(.*?)```", self.text, re.DOTALL)

    @property
    def services(self) -> str:
        return next(block for block in self.yaml if block.startswith("services:"))

    def config(self, port: str = "", family: int = 4) -> str:
        """The page's services over two backends of the lab, by their addresses of that family."""
        pool = re.search(r"pools: \[(\w+)", self.services)
        assert pool is not None, self.name
        head = _POOLS.format(pool=pool[1], port=port, network=_NETWORKS[family])
        return head + self.services

    def node(self) -> str:
        """The page's node.yaml, or an ordinary one."""
        lines = next((block for block in self.yaml if "interfaces:" in block), "")
        return f"apiVersion: evenkeel/v1\n{lines}"

    def commands(self, heading: str) -> list[tuple[str, ...]]:
        """The first block of commands under a heading, in words."""
        return [tuple(line.split()) for line in next(iter(self.blocks(heading)), [])]

    def blocks(self, heading: str) -> list[list[str]]:
        """Every block of commands under a heading, as lines for a shell."""
        section = self.text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
        prose = re.sub(r"```.*?```", "", section, flags=re.DOTALL)
        found = re.findall(r"(?:^ {4,}\S.*\n)+", prose, re.MULTILINE)
        return [[line.partition("  #")[0].strip() for line in one.splitlines()] for one in found]
