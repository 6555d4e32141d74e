"""The source is not followed for a while: a file in the state folder, with a reason and an end.

A file, so that it works while no daemon runs and outlives its restart. It always
ends: what everybody has forgotten must not decide what is applied months later.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bpf.errors import plainly
from reconciler import durable
from reconciler.acceptance import Pause

FORMAT = "1.0"
DEFAULT = 24 * 3600.0  # seconds
LONGEST = 30 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Suspension:
    """Why, by whom, and from when to when; which generation instead, if one was asked for."""

    reason: str
    since: float
    until: float
    by: str = ""
    generation: int = 0
    digest: str = ""
    allow_removals: bool = False
    broken: bool = False  # the file says nothing that can be understood

    def active(self, now: float) -> bool:
        return self.broken or now < self.until

    def document(self) -> dict[str, Any]:
        said = asdict(self)
        del said["broken"]
        return {"format_version": FORMAT, **said}

    def pause(self) -> Pause:
        return Pause(self.reason, self.generation)

    def left(self, now: float) -> str:
        return span(self.until - now) if not self.broken else "no end"


def path_in(state_dir: Path) -> Path:
    return state_dir / "suspension.json"


def read(state_dir: Path) -> Suspension | None:
    """What the file says. One that cannot be understood suspends: somebody meant something."""
    path = path_in(state_dir)
    try:
        said = json.loads(path.read_text())
        said.pop("format_version")
        found = Suspension(**said)
        return replace(found, since=float(found.since), until=float(found.until))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"{path} cannot be read ({plainly(error)}): `reconciler resume` removes it"
        return Suspension(reason, 0, 0, broken=True)


def write(state_dir: Path, suspension: Suspension) -> None:
    durable.write(path_in(state_dir), json.dumps(suspension.document(), indent=1) + "\n")


def clear(state_dir: Path) -> bool:
    """Whether anything was suspended."""
    return durable.remove(path_in(state_dir))


def span(seconds: float) -> str:
    """A time to come or gone by, as people say it: 2h13m, 45s."""
    whole = max(int(seconds), 0)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days}d{hours}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{whole % 60:02}s" if minutes else f"{whole}s"
