"""`reconciler upgrade` as operators run it, one at a time: other programs, larger maps, and a kill half-way."""

import subprocess
from random import Random

from bpf import resizing
from bpf.pins import Pins
from tests.soak import consequences
from tests.soak.journal import now
from tests.soak.stage import Stage

UNDO = ("--undo",)  # once there is something to go back to
WITHIN = (0.1, 4.0)  # seconds after which one is killed: it takes about three
GROWING = ("flows4", "flows6", "returns4", "returns6", "opening4", "backends", "frontends")
TIMES = 8  # larger than at first, at most


class Upgrades:
    def __init__(self, stage: Stage, whim: Random) -> None:
        self._stage, self._whim = stage, whim
        self._programs: list[tuple[str, ...]] = [("--object", str(stage.same)), ()]
        self._process: subprocess.Popen[str] | None = None
        self._words: tuple[str, ...] = ()
        self._killed = False

    @property
    def under_way(self) -> bool:
        return self._process is not None

    def begin(self) -> str:
        self._start(*self._whim.choice(self._programs))
        return " ".join(self._words)

    def grow(self) -> str:
        """With the same program or another: larger maps are maps and a program."""
        sizes = self._stage.sizes
        may = [name for name in GROWING if sizes[name] < TIMES * self._stage.FIRST[name]]
        if not may:
            return ""
        name = self._whim.choice(may)
        self._stage.resize(name, 2 * sizes[name])
        self._start(*self._whim.choice([one for one in self._programs if one is not UNDO]))
        return f"{' '.join(self._words)}, sizes.{name} {sizes[name]}"

    def _has_gone_over(self) -> bool:
        """Who was killed half-way is followed by who completes it."""
        process, there = self._process, resizing.beside(Pins.of(self._stage.name))
        return (process is None or process.poll() is not None) and not there.directory.exists()

    def kill(self) -> None:
        """Whatever it is doing, or has done."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._killed = True
            self._stage.journal.did("upgrade killed")

    def hear(self) -> None:
        """What became of it, once it has ended."""
        if self._process is None or self._process.poll() is None:
            return
        said, _ = self._process.communicate()
        code, self._process = self._process.returncode, None
        if self._killed:
            return
        if code:
            self._stage.journal.complain(f"{' '.join(self._words)}: code {code}: {said}")
            return
        self._stage.journal.did("upgrade done")
        if UNDO not in self._programs and "the new program forwards" in said:
            self._programs.append(UNDO)

    def end(self) -> None:
        if self._process is not None:
            self._process.wait(60)
            self.hear()

    def _start(self, *words: str) -> None:
        self._words, self._killed = ("upgrade", "--node", str(self._stage.node), *words), False
        at, larger = now(), words != UNDO and self._larger()
        self._process = self._stage.reconciler(*self._words)
        if larger:
            costs = [consequences.larger_maps(", ".join(larger), at)]
            self._stage.journal.begin(costs, self._has_gone_over)

    def _larger(self) -> list[str]:
        """Also what one that was killed was to make larger."""
        made = self._stage.instance.sizes()
        wanted = self._stage.sizes.items()
        return [f"sizes.{name} {n}" for name, n in wanted if getattr(made, name) != n]
