"""Round by round over all rows, on one CPU: figures that were taken at the same time.

It judges nothing; a row whose packets did not take the way they should has no figure at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import median

from tests.bench import cases
from tests.bench.cases import FLOWS64K, Place, Row
from tests.bench.rig import Rig
from tests.bench.wrapper import run

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Effort:
    rounds: int = 11  # after the first, which is dropped
    repeat: int = 300_000


FULL, QUICK = Effort(), Effort(rounds=5, repeat=60_000)


@dataclass(slots=True)
class Figure:
    """Nanoseconds a packet, one for each round."""

    row: Row
    samples: list[float] = field(default_factory=list)
    kernel: list[int] = field(default_factory=list)  # the kernel's own, whole nanoseconds

    @property
    def median(self) -> float:
        return median(self.samples)


@dataclass(frozen=True, slots=True)
class Result:
    figures: dict[str, Figure]
    facts: dict[str, float]

    def ratio(self, row: Row) -> float:
        """In multiples of its yardstick, round against round: both saw the same machine."""
        base = self.figures[row.against].samples
        return median(
            own / theirs for own, theirs in zip(self.figures[row.name].samples, base, strict=True)
        )


@contextmanager
def pinned_to_one_cpu() -> Iterator[int]:
    before = os.sched_getaffinity(0)
    chosen = max(before)
    os.sched_setaffinity(0, {chosen})
    try:
        yield chosen
    finally:
        os.sched_setaffinity(0, before)


def chosen(only: list[str]) -> list[Row]:
    """The rows named, and those they are compared with."""
    needed = {name for r in cases.named(only) for name in (r.name, r.against, r.beside)}
    return [r for r in cases.ROWS if r.name in needed]


def measure(only: list[str], effort: Effort, say: Progress) -> Result:
    rows = chosen(only)
    with pinned_to_one_cpu(), ExitStack() as stack:
        say("learning flows")
        places = [place for place in Place if place in {row.place for row in rows}]
        rigs = {place: stack.enter_context(Rig(cases.world(), place.sizes)) for place in places}
        prepared = [(rigs[row.place], rigs[row.place].prepare(row)) for row in rows]
        figures = _figures(prepared, effort, say)
        return Result(figures, _facts(next(iter(rigs.values()))))


def _figures(prepared: list[tuple[Rig, Row]], effort: Effort, say: Progress) -> dict[str, Figure]:
    figures = {row.name: Figure(row) for _, row in prepared}
    for number in range(effort.rounds + 1):
        say(f"round {number} of {effort.rounds}")
        overhead = call_overhead(prepared[0][0])
        for rig, row in prepared:
            spent, kernel = _sample(rig, row, effort.repeat, overhead)
            if number:
                figures[row.name].samples.append(spent)
                figures[row.name].kernel.append(kernel)
    return figures


def _sample(rig: Rig, row: Row, repeat: int, overhead: float) -> tuple[float, int]:
    if row.known and 1 < row.packet.flows <= FLOWS64K:
        rig.greet(row)
    outcome = rig.measure(row, repeat)
    return outcome.spent - overhead / repeat, outcome.kernel


def call_overhead(rig: Rig) -> float:
    """Nanoseconds of a test run that are not the program's: mostly exchanging programs."""
    program = rig.wrapper.program("pass")
    return median(2 * run(program, bytes(64), 2).spent for _ in range(5))


def _facts(rig: Rig) -> dict[str, float]:
    info = rig.info()
    maps = ("flows4", "flows6", "returns4", "returns6", "opening4", "opening6")
    return {
        "instructions verified": info.verified,
        "instructions translated": info.translated,
        "bytes of machine code": info.jited_bytes,
        **{f"bytes per entry, {name}": rig.bytes_per_entry(name) for name in maps},
        **rig.table_writes(),
    }
