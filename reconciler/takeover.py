"""What an upgrade would do, as a value: its JSON, and its words. Pure."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from reconciler.likeness import Difference, Kind, first_difference

FORMAT = "1.0"
SHOWN = 5
EACH = 3e-6  # seconds that copying an entry takes, all rounds together
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Side:
    """A program by what it was made of."""

    version: str
    object: str
    tag: str
    abi: int | None
    id: int = 0  # the kernel's; 0: not loaded yet

    def __str__(self) -> str:
        return f"{self.version}, object {self.object}, tag {self.tag}"


@dataclass(frozen=True, slots=True)
class Resized:
    """A setting of node.yaml that is not what the maps were made with."""

    setting: str
    made: int
    wanted: int
    maps: tuple[str, ...]  # that are made anew
    needed: int  # entries that the fullest of them has
    evicts: bool  # what does not fit is forgotten; else it is in the way
    copied: int = 0  # entries, of all of them
    bytes_before: int = 0  # that the kernel needs for them
    bytes_after: int = 0  # about

    @property
    def in_the_way(self) -> bool:
        return self.needed > self.wanted and not self.evicts

    def __str__(self) -> str:
        what = f"{self.made} -> {self.wanted}; {self.needed} entries are copied"
        if self.in_the_way:
            what = f"{self.made} -> {self.wanted}: too few, {self.needed} are needed"
        elif self.needed > self.wanted:
            what += f", {self.needed - self.wanted} of them forgotten"
        return f"sizes.{self.setting} {what}"


@dataclass(frozen=True, slots=True)
class Takeover:
    """`outcome`: pending, nothing, refused, upgraded or undone."""

    instance: str
    running: Side
    new: Side
    outcome: str
    interfaces: tuple[str, ...] = ()
    maps_kept: int = 0
    load_seconds: float = 0.0  # what loading the new program took
    live_flows: int = 0
    resized: tuple[Resized, ...] = ()
    packets: Mapping[str, int] = field(default_factory=dict)  # compared, by what they stood for
    tests: str = ""
    failed_tests: tuple[str, ...] = ()
    differences: tuple[Difference, ...] = ()
    backends: Mapping[int, str] = field(default_factory=dict)  # names, by id
    untested: str = ""  # why nothing was compared

    @property
    def objections(self) -> tuple[str, ...]:
        """Why it is not done unless somebody insists."""
        found = []
        if self.failed_tests:
            found.append(f"tests of lb.yaml fail: {len(self.failed_tests)}")
        if self.differences:
            found.append(f"the new program treats {_packets(len(self.differences))} otherwise")
        if self.untested:
            found.append(self.untested)
        return tuple(found)

    @property
    def obstacles(self) -> tuple[str, ...]:
        """Why it cannot be done, whoever insists."""
        return tuple(str(one) for one in self.resized if one.in_the_way)

    def document(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT,
            "instance": self.instance,
            "outcome": self.outcome,
            "running": asdict(self.running),
            "new": asdict(self.new),
            "interfaces": list(self.interfaces),
            "maps_kept": self.maps_kept,
            "load_seconds": round(self.load_seconds, 3),
            "live_flows": self.live_flows,
            "resized": [asdict(one) for one in self.resized],
            "packets": dict(self.packets),
            "tests": self.tests,
            "failed_tests": list(self.failed_tests),
            "differences": {kind.value: count for kind, count in self._kinds().items()},
            "examples": [self._example(one) for one in self.differences[:SHOWN]],
            "objections": list(self.objections),
            "obstacles": list(self.obstacles),
        }

    def _kinds(self) -> Counter[Kind]:
        return Counter(one.kind for one in self.differences)

    def _example(self, one: Difference) -> dict[str, str]:
        return {
            "packet": one.what,
            "kind": one.kind,
            "running": self._treated(one.running.verdict, one.running.action, one.running_backend),
            "new": self._treated(one.new.verdict, one.new.action, one.new_backend),
            "bytes": first_difference(one.running.frame, one.new.frame)
            if one.kind is Kind.BYTES
            else "",
        }

    def _treated(self, verdict: str, action: str, backend: int) -> str:
        where = f" to {self.backends.get(backend, f'#{backend:08x}')}" if backend else ""
        return f"{verdict}{where} ({action.lower()})"

    # ---- for people

    def text(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"running   {self.running}"
        yield f"new       {self.new}"
        if self.outcome == "nothing":
            yield "nothing to do: this program runs already, over maps of these sizes"
            return
        yield f"takes over on {', '.join(self.interfaces) or 'no interface'}"
        yield (
            f"maps      {self.maps_kept} kept, ABI {self.running.abi};"
            f" {self.live_flows} live flows go on"
        )
        for one in self.resized:
            yield f"          {one} ({', '.join(one.maps)})"
        if self.resized:
            yield from self._cost()
        if self.load_seconds:
            yield f"loading   {self.load_seconds:.2f} s, while the running program forwards"
        yield from self._compared()

    def _cost(self) -> Iterator[str]:
        """Of other sizes."""
        entries = sum(one.copied for one in self.resized)
        before, after = (
            sum(getattr(one, name) for one in self.resized)
            for name in ("bytes_before", "bytes_after")
        )
        yield (
            f"copying   {entries} entries, about {entries * EACH:.0f} s, in batches while everything goes on;"
            " passes wait for the last step only"
        )
        yield (
            f"          {after / MIB:.0f} MiB of kernel memory for the new maps, and until it is over"
            f" {before / MIB:.0f} for those before"
        )
        if any(one.evicts for one in self.resized):
            yield (
                "          A flow of the last moments before the switch is known a moment later: until then its"
                " packets go by the table, as those of a peer's would"
            )

    def _compared(self) -> Iterator[str]:
        if self.packets:
            counts = ", ".join(f"{count} {what}" for what, count in self.packets.items())
            yield f"compared  {_packets(sum(self.packets.values()))}: {counts}"
        if self.tests:
            yield f"tests     {self.tests}"
        for line in self.failed_tests:
            yield f"  FAILED  {line}"
        if self.differences:
            kinds = ", ".join(f"{count} by {kind}" for kind, count in self._kinds().items())
            yield f"differ    {_packets(len(self.differences))}: {kinds}"
        for one in map(self._example, self.differences[:SHOWN]):
            yield f"  {one['packet']}: {one['running']}, new: {one['new']} {one['bytes']}".rstrip()
        if (more := len(self.differences) - SHOWN) > 0:
            yield f"  ... and {more} more"
        if self.packets and not self.objections:
            yield "no difference in verdict, backend or bytes"


def _packets(count: int) -> str:
    return f"{count} packet{'' if count == 1 else 's'}"
