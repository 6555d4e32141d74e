"""What an operator forces for a while, whatever health and configuration say. Pure: no clock, no I/O.

An override names a backend, says why, and ends by itself: there is none without
an expiry. It moves no slot and changes no digest; it is two flags in the
backend's entry, and is kept in a file of its own, never in the configuration.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from bpf import abi
from reconciler import ids
from reconciler.compile import Desired
from reconciler.dataplane import State

FORMAT = "1.0"
LONGEST = 30 * 86400.0  # seconds: what is meant to last longer belongs into lb.yaml


class Forced(StrEnum):
    UP = "up"
    DOWN = "down"


class Unusable(Exception):
    """An override that cannot be: whoever asked for it must act."""


@dataclass(frozen=True, slots=True, order=True)
class Override:
    pool: str
    backend: str
    state: Forced
    reason: str
    by: str  # who asked for it
    since: float  # seconds since the epoch
    until: float

    @property
    def name(self) -> str:
        return f"{self.pool}/{self.backend}"


Overrides = tuple[Override, ...]


def checked(override: Override) -> Override:
    """The same, if it may be set: Unusable says what is wrong with it."""
    if not override.reason.strip():
        raise Unusable(f"override {override.name}: say why: --reason TEXT")
    if not 0 < override.until - override.since <= LONGEST:
        raise Unusable(
            f"override {override.name}: for {override.until - override.since:g} s: more than 0,"
            f" at most {LONGEST:g} s; what is meant to last is a backend's `state` in lb.yaml"
        )
    return override


def in_force(overrides: Overrides, now: float) -> Overrides:
    return tuple(override for override in overrides if override.until > now)


def with_one(overrides: Overrides, new: Override) -> Overrides:
    """A backend has one override at most: the newest."""
    return tuple(sorted((*without(overrides, new.name), new)))


def without(overrides: Overrides, name: str) -> Overrides:
    return tuple(override for override in overrides if override.name != name)


def applied(desired: Desired, overrides: Overrides) -> Desired:
    """The desired state with forced backends; one that is not configured any more is nobody's."""
    forced = {
        desired.backends[override.pool, override.backend]: override.state
        for override in overrides
        if (override.pool, override.backend) in desired.backends
    }
    if not forced:
        return desired
    backends = dict(desired.state.backends)
    for number, state in forced.items():
        at = ids.index(number)
        backends[at] = _with_flag(backends[at], state)
    return replace(desired, state=_with_backends(desired.state, backends))


def _with_flag(entry: abi.Backend, state: Forced) -> abi.Backend:
    """FORCED_DOWN wins over FORCED_UP in the program, so one of them takes the other's place."""
    both = abi.BackendFlag.FORCED_UP | abi.BackendFlag.FORCED_DOWN
    flag = abi.BackendFlag.FORCED_UP if state is Forced.UP else abi.BackendFlag.FORCED_DOWN
    forced = abi.Backend.from_bytes(bytes(entry))
    forced.flags = entry.flags & ~int(both) | int(flag)
    return forced


def _with_backends(state: State, backends: Mapping[int, abi.Backend]) -> State:
    fields = {name: getattr(state, name) for name in State.__dataclass_fields__}
    return State(**{**fields, "backends": backends})


# ---- as a document


def document(overrides: Overrides) -> dict[str, Any]:
    return {"format_version": FORMAT, "overrides": [asdict(one) for one in overrides]}


def parse(content: object) -> Overrides:
    """Unusable for anything that `document` did not write."""
    try:
        entries = content["overrides"]  # type: ignore[index]
        return tuple(sorted(_one(entry) for entry in entries))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unusable(f"not a list of overrides: {error!r}") from error


def _one(entry: Mapping[str, Any]) -> Override:
    return Override(
        pool=str(entry["pool"]),
        backend=str(entry["backend"]),
        state=Forced(entry["state"]),
        reason=str(entry["reason"]),
        by=str(entry["by"]),
        since=float(entry["since"]),
        until=float(entry["until"]),
    )
