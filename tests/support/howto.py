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
      b1: {{address: 10.1.2.101{port}}}
      b2: {{address: 10.1.2.102{port}}}
"""


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

    def config(self, port: str = "") -> str:
        """The page's services over two backends of the lab."""
        pool = re.search(r"pools: \[(\w+)", self.services)
        assert pool is not None, self.name
        return _POOLS.format(pool=pool[1], port=port) + self.services

    def node(self) -> str:
        """The page's node.yaml, or an ordinary one."""
        lines = next((block for block in self.yaml if "interfaces:" in block), "")
        return f"apiVersion: evenkeel/v1\n{lines}"

    def commands(self, heading: str) -> list[tuple[str, ...]]:
        """The first block of commands under a heading."""
        section = self.text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
        prose = re.sub(r"```.*?```", "", section, flags=re.DOTALL)
        block = re.search(r"(?:^    \S.*\n)+", prose, re.MULTILINE)
        lines = block[0].splitlines() if block else []
        return [tuple(line.partition("  #")[0].split()) for line in lines]
