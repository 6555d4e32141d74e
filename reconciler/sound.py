"""Of a document with errors, the entries that have none: they can be judged all the same. Pure.

An author is told everything at once, and nothing that only follows from something
else. So an entry with an error is left out whole, and nobody doubts its name.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from reconciler.problems import Mark, Problem
from reconciler.yamlpos import Map

SECTIONS = ("checks", "pools", "services")
Doubtful = Mapping[str, frozenset[str]]  # names by section


@dataclass(frozen=True, slots=True)
class Sound:
    root: Map
    doubtful: Doubtful = field(default_factory=dict)


def sound(root: Any, problems: Iterable[Problem]) -> Sound | None:  # noqa: ANN401 -- any YAML
    """None when something is wrong that all entries depend on."""
    if not isinstance(root, Map):
        return None
    doubtful: dict[str, set[str]] = {name: set() for name in SECTIONS}
    sections = _in_order(root)
    entries = {name: _in_order(root.get(name)) for name in SECTIONS}
    for problem in problems:
        section = _last(sections, problem.mark)
        if section == "tests":
            continue
        entry = _last(entries.get(section, []), problem.mark)
        if not entry:
            return None
        doubtful[section].add(entry)
    kept = {name: _without(root[name], doubtful[name]) for name in SECTIONS if name in root}
    copy = _without(root, {"tests", *SECTIONS})
    for name, entries in kept.items():
        copy[name] = entries
        copy.keys_at[name], copy.values_at[name] = root.keys_at[name], root.values_at[name]
    return Sound(copy, {name: frozenset(names) for name, names in doubtful.items()})


def _in_order(entries: Any) -> list[tuple[Mark, str]]:  # noqa: ANN401 -- any YAML
    """Keys by where they are; none of what is no mapping."""
    return (
        sorted((at, key) for key, at in entries.keys_at.items()) if isinstance(entries, Map) else []
    )


def _last(keys: list[tuple[Mark, str]], mark: Mark) -> str:
    """The last key that is not behind the mark; empty where there is none."""
    at = bisect_right(keys, mark, key=itemgetter(0))
    return keys[at - 1][1] if at else ""


def _without(entries: Map, left_out: set[str]) -> Map:
    copy = Map(entries.at)
    for key in entries.keys() - left_out:
        copy[key] = entries[key]
    copy.keys_at = {key: at for key, at in entries.keys_at.items() if key in copy}
    copy.values_at = {key: at for key, at in entries.values_at.items() if key in copy}
    return copy
