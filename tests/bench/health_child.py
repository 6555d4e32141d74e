"""The checker as the bench runs it: the whole of it over a map in memory. Prints figures when it is told to.

Lines in on standard input: `mark` prints one JSON line of counters, `end` ends.
"""

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from healthcheck.checker import Engine, Watch
from healthcheck.exchange import Result
from healthcheck.fleet import STEP, Fleet
from healthcheck.health import State
from healthcheck.members import Member
from healthcheck.stock import Stock
from healthcheck.verdicts import Verdict, Verdicts

_BY_STATE = list(State)
_VERDICTS = {state: Verdict(state) for state in State}


class Memory:
    """A map, and how long verdicts wait for it. A byte an entry: the kernel's is not the checker's memory either."""

    def __init__(self) -> None:
        self.entries = bytearray(1 << 16)
        self.decided = 0.0  # when the first probe ended whose verdict is still to be written
        self.slowest = 0.0  # seconds from such an end to the map

    def read(self) -> dict[int, Verdict]:
        return {n: _VERDICTS[_BY_STATE[said]] for n, said in enumerate(self.entries) if said}

    def write(self, verdicts: Iterable[tuple[int, Verdict]]) -> None:
        for number, verdict in verdicts:
            self.entries[number] = _BY_STATE.index(verdict.state)
        if self.decided:
            self.slowest = max(self.slowest, time.monotonic() - self.decided)
        self.decided = 0.0

    def count(self, state: State) -> int:
        return self.entries.count(_BY_STATE.index(state))

    def close(self) -> None: ...

    def open(self, _path: Path, _instance: str) -> Verdicts:
        return self


class Deciding(Fleet):
    """Tells the map when a verdict fell that it has to write."""

    memory: Memory

    def _flip(self, member: Member, before: State, result: Result) -> None:
        self.memory.decided = self.memory.decided or time.monotonic()
        super()._flip(member, before, result)


class Timed(Engine):
    """Measures how late probes begin."""

    waits: list[float]

    def _start(self, watch: Watch, now: float) -> None:
        if watch.due:
            self.waits.append(self.clock() - watch.due)
        super()._start(watch, now)


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def figures(fleet: Fleet, memory: Memory, began: float, base: int) -> dict[str, object]:
    late = sorted(getattr(fleet.engine, "waits", []))
    return {
        "clock": time.monotonic(),
        "cpu": time.process_time(),
        "probes": fleet.engine.tally.probes,
        "own_trouble": fleet.engine.tally.own_trouble,
        "up": memory.count(State.UP),
        "down": memory.count(State.DOWN),
        "resident": resident(),
        "base": base,
        "began": began,
        "late_p50": late[len(late) // 2] if late else None,
        "late_p99": late[len(late) * 99 // 100] if late else None,
        "slowest_flip": memory.slowest,
    }


async def run(targets: Path, *, timed: bool, recycle: bool) -> None:
    started, base = time.monotonic(), resident()
    memory = Memory()
    fleet = Deciding(
        targets, targets.with_name("health.json"), "bench", memory.open, stock=Stock(keep=recycle)
    )
    fleet.memory = memory
    if timed:
        fleet.engine.__class__ = Timed
        fleet.engine.waits = []  # type: ignore[attr-defined]
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    fleet.engine.attach(loop)
    fleet.look()
    began = time.monotonic() - started

    def step() -> None:
        fleet.step()
        loop.call_later(STEP, step)

    def told() -> None:
        line = sys.stdin.readline().strip()
        if line == "mark":
            print(json.dumps(figures(fleet, memory, began, base)), flush=True)
            memory.slowest = 0.0
            if timed:
                fleet.engine.waits.clear()  # type: ignore[attr-defined]
        else:
            stop.set()

    loop.call_soon(step)
    loop.add_reader(sys.stdin.fileno(), told)
    await stop.wait()
    fleet.close()


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.sched_setaffinity(0, {int(sys.argv[2])})
    asyncio.run(run(Path(sys.argv[1]), timed="timed" in sys.argv, recycle="fresh" not in sys.argv))
