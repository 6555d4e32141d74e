"""What keepalived.conf makes of a node: scripts, instances, and which priority comes of which failure. Pure.

keepalived adds the weight of a script to the priority: a negative one while it fails,
a positive one while it succeeds. What comes of it is cut off at 1 and at 254.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address

from reconciler.keepalived import Parsed, Statement

LOWEST, HIGHEST, OWNER = 1, 254, 255
DEFAULT_PRIORITY = 100  # but of `state MASTER` the owner's


class Signal(StrEnum):
    DATAPLANE = "dataplane"
    CONTROL = "control"


@dataclass(frozen=True, slots=True)
class Script:
    name: str
    command: tuple[str, ...]
    weight: int
    init_fail: bool
    user: str  # empty: the global one
    where: str

    @property
    def path(self) -> str:
        return self.command[0] if self.command else ""

    @property
    def signal(self) -> Signal | None:
        """What of ours it asks for."""
        if not self.path.endswith("evenkeel-check"):
            return None
        return next((one for one in Signal if one.value in self.command), None)


@dataclass(frozen=True, slots=True)
class Instance:
    name: str
    router: str  # virtual_router_id
    priority: int
    tracked: Mapping[str, int | None]  # script -> a weight of its own
    addresses: tuple[str, ...]
    grouped: bool  # in a sync group, which passes over weights
    where: str

    @property
    def speaks(self) -> tuple[str, bool]:
        """By what peers find each other: the number, of one family."""
        return self.router, ":" in "".join(self.addresses[:1])


@dataclass(frozen=True, slots=True)
class Setup:
    """One node's keepalived, as far as it concerns us."""

    file: str
    security: bool
    user: str
    scripts: Mapping[str, Script] = field(default_factory=dict)
    instances: tuple[Instance, ...] = ()

    def weight(self, instance: Instance, name: str) -> int:
        own = instance.tracked[name]
        return self.scripts[name].weight if own is None else own

    def asks(self, instance: Instance, signal: Signal) -> Iterator[Script]:
        """Its scripts for that signal."""
        known = (self.scripts[name] for name in instance.tracked if name in self.scripts)
        return (script for script in known if script.signal is signal)

    def sum(self, instance: Instance, *failing: Signal) -> int:
        """The priority while these signals fail, before it is cut off."""
        total = instance.priority
        for name in instance.tracked.keys() & self.scripts.keys():
            weight, fails = self.weight(instance, name), self.scripts[name].signal in failing
            total += weight if (weight < 0) == fails else 0
        return total

    def priority(self, instance: Instance, *failing: Signal) -> int:
        return min(HIGHEST, max(LOWEST, self.sum(instance, *failing)))


def setup(parsed: Parsed, file: str) -> Setup:
    blocks = parsed.root
    globals_ = [inner for one in blocks.all("global_defs") for inner in one.block]
    together = Statement(("global_defs",), "", globals_)
    weighed = together.has("sync_group_tracking_weight")
    grouped = {
        name
        for one in blocks.all("vrrp_sync_group")
        if not weighed and not one.has("sync_group_tracking_weight")
        for member in one.all("group")
        for inner in member.block
        for name in inner.words
    }
    scripts = {
        one.words[1]: _script(one) for one in blocks.all("vrrp_script") if len(one.words) > 1
    }
    return Setup(
        file=file,
        security=together.has("enable_script_security"),
        user=together.value("script_user"),
        scripts=scripts,
        instances=tuple(
            _instance(one, grouped) for one in blocks.all("vrrp_instance") if len(one.words) > 1
        ),
    )


def _script(block: Statement) -> Script:
    lines = [one for one in block.all("script") if len(one.words) > 1]
    command = " ".join(lines[-1].words[1:]).split() if lines else []
    return Script(
        name=block.words[1],
        command=tuple(command),
        weight=_number(block.value("weight"), 0),
        init_fail=block.has("init_fail"),
        user=block.value("user"),
        where=block.where,
    )


def _instance(block: Statement, grouped: set[str]) -> Instance:
    tracked: dict[str, int | None] = {}
    for line in (inner for one in block.all("track_script") for inner in one.block):
        words = line.words
        own = words[words.index("weight") + 1 :] if "weight" in words else ()
        tracked[line.name] = _number(own[0], 0) if own else None
    addresses = (
        _address(inner.name.partition("/")[0])
        for kind in ("virtual_ipaddress", "virtual_ipaddress_excluded")
        for one in block.all(kind)
        for inner in one.block
    )
    return Instance(
        name=block.words[1],
        router=block.value("virtual_router_id"),
        priority=_number(
            block.value("priority"),
            OWNER if block.value("state") == "MASTER" else DEFAULT_PRIORITY,
        ),
        tracked=tracked,
        addresses=tuple(addresses),
        grouped=block.words[1] in grouped,
        where=block.where,
    )


def _address(text: str) -> str:
    """As lb.yaml's are written out."""
    try:
        return str(ip_address(text))
    except ValueError:
        return text


def _number(text: str, default: int) -> int:
    try:
        return int(text)
    except ValueError:
        return default
