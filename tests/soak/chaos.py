"""Who does what, at random: a seed decides all of it, but for how long things take. Excuses nothing."""

import heapq
import signal
import subprocess
from collections.abc import Callable
from itertools import count
from random import Random
from typing import ClassVar

from tests.soak import drift, wishes
from tests.soak.excuses import Trouble
from tests.soak.journal import now
from tests.soak.stage import DAEMONS, Stage

PAUSE = (0.3, 1.2)  # between two deeds
AWAY = (1.0, 9.0)  # how long a server is gone, or an override in force
DEAD = (0.0, 3.0)  # how long a daemon is
ALIVE = 12.0  # seconds at least between two kills: longer than it takes to look at the maps again
REST = 300.0  # seconds within which one thing is meddled with three times: five repairs are a fight
DECK = {
    "edit": 6, "kill server": 2, "stop server": 2, "kill reconciler": 1, "kill healthcheck": 1,
    "drift": 2, "upgrade": 1, "override": 1,
}  # fmt: skip


class Chaos:
    UNDO = ("--undo",)  # once there is something to go back to

    def __init__(self, stage: Stage, seed: int) -> None:
        self.stage, self.whim = stage, Random(f"chaos {seed}")
        self._deck: list[str] = []
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._killed: dict[str, float] = {}
        self._meddled: list[tuple[float, str]] = []
        self._mending: Callable[[], bool] | None = None
        self._upgrading: subprocess.Popen[str] | None = None
        self._programs: list[tuple[str, ...]] = [("--object", str(stage.same)), ()]

    def rest(self) -> float:
        return self.whim.uniform(*PAUSE)

    def deed(self) -> None:
        """The first of the deck that can be done now; the others stay for later."""
        self.stage.look_after_daemons()
        self._hear_upgrade()
        self._deck = self._deck or self._shuffled()
        for what in dict.fromkeys(self._deck):
            if said := self._doing[what](self):
                self._deck.remove(what)
                self.stage.journal.did(said)
                return
        self._deck = []  # nothing of it can be done for now, and may not be for long

    def follow_up(self) -> None:
        """Whoever is due back comes back."""
        while self._later and self._later[0][0] <= now():
            heapq.heappop(self._later)[2]()

    def calm(self) -> None:
        """Everything that is away comes back, and nothing more is done."""
        self._later.clear()
        self.stage.heal()
        if self._upgrading:
            self._upgrading.wait(60)
            self._hear_upgrade()

    def _shuffled(self) -> list[str]:
        deck = [kind for kind, times in DECK.items() for _ in range(times)]
        self.whim.shuffle(deck)
        return deck

    def _after(self, span: tuple[float, float], action: Callable[[], None]) -> float:
        seconds = self.whim.uniform(*span)
        heapq.heappush(self._later, (now() + seconds, next(self._numbers), action))
        return seconds

    # ---- deeds: what was done, or nothing

    def _edit(self) -> str:
        """One at a time: the next when the last is applied."""
        if not self.stage.settled():
            return ""
        self.stage.open_services()
        may = wishes.edits(self.stage.wish, self.stage.sick())
        does = self.whim.choice(sorted({edit.does for edit in may}))
        edit = self.whim.choice([edit for edit in may if edit.does is does])
        self.stage.edit(edit)
        return str(edit)

    def _kill_server(self) -> str:
        return self._sicken(signal.SIGKILL)

    def _stop_server(self) -> str:
        return self._sicken(signal.SIGSTOP)

    def _sicken(self, how: signal.Signals) -> str:
        host = self._dispensable()
        if not host:
            return ""
        self.stage.sicken(host, how)
        seconds = self._after(AWAY, lambda: self._cure(host))
        return f"{host}'s server gets {how.name} for {seconds:.1f} s"

    def _cure(self, host: str) -> None:
        self.stage.journal.did(f"{host}'s server is back")
        self.stage.cure(host)

    def _kill_reconciler(self) -> str:
        return self._kill("reconciler")

    def _kill_healthcheck(self) -> str:
        return self._kill("healthcheck")

    def _kill(self, daemon: str) -> str:
        if daemon not in self.stage.daemons or now() < self._killed.get(daemon, 0.0) + ALIVE:
            return ""
        self._killed[daemon] = now()
        self.stage.kill_daemon(daemon)
        seconds = self._after(DEAD, lambda: self.stage.run_daemon(daemon))
        return f"{daemon} killed for {seconds:.1f} s"

    def _override(self) -> str:
        host = "" if self.stage.forced else self._dispensable()
        pool = self.whim.choice(sorted(wishes.POOLS))
        if (
            not host
            or host not in self.stage.wish.pools[pool]
            or set(DAEMONS) - set(self.stage.daemons)
        ):
            return ""
        self.stage.force_down(pool, host)
        seconds = self._after(AWAY, self.stage.clear_overrides)
        return f"{pool}/{host} forced down for {seconds:.1f} s"

    def _drift(self) -> str:
        """One at a time, and none so often that it would be a fight."""
        if self._mending and not self._mending():
            return ""
        self._meddled = [one for one in self._meddled if one[0] > now() - REST]
        often = [name for _, name in self._meddled]
        kinds = [kind for kind in drift.KINDS if often.count(kind.__name__) < 3]
        if not kinds or self._upgrading:
            return ""
        kind = self.whim.choice(kinds)
        deed = kind(self.stage.instance, self.whim)
        self._meddled.append((now(), kind.__name__))
        costs: list[Trouble] = list(deed.costs(now()))
        deed.do()
        self._mending = deed.mended
        self.stage.journal.begin(costs, deed.mended)
        return f"drift: {deed.what}"

    def _upgrade(self) -> str:
        if self._upgrading or (self._mending and not self._mending()):
            return ""
        words = self.whim.choice(self._programs)
        if words and self.UNDO not in self._programs:
            self._programs.append(self.UNDO)
        self._words = ("upgrade", "--node", str(self.stage.node), *words)
        self._upgrading = self.stage.reconciler(*self._words)
        return f"upgrade {' '.join(words)}"

    def _hear_upgrade(self) -> None:
        if self._upgrading is None or self._upgrading.poll() is None:
            return
        said, _ = self._upgrading.communicate()
        if self._upgrading.returncode:
            self.stage.journal.complain(
                f"{' '.join(self._words)}: code {self._upgrading.returncode}: {said}"
            )
        else:
            self.stage.journal.did("upgrade done")
        self._upgrading = None

    def _dispensable(self) -> str:
        """A host that is well, and that every pool can do without."""
        stage = self.stage
        hosts = [
            host
            for host in wishes.HOSTS
            if host not in stage.sick()
            and all(
                len(stage.wish.serving(pool, stage.sick() | {host})) >= wishes.SERVING
                for pool in wishes.POOLS
            )
        ]
        return self.whim.choice(hosts) if hosts and stage.settled() else ""

    _doing: ClassVar[dict[str, Callable[["Chaos"], str]]] = {
        "edit": _edit, "kill server": _kill_server, "stop server": _stop_server,
        "kill reconciler": _kill_reconciler, "kill healthcheck": _kill_healthcheck,
        "drift": _drift, "upgrade": _upgrade, "override": _override,
    }  # fmt: skip
