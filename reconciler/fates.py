"""What became of the packets of a capture, one by one and all together. Pure.

A flow is a client's 5-tuple towards a service. It has changed its backend when a packet of it
went to another one than the packet before.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from reconciler.packet.decode import Decoded
from reconciler.verdicts import BY_NAME

FORWARDED = "forwarded"
NOT_REPLAYED = "not_replayed"
FORMAT = "1.0"


@dataclass(frozen=True, slots=True)
class Fate:
    """What the program did with a packet under one configuration; names are empty where there are none."""

    verdict: str
    action: str = ""
    service: str = ""
    backend: str = ""
    problem: str = ""  # why it was not replayed

    @property
    def why(self) -> str:
        return self.problem or BY_NAME[self.verdict]

    @property
    def place(self) -> tuple[str, str, str]:
        """Where it went: what two configurations are compared by."""
        return self.verdict, self.service, self.backend

    def __str__(self) -> str:
        way = " -> ".join(filter(None, (self.service, self.backend)))
        return f"{self.verdict} {way}".strip()

    def document(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "why": self.why,
            "action": self.action,
            "service": self.service,
            "backend": self.backend,
        }


@dataclass(frozen=True, slots=True)
class Replayed:
    """A packet of the capture, and its fate; `against` is its fate under the other configuration."""

    number: int
    time: int | None
    captured: int
    length: int
    decoded: Decoded
    fate: Fate
    against: Fate | None = None
    moved_from: str = ""  # the backend of this flow's packet before

    @property
    def elsewhere(self) -> bool:
        return self.against is not None and self.against.place != self.fate.place

    @property
    def flow(self) -> str:
        """Whose packet it is, if it is one from a client to a service."""
        goes = FORWARDED in (self.fate.verdict, self.against.verdict if self.against else "")
        return str(self.decoded.tuple) if goes else ""

    def document(self, *, layers: bool) -> Mapping[str, Any]:
        found: dict[str, Any] = {
            "kind": "packet",
            "format_version": FORMAT,
            "number": self.number,
            "time_ns": self.time,
            "captured": self.captured,
            "length": self.length,
            "cut": self.captured < self.length,
            "tuple": str(self.decoded.tuple or ""),
            **self.fate.document(),
            "moved_from": self.moved_from,
            "malformed": "" if self.decoded.cut else self.decoded.problem,
            "wrong_checksums": self.decoded.wrong_sums,
        }
        if self.against is not None:
            found |= {"against": self.against.document(), "elsewhere": self.elsewhere}
        if layers:
            found["layers"] = [one.document() for one in self.decoded.layers]
        return found


@dataclass(frozen=True, slots=True)
class Moved:
    """A flow that a packet of changed its backend."""

    number: int
    flow: str
    before: str
    after: str


@dataclass(slots=True)
class Tally:
    """All packets so far."""

    packets: int = 0
    bytes: int = 0
    cut: int = 0
    malformed: int = 0
    wrong_sums: int = 0
    elsewhere: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    services: Counter[str] = field(default_factory=Counter)
    backends: Counter[str] = field(default_factory=Counter)
    moved: list[Moved] = field(default_factory=list)
    diverted: dict[str, tuple[str, str]] = field(default_factory=dict)  # flow: other and this fate
    _last: dict[str, str] = field(default_factory=dict)  # backend by flow

    @property
    def flows(self) -> int:
        return len(self._last)

    def before(self, flow: str, fate: Fate) -> str:
        """The backend that this flow had, if it is another one now."""
        had = self._last.get(flow, "")
        return had if fate.verdict == FORWARDED and had != fate.backend else ""

    def add(self, one: Replayed) -> None:
        self.packets += 1
        self.bytes += one.length
        self.cut += one.captured < one.length
        self.malformed += bool(one.decoded.problem and not one.decoded.cut)
        self.wrong_sums += bool(one.decoded.wrong_sums)
        self.elsewhere += one.elsewhere
        self.verdicts[one.fate.verdict] += 1
        self._follow(one)
        if one.fate.service:
            self.services[one.fate.service] += 1
        if one.fate.backend:
            self.backends[one.fate.backend] += 1

    def _follow(self, one: Replayed) -> None:
        if one.moved_from:
            self.moved.append(Moved(one.number, one.flow, one.moved_from, one.fate.backend))
        if one.flow and one.fate.verdict == FORWARDED:
            self._last[one.flow] = one.fate.backend
        if one.elsewhere and one.flow and one.against is not None:
            self.diverted.setdefault(one.flow, (str(one.against), str(one.fate)))

    def document(self, error: str, *, compared: bool) -> Mapping[str, Any]:
        found: dict[str, Any] = {
            "kind": "summary",
            "format_version": FORMAT,
            "packets": self.packets,
            "bytes": self.bytes,
            "cut": self.cut,
            "malformed": self.malformed,
            "wrong_checksums": self.wrong_sums,
            "flows": self.flows,
            "verdicts": dict(self.verdicts),
            "services": dict(self.services),
            "backends": dict(self.backends),
            "moved": [
                {"number": m.number, "flow": m.flow, "from": m.before, "to": m.after}
                for m in self.moved
            ],
            "error": error,
        }
        if compared:
            found["elsewhere"] = {
                "packets": self.elsewhere,
                "flows": [
                    {"flow": flow, "against": old, "now": new}
                    for flow, (old, new) in self.diverted.items()
                ],
            }
        return found


SHOWN = 20  # flows of a list for people


def summary(tally: Tally, *, compared: bool) -> Iterator[str]:
    yield f"{tally.packets} packets, {tally.bytes} bytes, {tally.flows} flows forwarded"
    for count, what in (
        (tally.cut, "cut short by the capture: judged as if the rest were zero"),
        (tally.malformed, "malformed"),
        (tally.wrong_sums, "with a wrong checksum"),
    ):
        if count:
            yield f"{count:8} {what}"
    yield from _counts("verdict", tally.verdicts)
    yield from _counts("service", tally.services)
    yield from _counts("backend", tally.backends)
    moved = [f"#{m.number} {m.flow}: {m.before} -> {m.after}" for m in tally.moved]
    yield from _listed(f"{len(moved)} times a flow changed its backend", moved)
    if compared:
        flows = [f"{flow}: {old}, now {new}" for flow, (old, new) in tally.diverted.items()]
        yield f"{tally.elsewhere} packets would go elsewhere than with --against"
        yield from _listed(f"{len(flows)} flows would", flows)


def _counts(what: str, counter: Counter[str]) -> Iterator[str]:
    for name, count in sorted(counter.items(), key=lambda item: (-item[1], item[0])):
        yield f"{count:8} {what} {name}"


def _listed(title: str, items: list[str]) -> Iterator[str]:
    if items:
        yield title
    yield from (f"           {item}" for item in items[:SHOWN])
    if len(items) > SHOWN:
        yield f"           and {len(items) - SHOWN} more: --output json lists all"
