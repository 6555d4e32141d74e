"""Who does what, at random: a seed decides all of it, but for how long things take. Excuses nothing."""

import heapq
import signal
from collections.abc import Callable
from itertools import count
from random import Random
from typing import ClassVar

from tests.soak import drift, wishes
from tests.soak.excuses import Trouble
from tests.soak.journal import now
from tests.soak.stage import DAEMONS, Stage
from tests.soak.upgrades import WITHIN, Upgrades

PAUSE = (0.3, 1.2)  # between two deeds
AWAY = (1.0, 9.0)  # how long a server is gone, or an override in force
DEAD = (0.0, 3.0)  # how long a daemon is
ALIVE = 12.0  # seconds at least between two kills: longer than it takes to look at the maps again
REST = 300.0  # seconds within which one thing is meddled with three times: five repairs are a fight
DECK = {
    "edit": 6, "kill server": 2, "stop server": 2, "kill reconciler": 1, "kill healthcheck": 1,
    "drift": 3, "upgrade": 1, "override": 1, "kill upgrade": 1, "grow": 1,
}  # fmt: skip


class Chaos:
    def __init__(self, stage: Stage, seed: int) -> None:
        self.stage, self.whim = stage, Random(f"chaos {seed}")
        self._deck: list[str] = []
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._killed: dict[str, float] = {}
        self._meddled: list[tuple[float, str]] = []
        self._mending: Callable[[], bool] | None = None
        self._held = False  # by the daemon that runs, which alone can mend it
        self._upgrades = Upgrades(stage, self.whim)

    def rest(self) -> float:
        return self.whim.uniform(*PAUSE)

    def deed(self) -> None:
        """The first of the deck that can be done now; the others stay for later."""
        self.stage.look_after_daemons()
        self._upgrades.hear()
        self._deck = self._deck or self._shuffled()
        for what in dict.fromkeys(self._deck):
            if said := self._doing[what](self):
                self._deck.remove(what)
                self.stage.journal.did(said)
                self.stage.journal.count(f"deed {what}")
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
        self._upgrades.end()

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
        if not self._is_old(daemon) or (self._held and not self._is_mended):
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
        if not self._is_mended or self._upgrades.under_way:
            return ""
        self._meddled = [one for one in self._meddled if one[0] > now() - REST]
        often = [name for _, name in self._meddled]
        kinds = [one for one in drift.KINDS if often.count(one.__name__) < 3 and self._may(one)]
        if not kinds:
            return ""
        kind = self.whim.choice(kinds)
        deed = kind(self.stage.live.now, self.whim)
        self._meddled.append((now(), kind.__name__))
        costs: list[Trouble] = list(deed.costs(now()))
        deed.do()
        self._mending, self._held = deed.mended, kind in drift.WHO_HOLDS_MENDS
        self.stage.journal.begin(costs, deed.mended)
        return f"drift: {deed.what}"

    def _may(self, kind: object) -> bool:
        return kind not in drift.WHO_HOLDS_MENDS or self._is_old("reconciler")

    def _is_old(self, daemon: str) -> bool:
        """It runs, and has for so long that it has found everything."""
        killed = self._killed.get(daemon, self.stage.journal.began)
        return daemon in self.stage.daemons and now() > killed + ALIVE

    def _upgrade(self) -> str:
        return self._upgrades.begin() if self._may_upgrade else ""

    def _kill_upgrade(self) -> str:
        """Of whatever kind: it says all of what is to be before it begins, or nothing has begun."""
        if not self._may_upgrade:
            return ""
        said = self.whim.choice((self._upgrades.begin, self._upgrades.grow))()
        if not said:
            return ""
        return f"{said}, killed after {self._after(WITHIN, self._upgrades.kill):.1f} s"

    def _grow(self) -> str:
        return self._upgrades.grow() if self._may_upgrade else ""

    @property
    def _may_upgrade(self) -> bool:
        return not self._upgrades.under_way and self._is_mended

    @property
    def _is_mended(self) -> bool:
        return self._mending is None or self._mending()

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
        "kill upgrade": _kill_upgrade, "grow": _grow,
    }  # fmt: skip
