"""When what failed is tried again: soon at first, then less and less often. Pure: the caller tells the time."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from reconciler.admission import Blocked, Blocks, Why

FIRST = 0.1  # seconds
LONGEST = 60.0


def pause(times: int) -> float:
    """Seconds to wait after so many failures in a row."""
    return min(LONGEST, FIRST * 2.0 ** min(times - 1, 20))


@dataclass(slots=True)
class Retries:
    """Services that the kernel refused; told apart by name."""

    _failed: dict[str, tuple[Blocked, int, float]] = field(default_factory=dict)

    def resting(self, now: float) -> Blocks:
        """Those whose time has not come yet."""
        return {name: why for name, (why, _, until) in self._failed.items() if now < until}

    def failed(self, names: Iterable[str], error: str, now: float) -> bool:
        """They are to rest; whether that makes any difference to what is tried next."""
        resting = self.resting(now)
        fresh = [name for name in names if name not in resting or not resting[name].frozen]
        for name in fresh:
            _, times, _ = self._failed.get(name, (None, 0, 0.0))
            times += name not in resting
            why = Blocked(name, Why.REFUSED, error, frozen=name in resting)
            self._failed[name] = (why, times, now + pause(times))
        return bool(fresh)

    def over(self, now: float) -> None:
        """A pass went well: who was tried in it, and is not resting, is well again."""
        resting = self.resting(now)
        self._failed = {name: one for name, one in self._failed.items() if name in resting}

    def due(self, now: float) -> float:
        """Seconds until somebody is to be tried again."""
        return max(0.0, min((until for *_, until in self._failed.values()), default=1e9) - now)

    def forget(self) -> None:
        """Another file: everybody gets a chance at once."""
        self._failed.clear()
