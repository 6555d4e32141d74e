"""`make bench ARGS="--part control"`: what 10,000 backends in 1,000 services cost the reconciler."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from bpf import kernel
from reconciler import config as configuration
from reconciler import table
from reconciler.loop import surroundings
from reconciler.problems import Rejected
from reconciler.start import collect_seldom
from reconciler.table import Fill
from tests.bench.control_rig import Pass, Rig, accepted, rig
from tests.bench.objects import BenchError
from tests.bench.report import cpu_model, verdict
from tests.support.crowd import CHANGES, EACH, Crowd, broken
from tests.support.wait import until

RESULT = Path("build/bench/control.json")
VERSION = 1
MANY, FEW = 1000, 10  # pools of ten
CHANGED_MARK = 150
SLOTS, NAMES = 65537, tuple(f"web{n:03}" for n in range(100))
Say = Callable[[str], None]


@dataclass
class Row:
    """One figure: milliseconds, round by round."""

    name: str
    mark: float | None = None
    note: str = ""
    samples: list[float] = field(default_factory=list)
    worked: list[float] = field(default_factory=list)  # CPU time of the same

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        began, worked = time.perf_counter(), time.thread_time()
        yield
        self.samples.append((time.perf_counter() - began) * 1000)
        self.worked.append((time.thread_time() - worked) * 1000)


class Bench:
    def __init__(self, rounds: int, say: Say) -> None:
        self._rounds, self._say = rounds, say
        self.rows: list[Row] = []

    def row(self, name: str, mark: float | None = None) -> Row:
        self._say(name)
        self.rows.append(Row(name, mark))
        return self.rows[-1]

    # ---- the file

    def files(self) -> None:
        text = Crowd(MANY).text()
        compose = self.row("yardstick: yaml.compose of the same file")
        good = self.row("read and validated", 800)
        bad = self.row("a mistake in every tenth backend: all of them told", 800)
        for _ in range(self._rounds):
            with compose.timed():
                yaml.compose(text, Loader=yaml.CSafeLoader)
            with good.timed():
                configuration.load(text)
            with bad.timed():
                told = _told(broken(text))
        bad.note = f"{told} problems"

    # ---- passes

    def first(self, on: Rig) -> None:
        """From the text to the maps, with next hops, reading back and everything else."""
        whole = self.row("read, and first pass whole", 2500)
        text = Crowd(MANY).text()
        for _ in range(self._rounds):
            with on.loaded() as instance:
                reconciler = on.reconciler(instance)
                with whole.timed():
                    view = reconciler.reconcile(accepted(text))
                whole.note = f"{len(view.ops)} map writes"

    def idle(self, on: Rig, instance: kernel.Instance) -> None:
        reconciler, taken = on.reconciler(instance), accepted(Crowd(MANY).text())
        reconciler.reconcile(taken)
        idle = self.row("a pass when nothing has changed, whole")
        for _ in range(3 * self._rounds):
            with idle.timed():
                reconciler.reconcile(taken)
        whole = self.row("a pass after another weight, whole")
        for change in ("weight", "") * self._rounds:
            other = accepted(Crowd(MANY, change).text())
            with whole.timed():
                reconciler.reconcile(other)

    def changes(self, on: Rig, pools: int) -> dict[str, int]:
        """Compile, plan and apply of each change; the number of map writes."""
        writes = {}
        with on.loaded() as instance:
            one = Pass(instance, on.node)
            plain = accepted(Crowd(pools).text())
            around = surroundings(on.neighbours, plain.config, on.node, 0, 0)
            with one.prepared(plain, around) as go:
                go()
            for change in CHANGES:
                row = self.row(f"compile, plan, apply: {change} of {pools * EACH}", CHANGED_MARK)
                for _ in range(self._rounds):
                    other = accepted(Crowd(pools, change).text())
                    around = surroundings(on.neighbours, other.config, on.node, 0, 0)
                    with one.prepared(other, around) as go, row.timed():
                        view = go()
                    writes[change] = len(view.ops)
                    with one.prepared(accepted(Crowd(pools).text()), around) as back:
                        back()
                row.note = f"{writes[change]} map writes"
        return writes

    def passes(self) -> None:
        with rig() as on:
            self.first(on)
            with on.loaded() as instance:
                self.idle(on, instance)
            few, many = (self.changes(on, pools) for pools in (FEW, MANY))
            if few != many:
                raise BenchError(f"map writes depend on the size: {few} and {many}")
            self.latency(on)

    def latency(self, on: Rig) -> None:
        """A file of ten backends, renamed into place, until the maps say that it is applied."""
        row = self.row("from a renamed small file to the maps, real daemon", 500)
        with on.daemon() as path:
            for number in range(2, 2 + 2 * self._rounds):
                beside = path.with_name("new.yaml")
                beside.write_text(Crowd(1, "weight" if number % 2 == 0 else "").text())
                with row.timed():
                    beside.rename(path)
                    until(lambda n=number: on.generation() == n, timeout=60, what="the change")

    # ---- tables

    def fills(self) -> None:
        if table.compiled() is None:
            raise BenchError("build/table.so is missing: make build")
        for how, mark in ((Fill.MAGLEV, 10), (Fill.CONSISTENT, 30)):
            row = self.row(f"{how.value}: {SLOTS} slots for {len(NAMES)} backends", mark)
            for number in range(3 * self._rounds):
                with row.timed():  # other weights each time: what is remembered is no figure
                    table.fill(how, SLOTS, NAMES, (100 + number,) * len(NAMES))


def _told(text: str) -> int:
    try:
        configuration.load(text)
    except Rejected as error:
        return len(error.problems) if str(error) else 0  # printing is part of the figure
    raise BenchError("the broken file was accepted")


def lines(rows: list[Row]) -> str:
    head = f"{'10,000 backends in 1,000 services':58}{'ms':>9}{'min':>8}{'max':>8}{'cpu':>8}{'times':>7}{'mark':>6}"
    return "\n".join([head, *(_line(row, rows) for row in rows)])


def _line(row: Row, rows: list[Row]) -> str:
    middle = median(row.samples)
    text = f"{row.name:58}{middle:>9.1f}{min(row.samples):>8.1f}{max(row.samples):>8.1f}"
    text += f"{median(row.worked):>8.1f}"
    times = middle / median(rows[0].samples)
    mark = f"{row.mark:g}" if row.mark else ""
    text += f"{times:>7.2f}{mark:>6}  {verdict(middle, row.mark)}"
    return f"{text}  {row.note}".rstrip()


def document(rows: list[Row], rounds: int) -> dict[str, Any]:
    return {
        "version": VERSION,
        "cpu": cpu_model(),
        "rounds": rounds,
        "rows": [
            {
                "name": row.name,
                "median_ms": round(median(row.samples), 2),
                "min_ms": round(min(row.samples), 2),
                "max_ms": round(max(row.samples), 2),
                "cpu_ms": round(median(row.worked), 2),
                "ratio": round(median(row.samples) / median(rows[0].samples), 3),
                "mark": row.mark,
                "met": row.mark is None or median(row.samples) <= row.mark,
                "note": row.note,
            }
            for row in rows
        ],
    }


def bench(*, quick: bool, say: Say) -> int:
    rounds = 1 if quick else 5
    collect_seldom()  # as the command does
    made = Bench(rounds, say)
    try:
        made.files()
        made.passes()
        made.fills()
    except (BenchError, kernel.KernelError) as error:
        print(f"make bench: {error}", file=sys.stderr)
        return 1
    say("")
    print(lines(made.rows))
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(document(made.rows, rounds), indent=1) + "\n")
    print(f"\nwritten to {RESULT}")
    return 0
