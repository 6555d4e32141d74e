"""What may be excused when. Pure: what went wrong and what was going on are values, and nobody looks at a clock.

Excuses nothing by its size or its rarity: a mishap is explained by a trouble that concerned it and that was
going on between the last moment when all was well and the moment when it was noticed, or it is not explained.
A flow that was chosen anew is a newcomer again: it may meet whatever newcomers may meet at that time. Where a
trouble `exposes` a pool, newcomers may meet servers that are known to have failed.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from math import inf


class Symptom(StrEnum):
    """What a client sees."""

    REFUSED = "refused"
    RESET = "reset"
    SILENT = "silent"
    UNREACHABLE = "unreachable"
    MOVED = "moved"
    FELL = "fell"  # seen by the checks, not by a client


BEFORE = 1.0  # seconds that a reader wants to look back
ANY = frozenset(Symptom) - {Symptom.FELL}
DEAD = frozenset({Symptom.REFUSED, Symptom.RESET, Symptom.SILENT, Symptom.UNREACHABLE})


@dataclass(frozen=True, slots=True)
class Mishap:
    """Something that would not have happened in quiet times."""

    symptom: Symptom
    since: float  # when all was still well
    at: float
    service: str
    pool: str
    host: str | None = None  # who had it; None: nobody had answered yet
    detail: str = ""

    def __str__(self) -> str:
        whose = f"with {self.host}" if self.host else "not answered yet"
        return f"{self.symptom}: {self.service} ({whose}) {self.detail}".strip()


@dataclass(frozen=True, slots=True)
class Trouble:
    """What somebody did, whom it concerns, and what that may do to them. Nothing given: everybody."""

    kind: str  # what reports count by
    what: str
    begin: float
    explains: frozenset[Symptom]
    end: float = inf
    services: frozenset[str] | None = None
    pool: str | None = None
    host: str | None = None
    fresh: bool | None = None  # only those without an answer yet; or only those with one
    exposes: bool = False  # some of the pool's spare slots are nobody's: then it is used whole

    def __str__(self) -> str:
        return f"{self.kind} ({self.what})"

    def over(self, at: float) -> "Trouble":
        """The same, ended; what ended before stays so."""
        return replace(self, end=min(self.end, at))

    def excuses(self, mishap: Mishap) -> bool:
        return mishap.symptom in self.explains and self.met(mishap)

    def displaces(self, mishap: Mishap) -> bool:
        """Whether it may have made a flow choose anew, whatever became of it there."""
        return Symptom.MOVED in self.explains and mishap.host is not None and self.met(mishap)

    def met(self, mishap: Mishap) -> bool:
        return (
            self.begin <= mishap.at
            and mishap.since <= self.end
            and self.concerns(mishap)
            and (self.fresh is None or self.fresh == (mishap.host is None))
        )

    def concerns(self, mishap: Mishap) -> bool:
        """One who has no backend yet may have been on the way to any."""
        return (
            (self.services is None or mishap.service in self.services)
            and self.pool in (None, mishap.pool)
            and (self.host is None or mishap.host in (None, self.host))
        )


@dataclass(frozen=True, slots=True)
class Finding:
    """A mishap and everything that explains it."""

    mishap: Mishap
    excuses: tuple[Trouble, ...]

    @property
    def kind(self) -> str:
        """The narrowest explanation's: whom something concerned alone is likelier to have had it from there."""
        return min(self.excuses, key=_breadth).kind if self.excuses else "UNEXPLAINED"


def _breadth(trouble: Trouble) -> tuple[bool, bool, bool]:
    return trouble.host is None, trouble.pool is None, trouble.services is None


def judged(mishaps: Iterable[Mishap], troubles: Iterable[Trouble]) -> list[Finding]:
    known = tuple(troubles)
    return [Finding(one, _excuses(one, known)) for one in mishaps]


def _excuses(mishap: Mishap, troubles: tuple[Trouble, ...]) -> tuple[Trouble, ...]:
    own = tuple(one for one in troubles if one.excuses(mishap))
    if own or not (mishap.host is None or any(one.displaces(mishap) for one in troubles)):
        return own
    newcomer = replace(mishap, host=None)
    as_newcomer = tuple(one for one in troubles if one.excuses(newcomer))
    if as_newcomer or not any(one.exposes and one.met(newcomer) for one in troubles):
        return as_newcomer
    failures = (one for one in troubles if one.host and one.explains >= DEAD)
    return tuple(one for one in failures if one.excuses(replace(newcomer, host=one.host)))


def going_on(troubles: Iterable[Trouble], mishap: Mishap) -> list[Trouble]:
    """What may have had to do with it, whatever it explains; what ended a moment before, too."""
    return [
        one
        for one in troubles
        if one.begin <= mishap.at
        and mishap.since - BEFORE <= one.end
        and one.concerns(replace(mishap, host=None))
    ]
