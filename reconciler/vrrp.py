"""Which role keepalived has given this node: from the lines of its notify FIFO, as values. Pure.

A role is for people to read. Nothing is applied or left because of it: the backup
keeps its maps and its checks as warm as the master's.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

_LINE = re.compile(r'INSTANCE "([^"]{1,255})" ([A-Z_]+)(?: ([0-9]{1,3}))?')
_REPRIORITISED = "_PRIORITY"  # MASTER_PRIORITY: the same role, another priority


class State(StrEnum):
    MASTER = "master"
    BACKUP = "backup"
    FAULT = "fault"
    STOP = "stop"
    UNKNOWN = "unknown"  # keepalived does not run, and did not say that it stopped


@dataclass(frozen=True, slots=True)
class Role:
    """Of one vrrp_instance; `priority` is what keepalived reckons with now, if it said so."""

    name: str
    role: State
    priority: int | None
    since: float  # seconds since the epoch


Roles = Mapping[str, Role]


@dataclass(frozen=True, slots=True)
class Vrrp:
    """What is known of keepalived; `running`: it has the FIFO open."""

    running: bool
    instances: tuple[Role, ...] = ()


def heard(before: Roles, lines: Iterable[str], now: float) -> Roles:
    """After these lines; what is no line about an instance is passed over."""
    after = dict(before)
    for line in lines:
        if found := _LINE.fullmatch(line):
            name, word, priority = found.groups()
            state = _STATES.get(word.removesuffix(_REPRIORITISED))
            if state is not None:
                number = int(priority) if priority else None
                after[name] = _taken(after.get(name), Role(name, state, number, now))
    return after


_STATES = {state.name: state for state in State if state is not State.UNKNOWN}


def _taken(before: Role | None, now_is: Role) -> Role:
    same = before is not None and before.role is now_is.role
    return replace(now_is, since=before.since) if before and same else now_is


def orphaned(before: Roles, now: float) -> Roles:
    """Nobody has the FIFO open any more: whoever did not say that it stopped was killed."""
    return {
        name: one if one.role is State.STOP else _taken(one, Role(name, State.UNKNOWN, None, now))
        for name, one in before.items()
    }  # fmt: skip


# ---- kept, since keepalived says a role once and we may be restarted


def document(roles: Roles) -> dict[str, Any]:
    return {"roles": [[r.name, r.role.value, r.priority, r.since] for r in roles.values()]}


def parse(content: Mapping[str, Any]) -> Roles:
    """ValueError, KeyError or TypeError where it is no such document."""
    return {
        str(name): Role(str(name), State(role), priority, float(since))
        for name, role, priority, since in content["roles"]
    }
