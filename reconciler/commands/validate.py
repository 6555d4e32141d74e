"""`reconciler validate`: everything that is wrong with files, for people, programs and pull requests."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reconciler import capacity, dry
from reconciler import config as configuration
from reconciler.commands import Commands
from reconciler.model import Node
from reconciler.parts import node_problems
from reconciler.problems import Problem, Rejected, render
from reconciler.start import DONE, REJECTED, node_of, text
from reconciler.trials import tried

FORMAT = "1.0"
LB = Path("/etc/evenkeel/lb.yaml")
EXAMPLES = """\
examples:
  reconciler validate lb.yaml --node node.yaml
  reconciler validate hosts/*/lb.yaml --output github
        each error as an annotation of its line in a pull request
  reconciler validate lb.yaml --output json
        as `reconciler schema validate` says

exit codes: 0 nothing is wrong; 3 something is; 1 a file cannot be read; 64 usage
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong with one file, or how its tests were run."""

    path: str
    problems: tuple[Problem, ...] = ()
    text: str = ""
    tests: str = ""

    def document(self) -> dict[str, Any]:
        problems = [
            {
                "line": one.mark.line,
                "column": one.mark.column,
                "message": one.message,
                "hint": one.hint,
            }
            for one in self.problems
        ]
        return {
            "path": self.path,
            "ok": not self.problems,
            "tests": self.tests,
            "problems": problems,
        }


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "validate",
        help="say everything that is wrong with files",
        description="Say everything that is wrong with files, with line and column. Needs no privilege.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help=f"default: {LB}")
    parser.add_argument("--config", type=Path, metavar="FILE", help="one more file to validate")
    parser.add_argument(
        "--node", type=Path, metavar="FILE", help="also whether the files suit this node.yaml"
    )
    parser.add_argument(
        "--output", choices=("text", "json", "github"), default="text", help="default: text"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    found = tuple(_verdicts(options))
    {"text": _text, "json": _json, "github": _github}[options.output](found)
    return REJECTED if any(verdict.problems for verdict in found) else DONE


def _verdicts(options: argparse.Namespace) -> Iterator[Verdict]:
    node = None
    try:
        node = node_of(options.node) if options.node else None
    except Rejected as error:
        yield Verdict(error.file, error.problems, error.text)
    files = [*options.files, *([options.config] if options.config else [])]
    for path in files or ([] if options.node else [LB]):
        try:
            yield Verdict(str(path), tests=_tests(path, node))
        except Rejected as error:
            yield Verdict(error.file, error.problems, error.text)


def _tests(path: Path, node: Node | None) -> str:
    """How its tests were run, if it has any."""
    said = text(path, "name the files to validate, or one with --config")
    config = configuration.load(said, str(path))
    problems: list[Problem] = []
    if node:
        problems = node_problems(config, node)
        problems += capacity.problems(config, node, dry.room_of(node))
    tests = tried(config, node)
    if problems := [*problems, *tests.problems]:
        raise Rejected(str(path), problems, said)
    return str(tests) if tests.count else ""


# ---- for whom


def _text(found: tuple[Verdict, ...]) -> None:
    for one in found:
        if one.problems:
            print(render(one.path, one.problems, one.text), file=sys.stderr)
        else:
            print(f"{one.path}: ok{'; ' if one.tests else ''}{one.tests}")


def _json(found: tuple[Verdict, ...]) -> None:
    document = {"format_version": FORMAT, "files": [one.document() for one in found]}
    print(json.dumps(document, indent=1))


def _github(found: tuple[Verdict, ...]) -> None:
    """Workflow commands, which GitHub shows beside the line."""
    for one in found:
        for problem in one.problems:
            line, column = problem.mark
            said = f"{problem.message} ({problem.hint})" if problem.hint else problem.message
            place = f"file={_property(one.path)},line={line},col={column}"
            print(f"::error {place}::{_escaped(said)}")


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _escaped(text).replace(":", "%3A").replace(",", "%2C")
