"""The loop's word about itself, for the script that keepalived runs every second. Pure.

Two signals that are never mixed: whether the data plane forwards, and whether this
node follows its source. Backends have no part in either: when all of them are down,
they are down for every other node too, and moving the address would help nobody.
Besides its verdicts it names what the script looks at itself, since a dead loop's
last word is no proof.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from reconciler.conditions import Condition, Holds, Type
from reconciler.facts import Facts

HEADER = "evenkeel heartbeat 1"
OK = "ok"
BLIND = "Unreadable"  # the maps could not be read for this beat
FOLLOWS = (Type.CONFIG_VALID, Type.SOURCE_FRESH, Type.IN_SYNC, Type.HEALTH_FRESH)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    at: int  # seconds since the machine started, as /proc/uptime counts them
    dataplane: str  # ok, or in one word why not
    control: str
    generation: int
    pins: tuple[str, ...] = ()
    interfaces: tuple[str, ...] = ()

    def text(self) -> str:
        """One fact a line; the last line proves that it is whole."""
        lines = [
            HEADER,
            f"at {self.at}",
            f"dataplane {self.dataplane}",
            f"control {self.control}",
            f"generation {self.generation}",
            *(f"pin {path}" for path in self.pins),
            *(f"interface {name}" for name in self.interfaces),
            "end",
        ]
        return "\n".join(lines) + "\n"


def of(facts: Facts, at: float, pins: Iterable[str], interfaces: Iterable[str]) -> Heartbeat:
    return Heartbeat(
        at=int(at),
        dataplane=_dataplane(facts),
        control=_control(facts.conditions),
        generation=facts.meta.generation if facts.meta else 0,
        pins=tuple(pins),
        interfaces=tuple(interfaces),
    )


def _dataplane(facts: Facts) -> str:
    found = {one.type: one for one in facts.conditions}.get(Type.DATAPLANE_HEALTHY)
    if found is None or found.status is not Holds.TRUE:
        return found.reason if found else "NotJudged"
    return OK if facts.state.frontends else "NoServices"


def _control(conditions: tuple[Condition, ...]) -> str:
    found = {one.type: one for one in conditions}
    if not found:
        return "NotJudged"
    wrong = (found[kind].reason for kind in FOLLOWS if not found[kind].well)
    return next(wrong, OK)
