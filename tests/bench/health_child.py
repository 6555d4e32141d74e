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
from healthcheck.fleet import STEP, Fleet
from healthcheck.health import State
from healthcheck.stock import Stock
from healthcheck.verdicts import Verdict, Verdicts

_BY_STATE = list(State)
_VERDICTS = {state: Verdict(state) for state in State}


class Memory:
    """A map, and when each batch of it was written. A byte an entry: the kernel's is not the checker's memory either."""

    def __init__(self) -> None:
        self.entries = bytearray(1 << 16)
        self.written: list[tuple[float, int]] = []

    def read(self) -> dict[int, Verdict]:
        return {n: _VERDICTS[_BY_STATE[said]] for n, said in enumerate(self.entries) if said}

    def write(self, verdicts: Iterable[tuple[int, Verdict]]) -> None:
        count = 0
        for number, verdict in verdicts:
            self.entries[number] = _BY_STATE.index(verdict.state)
            count += 1
        self.written.append((time.monotonic(), count))

    def count(self, state: State) -> int:
        return self.entries.count(_BY_STATE.index(state))

    def close(self) -> None: ...

    def open(self, _path: Path, _instance: str) -> Verdicts:
        return self


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
        "written": memory.written[-200:],
    }


async def run(targets: Path, *, timed: bool, recycle: bool) -> None:
    started, base = time.monotonic(), resident()
    memory = Memory()
    fleet = Fleet(
        targets, targets.with_name("health.json"), "bench", memory.open, stock=Stock(keep=recycle)
    )
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
            memory.written.clear()
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
