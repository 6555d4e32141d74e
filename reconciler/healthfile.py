"""What healthcheck publishes as health.json, as far as a status says it. Read only; never a verdict.

The verdict is in the health map. This adds why, since when, and whether the
checker is alive at all. Another user writes it: whatever is in it ends no pass.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from reconciler.facts import Checked, Checker, Moment, Probes

NAME = "health.json"
WRONG = (
    OSError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Report:
    checker: Checker
    troubles: tuple[str, ...] = ()
    backends: Mapping[int, Checked] = field(default_factory=dict)  # by id


class HealthFile:
    """Parsed only when it is another one."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / NAME
        self._seen: tuple[int, int] | None = None
        self._report: Report | None = None

    def read(self) -> Report | None:
        """The last report that could be read; None: there is none."""
        try:
            found = self._path.stat()
            seen = found.st_ino, found.st_mtime_ns
            if seen != self._seen:
                self._report = parse(json.loads(self._path.read_text()))
                self._seen = seen
        except FileNotFoundError:
            self._report, self._seen = None, None
        except WRONG:
            pass  # renamed into place: the next one is better
        return self._report


def parse(content: Mapping[str, Any]) -> Report:
    return Report(
        checker=Checker(_time(content["published_at"]), **_known(Checker, content["checker"])),
        troubles=tuple(f"{one['type']}: {one['message']}" for one in content["conditions"]),
        backends={entry["id"]: _backend(entry) for entry in content["backends"]},
    )


def _backend(entry: Mapping[str, Any]) -> Checked:
    last = entry.get("last") or {}
    since = None
    with suppress(ValueError):
        since = _time(entry["since"]) if entry["since"] else None
    return Checked(
        check=str(entry["check"]),
        since=since,
        reason=str(last.get("reason", "")),
        detail=str(last.get("detail", "")),
        latency_ms=None if last.get("latency_ms") is None else float(last["latency_ms"]),
        probes=Probes(**_known(Probes, entry["counters"])),
    )


def _known(kind: type[Any], counted: Mapping[str, Any]) -> dict[str, Any]:
    """As far as this release knows it: the other daemon may be older or newer."""
    return {one.name: _count(counted[one.name]) for one in fields(kind) if one.name in counted}


def _count(value: object) -> object:
    """A number, or numbers by a word."""
    if isinstance(value, dict):
        return {str(name): int(count) for name, count in value.items()}
    if not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is no count")
    return value


def _time(text: str) -> Moment:
    return Moment(datetime.fromisoformat(text).timestamp())
