"""What is wrong with a file, and where. Renders problems; decides nothing."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

SHOWN = 20


class Mark(NamedTuple):
    """A place in a file; both numbers start at 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    mark: Mark
    message: str
    hint: str = ""


class Rejected(Exception):
    """The file says something that cannot be accepted: its author must act."""

    def __init__(self, file: str, problems: Iterable[Problem], text: str = "") -> None:
        self.file = file
        self.problems = tuple(sorted(set(problems)))
        self.text = text
        super().__init__(f"{file}: {len(self.problems)} errors")

    def __str__(self) -> str:
        return render(self.file, self.problems, self.text)


def render(file: str, problems: Sequence[Problem], text: str) -> str:
    """Every problem as `file:line:column: error: ...`, its line, a caret and the hint."""
    lines = text.splitlines()
    shown = [_one(file, problem, lines) for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        shown.append(f"{file}: and {len(problems) - SHOWN} more errors")
    return "\n".join(shown)


def _one(file: str, problem: Problem, lines: Sequence[str]) -> str:
    line, column = problem.mark
    head = f"{file}:{line}:{column}: error: {problem.message}"
    hint = f"  hint: {problem.hint}" if problem.hint else ""
    if not 0 < line <= len(lines):
        return head + (f"\n     {hint}" if hint else "")
    source = lines[line - 1][:200].replace("\t", " ")
    return f"{head}\n{line:>5} | {source}\n      | {' ' * (column - 1)}^{hint}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest known word, else all of them while they fit a line."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    listed = ", ".join(names)
    return f"known: {listed}" if names and len(listed) <= SHOWN * 6 else ""
