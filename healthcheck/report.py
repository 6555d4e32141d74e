"""health.json: what is known of each backend, for whoever reads it (schemas/health.schema.json). Decides nothing.

The file is renamed into place, so a reader sees one whole report or the one before, and may wait for the rename.
With thousands of backends a report takes longer to make than probes may wait. So each backend's part is kept as
text, and made anew a slice at a time; those whose verdict has changed go first.
"""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from healthcheck.checker import Tally
from healthcheck.exchange import Result
from healthcheck.health import State
from healthcheck.members import NO_REASONS, Member, Past, Told

FORMAT_VERSION = "1.2"
_PIECE = 256  # parts written in one go
COUNTED = ("probes", "own_trouble", "stalls", "late")  # by the checker, of itself
SLICE = 100  # parts made anew in one go: three milliseconds at most


@dataclass(frozen=True, slots=True)
class Condition:
    """Something about the checker itself that an operator should know, for as long as it lasts."""

    type: str
    message: str
    since: float


class Report:
    """The text of health.json, kept up to date by parts."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._members: Sequence[Member] = ()
        self._parts: list[bytes] = []
        self._fresh = 0  # so many, from the first one on, were made since the last refresh
        self._urgent: deque[Member] = deque()

    def follow(self, members: Sequence[Member]) -> None:
        """Other members than before: all parts are stale."""
        self._members = members
        for number, member in enumerate(members):
            member.place = number
        self._parts = [b""] * len(members)
        self._fresh = 0
        self._urgent.clear()

    def touch(self, member: Member) -> None:
        """Its part is news."""
        self._urgent.append(member)

    def refresh(self) -> None:
        """All over again, when it is convenient."""
        self._fresh = 0

    def told(self, limit: int = SLICE) -> bool:
        """Makes some parts anew that are news; whether the report has them all."""
        for _ in range(min(limit, len(self._urgent))):
            self._make(self._urgent.popleft())
        return not self._urgent

    def step(self, limit: int = SLICE) -> bool:
        """Makes some parts anew; whether all are fresh."""
        if self._urgent:
            return self.told(limit) and self._fresh == len(self._members)
        following = self._fresh + limit
        for member in self._members[self._fresh : following]:
            self._make(member)
        self._fresh = min(following, len(self._members))
        return self._fresh == len(self._members)

    def _make(self, member: Member) -> None:
        self._parts[member.place] = _encoded(_backend(member))

    def text(self, conditions: Sequence[Condition], tally: Tally, now: float) -> Iterator[bytes]:
        """The parts as they are; those never made are made now. In pieces: as one, it would be there three times."""
        head = {
            "format_version": FORMAT_VERSION,
            "instance": self._instance,
            "published_at": _time(now),
            "conditions": [
                {"type": one.type, "message": one.message, "since": _time(one.since)}
                for one in conditions
            ],
            "checker": _checker(tally),
        }
        yield _encoded(head)[:-1] + b',"backends":['
        for start in range(0, len(self._parts), _PIECE):
            pieces = [self._part(n) for n in range(start, min(start + _PIECE, len(self._parts)))]
            yield (b",\n" if start else b"") + b",\n".join(pieces)
        yield b"]}\n"

    def _part(self, number: int) -> bytes:
        if not self._parts[number]:
            self._parts[number] = _encoded(_backend(self._members[number]))
        return self._parts[number]


def _encoded(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def _checker(tally: Tally) -> dict[str, Any]:
    return {
        **{name: getattr(tally, name) for name in COUNTED},
        "lateness_ms": round(tally.worst_since() * 1000, 3),
    }


def _backend(member: Member) -> dict[str, Any]:
    backend, health = member.backend, member.health
    subject = backend.subject
    return {
        "id": backend.id,
        "name": backend.name,
        "address": subject.address,
        "port": subject.port,
        "check": subject.check.name,
        "state": health.state,
        "since": None if member.since is None else _time(member.since),
        "ramp": member.ramp,
        "contrary": health.contrary,
        "needed": member.needed(),
        "last": last_of(member.last, member.latency, member.at) if member.last else None,
        "counters": _counters(member),
    }


def _counters(member: Member) -> dict[str, Any]:
    return {
        "passed": member.passed,
        "failed": member.failed,
        "neutral": member.neutral,
        "flips": member.flips,
        "reasons": member.reasons or {},
    }


def last_of(result: Result, latency: float, at: float) -> dict[str, Any]:
    told = {
        "at": _time(at),
        "outcome": result.outcome.value,
        "reason": result.reason,
        "detail": result.detail,
        "latency_ms": round(latency * 1000, 3),
    }
    if result.valid_until is not None:
        told["certificate_ends"] = _time(result.valid_until)
    return told


def publish(path: Path, text: Iterable[bytes]) -> None:
    new = path.with_name(f".{path.name}.new")
    with new.open("wb") as file:
        file.writelines(text)
    new.replace(path)


def past(path: Path) -> Past:
    """What the last report says; nothing if there is none that can be read."""
    try:
        report = json.loads(path.read_bytes(), object_hook=_short)
        told = dict(report["backends"])
        counted = {name: report["checker"][name] for name in COUNTED}
        return Past(told, _seconds(report["published_at"]), counted)
    except (OSError, ValueError, KeyError, TypeError):
        return Past()  # a convenience: without it, times and counters begin with this process


def _short(read: dict[str, Any]) -> dict[str, Any] | tuple[int, Told]:
    """A backend is cut down as soon as it is read: as dictionaries, thousands take more than all that we keep."""
    return (read["id"], _told(read)) if "counters" in read else read


def _told(entry: dict[str, Any]) -> Told:
    counters = entry["counters"]
    return Told(
        State(entry["state"]),
        _seconds(entry["since"]) if entry["since"] else None,
        (counters["passed"], counters["failed"], counters["neutral"], counters["flips"]),
        counters.get("reasons") or NO_REASONS,
    )


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
