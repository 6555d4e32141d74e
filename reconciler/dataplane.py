"""What the maps say, as a value; one step of changing it; and what can do that.

The reconciler derives all of this and reads it back on every pass: there is no
copy of it anywhere that could differ. Flows, counters and health are not in it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from bpf import abi
from reconciler.table import Slots

Frontend4 = Mapping[abi.Frontend4Key, int]
Frontend6 = Mapping[abi.Frontend6Key, int]


class Where(StrEnum):
    """The maps that the reconciler writes, from what is pointed at to what points at it."""

    SETTINGS = "settings"
    BACKENDS = "backends"
    SPARES = "spares"
    TABLES = "tables"
    POOLS = "pools"
    SERVICES = "services"
    FRONTENDS = "frontends"
    REPLIES4 = "replies4"
    REPLIES6 = "replies6"
    PREFILTER = "prefilter"
    FRONTENDS4 = "frontends4"
    FRONTENDS6 = "frontends6"
    PROBES = "probes"  # of health checks: no client's packet meets them


# Arrays of entries that carry an id: what is removed leaves its incarnation behind.
NUMBERED = (Where.BACKENDS, Where.POOLS, Where.SERVICES, Where.FRONTENDS)


@dataclass(frozen=True, slots=True)
class State:
    """The content of the maps: entries by key or index."""

    settings: Mapping[int, abi.Settings] = field(default_factory=dict)
    probes: Mapping[int, abi.Probe] = field(default_factory=dict)  # by mark
    backends: Mapping[int, abi.Backend] = field(default_factory=dict)
    tables: Mapping[int, Slots] = field(default_factory=dict)
    spares: Mapping[int, Slots] = field(default_factory=dict)
    pools: Mapping[int, abi.Pool] = field(default_factory=dict)
    services: Mapping[int, abi.Service] = field(default_factory=dict)
    frontends: Mapping[int, abi.Frontend] = field(default_factory=dict)
    replies4: Mapping[abi.Frontend4Key, abi.Reply] = field(default_factory=dict)
    replies6: Mapping[abi.Frontend6Key, abi.Reply] = field(default_factory=dict)
    prefilter: Mapping[int, int] = field(default_factory=dict)  # bucket -> kinds, if any
    frontends4: Frontend4 = field(default_factory=dict)
    frontends6: Frontend6 = field(default_factory=dict)
    # Last incarnation of each freed index: what ids are assigned by, no part of the content.
    free: Mapping[Where, Mapping[int, int]] = field(default_factory=dict, compare=False)

    def __getitem__(self, where: Where) -> Mapping[Any, Any]:
        content: Mapping[Any, Any] = getattr(self, where.value)
        return content


@dataclass(frozen=True, slots=True)
class Put:
    """Write one entry; the same again changes nothing."""

    where: Where
    key: Any
    value: Any


@dataclass(frozen=True, slots=True)
class Remove:
    """Take one entry away; a missing one is no error."""

    where: Where
    key: Any


Op = Put | Remove


class Dataplane(Protocol):
    """Where operations are applied: pinned maps, or a dictionary in a test."""

    def read(self) -> State:
        """What is there now."""

    def apply(self, ops: Iterable[Op]) -> None:
        """Carry the operations out, in their order; interrupted, a prefix of them is done."""

    def health(self) -> Mapping[int, abi.Health]:
        """What healthcheck wrote, by index."""

    def flows(self) -> Mapping[int, int]:
        """Live flows by backend's index, as the program counts them."""

    def room(self) -> Mapping[str, int]:
        """How many entries the maps take, by setting: frontends, services, pools, backends."""
