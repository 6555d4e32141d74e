"""health.json: what is known of each backend, for whoever reads it (schemas/health.schema.json). Decides nothing.

The file is renamed into place, so a reader sees one whole report or the one before, and may wait for the rename.
"""

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from healthcheck.checker import Tally
from healthcheck.exchange import Result
from healthcheck.health import Health, Outcome, State
from healthcheck.targets import Backend

FORMAT_VERSION = "1.0"


@dataclass(frozen=True, slots=True)
class Last:
    """The newest result, and what it took."""

    result: Result
    latency: float  # seconds
    at: float  # since the epoch


@dataclass(slots=True)
class Counters:
    passed: int = 0
    failed: int = 0
    neutral: int = 0
    flips: int = 0

    def count(self, outcome: Outcome) -> None:
        if outcome is Outcome.PASS:
            self.passed += 1
        elif outcome is Outcome.FAIL:
            self.failed += 1
        else:
            self.neutral += 1


@dataclass(slots=True)
class Member:
    """A backend with all that is known of it."""

    backend: Backend
    health: Health = Health()  # noqa: RUF009 - a frozen value
    since: float | None = None  # when `health.state` began; None: not known, or never judged
    last: Last | None = None
    counters: Counters = field(default_factory=Counters)


@dataclass(frozen=True, slots=True)
class Condition:
    """Something about the checker itself that an operator should know, for as long as it lasts."""

    type: str
    message: str
    since: float


def document(
    instance: str,
    members: list[Member],
    conditions: list[Condition],
    tally: Tally,
    now: float,
) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "instance": instance,
        "published_at": _time(now),
        "conditions": [
            {"type": condition.type, "message": condition.message, "since": _time(condition.since)}
            for condition in conditions
        ],
        "checker": asdict(tally),
        "backends": [_backend(member) for member in members],
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
        "contrary": health.contrary,
        "needed": subject.check.thresholds.to_leave(health.state),
        "last": last_of(member.last) if member.last else None,
        "counters": asdict(member.counters),
    }


def last_of(last: Last) -> dict[str, Any]:
    return {
        "at": _time(last.at),
        "outcome": last.result.outcome.value,
        "reason": last.result.reason,
        "detail": last.result.detail,
        "latency_ms": round(last.latency * 1000, 3),
    }


def publish(path: Path, report: dict[str, Any]) -> None:
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(report, separators=(",", ":")) + "\n", "utf-8")
    new.replace(path)


def remembered(path: Path) -> dict[int, tuple[State, float]]:
    """Since when each backend was what the last report says; nothing if there is none that can be read."""
    try:
        backends = json.loads(path.read_text("utf-8"))["backends"]
        return {
            entry["id"]: (State(entry["state"]), datetime.fromisoformat(entry["since"]).timestamp())
            for entry in backends
            if entry["since"]
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # a convenience: without it, times begin with this process


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
