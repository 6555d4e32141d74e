"""Counters as values: what was read at one time, and how fast that grows. Pure.

The maps hold the counters; nothing here adds to one. A rate is between two
readings, and there is none before the second.
"""

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field

from bpf import abi


@dataclass(frozen=True, slots=True)
class Count:
    """What was counted for one service or backend."""

    packets: int = 0
    bytes: int = 0
    flows: int = 0
    reply_packets: int = 0
    reply_bytes: int = 0

    @classmethod
    def of(cls, entry: abi.Counters) -> "Count":
        return cls(
            entry.packets, entry.bytes, entry.flows, entry.reply_packets, entry.reply_bytes
        )  # fmt: skip

    def __add__(self, other: "Count") -> "Count":
        return Count(
            self.packets + other.packets,
            self.bytes + other.bytes,
            self.flows + other.flows,
            self.reply_packets + other.reply_packets,
            self.reply_bytes + other.reply_bytes,
        )

    def since(self, base: "Count") -> "Count":
        """What was counted after `base`; all of it when the counter began anew meanwhile."""
        if self.packets < base.packets or self.reply_packets < base.reply_packets:
            return self
        return Count(
            self.packets - base.packets,
            self.bytes - base.bytes,
            self.flows - base.flows,
            self.reply_packets - base.reply_packets,
            self.reply_bytes - base.reply_bytes,
        )


NOTHING = Count()


@dataclass(frozen=True, slots=True)
class Rate:
    """The same a second."""

    packets: float
    bytes: float
    flows: float
    reply_packets: float
    reply_bytes: float


@dataclass(frozen=True, slots=True)
class Tally:
    packets: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """Every counter at one time; services and backends by index."""

    at: float = 0.0  # monotonic
    services: Mapping[int, Count] = field(default_factory=dict)
    backends: Mapping[int, Count] = field(default_factory=dict)
    live: Mapping[int, int] = field(default_factory=dict)
    cpus: tuple[tuple[Tally, ...], ...] = ()  # by CPU, by verdict
    latency: tuple[int, ...] = ()  # by bucket

    def verdicts(self) -> list[Tally]:
        """Over all CPUs."""
        return [
            Tally(sum(one.packets for one in each), sum(one.bytes for one in each))
            for each in zip(*self.cpus, strict=True)
        ]


def rate(new: Count | None, old: Count | None, seconds: float) -> Rate | None:
    """None without a second reading to compare with."""
    if seconds <= 0:
        return None
    grown = (new or NOTHING).since(old or NOTHING)
    return Rate(
        round(grown.packets / seconds, 1),
        round(grown.bytes / seconds, 1),
        round(grown.flows / seconds, 1),
        round(grown.reply_packets / seconds, 1),
        round(grown.reply_bytes / seconds, 1),
    )


def total(counts: Iterable[Count]) -> Count:
    together = NOTHING
    for count in counts:
        together += count
    return together


def sum_of(rates: Iterable[Rate | None]) -> Rate | None:
    known = [astuple(rate) for rate in rates if rate is not None]
    if len(known) > 1:
        return Rate(*(round(sum(each), 1) for each in zip(*known, strict=True)))
    return Rate(*known[0]) if known else None


class Window:
    """The last readings: rates are over a few seconds, not over one."""

    def __init__(self, seconds: float = 5.0) -> None:
        self._seconds = seconds
        self._readings: list[Reading] = []

    def add(self, reading: Reading) -> None:
        """The oldest that stays is the newest of those that are old enough."""
        kept = [*self._readings, reading]
        while len(kept) > 1 and reading.at - kept[1].at >= self._seconds:
            kept.pop(0)
        self._readings = kept

    @property
    def newest(self) -> Reading:
        return self._readings[-1] if self._readings else Reading()

    @property
    def oldest(self) -> Reading:
        return self._readings[0] if self._readings else Reading()
