"""One line on how the daemon is, for `systemctl status`; and whether it has started. Pure: made from Facts."""

from reconciler.conditions import Condition, Type
from reconciler.facts import Facts

# What each of them says is part of the line already, or no trouble of this daemon's.
LEFT_OUT = frozenset({Type.READY, Type.OVERRIDDEN})


def has_started(facts: Facts | None, *, verified: bool) -> bool:
    """The maps were found to be what the file says, and packets meet the program.

    One interface will do: what is wrong with another is said, and tried again, without starting anew.
    """
    return facts is not None and verified and bool(facts.attached)


def headline(facts: Facts | None) -> str:
    if facts is None:
        return "looking at the maps for the first time"
    troubles = "; ".join(
        _said(one) for one in facts.conditions if not one.well and one.type not in LEFT_OUT
    )
    return "; ".join(part for part in (_forwarding(facts), troubles) if part)


def _forwarding(facts: Facts) -> str:
    if facts.meta is None or not facts.meta.generation or facts.config is None:
        return "nothing applied yet"
    services, backends = len(facts.config.services), len(facts.roster.backends)
    where = ", ".join(one.interface for one in facts.attached) or "no interface"
    made = f"generation {facts.meta.generation}"
    return f"{made}: {services} services, {backends} backends, on {where}"


def _said(condition: Condition) -> str:
    return f"{condition.reason}: {condition.message}" if condition.message else condition.reason
