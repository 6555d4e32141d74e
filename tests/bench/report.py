"""The result for people and for machines. Neither rounds away a missed mark."""

from __future__ import annotations

import os
from pathlib import Path

from tests.bench.cases import Row
from tests.bench.dataplane import Figure, Result

VERSION = 1
MEMORY_MARK, MEMORY_BEST = 96, 121
MEMORY = "bytes per entry, flows4"


def verdict(value: float, mark: float | None) -> str:
    if mark is None:
        return ""
    return "ok" if value <= mark else f"missed by {value / mark - 1:.0%}"


def table(result: Result) -> str:
    head = f"{'':40}{'ns':>7}{'min':>7}{'max':>7}{'times':>7}{'best':>8}{'mark':>6}"
    lines = [head, *(_line(result, figure) for figure in result.figures.values()), ""]
    lines += [
        f"{name:40}{value:>7.{0 if value > 10 else 2}f}{_memory(name, value)}"
        for name, value in result.facts.items()
    ]
    return "\n".join(lines)


def _line(result: Result, figure: Figure) -> str:
    row, samples = figure.row, figure.samples
    text = f"{row.name:40}{figure.median:>7.1f}{min(samples):>7.1f}{max(samples):>7.1f}"
    if row.baseline:
        return text
    ratio = result.ratio(row)
    best = f"({row.best})" if row.best else ""
    mark = f"{row.mark:g}" if row.mark else ""
    text += f"{ratio:>7.2f}{best:>8}{mark:>6}  {verdict(ratio, row.mark)}"
    if row.beside:
        text += f"  beside {row.beside}: {result.figures[row.beside].median:.0f}"
    return text.rstrip()


def _memory(name: str, value: float) -> str:
    if name != MEMORY:
        return ""
    whole = round(value, 1)  # the map's own header is no entry's
    return f"{f'({MEMORY_BEST})':>29}{MEMORY_MARK:>6}  {verdict(whole, MEMORY_MARK)}"


def document(result: Result, settings: dict[str, object]) -> dict[str, object]:
    """The same, versioned."""
    return {
        "version": VERSION,
        "kernel": os.uname().release,
        "cpu": cpu_model(),
        "settings": settings,
        "facts": result.facts,
        "rows": [_entry(result, figure) for figure in result.figures.values()],
    }


def _entry(result: Result, figure: Figure) -> dict[str, object]:
    row: Row = figure.row
    entry: dict[str, object] = {
        "name": row.name,
        "baseline": row.baseline,
        "median_ns": round(figure.median, 2),
        "min_ns": round(min(figure.samples), 2),
        "max_ns": round(max(figure.samples), 2),
        "kernel_ns": figure.kernel,
    }
    if row.baseline:
        return entry
    ratio = result.ratio(row)
    return entry | {
        "against": row.against,
        "beside": row.beside or None,
        "ratio": round(ratio, 3),
        "mark": row.mark,
        "best_known": row.best,
        "met": None if row.mark is None else ratio <= row.mark,
    }


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"
