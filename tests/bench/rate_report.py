"""From samples to ratios, a table and a document. Pure: it measures nothing and rounds away no miss.

Every ratio is the median of each round's own, so that a slow moment slows both sides. A figure of packets
that were lost is of those that arrived, with the share that did not beside it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

FLOOR, BARE = "dropped at once", "bare redirect"
FORWARDING, NFTABLES, NAT = "kernel forwarding", "nftables DNAT", "Evenkeel nat"
YARDSTICKS = (FLOOR, BARE)
MARK = 2.0  # of nat: so many times the packets of nftables


@dataclass(slots=True)
class Series:
    """One stream through one way: seconds that a frame took, and what arrived, round by round."""

    stream: str
    way: str
    seconds: list[float] = field(default_factory=list)
    sent: int = 0
    delivered: int = 0
    kept: list[float] = field(default_factory=list)  # of the clock, what the CPU worked for us

    def add(self, sent: int, delivered: int, cpu: float, wall: float) -> None:
        self.seconds.append(cpu / delivered if delivered else float("inf"))
        self.sent += sent
        self.delivered += delivered
        self.kept.append(cpu / wall)

    @property
    def ns(self) -> float:
        return median(self.seconds) * 1e9

    @property
    def mpps(self) -> float:
        """Millions of packets in a second of one CPU."""
        return 1e3 / self.ns

    @property
    def lost(self) -> float:
        return 1 - self.delivered / self.sent


def times(one: Sequence[float], other: Sequence[float]) -> float:
    """How many `one` go into the `other`: of seconds for a packet, how many times as many packets."""
    return median(theirs / own for own, theirs in zip(one, other, strict=True))


def less(one: Sequence[float], floor: Sequence[float]) -> float:
    """Nanoseconds above the floor."""
    return median(own - least for own, least in zip(one, floor, strict=True)) * 1e9


def reached(value: float, mark: float | None) -> str:
    """Against a mark that a figure must not be below."""
    if mark is None:
        return ""
    return "ok" if value >= mark else f"missed by {1 - value / mark:.0%}"


@dataclass(frozen=True, slots=True)
class Line:
    """One row as it is printed; None where there is nothing to compare with."""

    stream: str
    way: str
    mpps: float
    low: float
    high: float
    lost: float
    ns: float
    above: float | None
    nftables: float | None
    forwarding: float | None
    mark: float | None

    @property
    def verdict(self) -> str:
        return "" if self.nftables is None else reached(self.nftables, self.mark)


def lines(series: Iterable[Series]) -> list[Line]:
    known = {(one.stream, one.way): one for one in series}
    return [_line(one, known) for one in known.values()]


def _line(one: Series, known: dict[tuple[str, str], Series]) -> Line:
    def beside(way: str) -> Series | None:
        found = known.get((one.stream, way))
        return None if way == one.way or one.way in YARDSTICKS else found

    floor, theirs, plain = beside(FLOOR), beside(NFTABLES), beside(FORWARDING)
    return Line(
        stream=one.stream,
        way=one.way,
        mpps=one.mpps,
        low=1e-6 / max(one.seconds),
        high=1e-6 / min(one.seconds),
        lost=one.lost,
        ns=one.ns,
        above=less(one.seconds, floor.seconds) if floor else None,
        nftables=times(one.seconds, theirs.seconds) if theirs else None,
        forwarding=times(one.seconds, plain.seconds) if plain else None,
        mark=MARK if one.way == NAT else None,
    )


HEAD = f"{'':24}{'Mpps':>7}{'min':>7}{'max':>7}{'lost':>9}{'ns':>7}{'-floor':>7}{'x nft':>7}{'x fwd':>7}{'mark':>6}"


def table(rows: Iterable[Line], absent: dict[str, str]) -> str:
    printed: list[str] = []
    stream = ""
    for row in rows:
        if row.stream != stream:
            stream = row.stream
            printed += ["", f"{stream:24}{HEAD[24:]}"]
        printed.append(_printed(row))
    printed += [f"  {way:22}{why}" for way, why in absent.items()]
    return "\n".join(printed)


def _printed(row: Line) -> str:
    text = f"  {row.way:22}{row.mpps:>7.2f}{row.low:>7.2f}{row.high:>7.2f}{loss(row.lost):>9}{row.ns:>7.0f}"
    text += f"{_or_blank(row.above, 0)}{_or_blank(row.nftables, 2)}{_or_blank(row.forwarding, 2)}"
    return f"{text}{row.mark or '':>6}  {row.verdict}".rstrip()


def _or_blank(value: float | None, digits: int) -> str:
    return " " * 7 if value is None else f"{value:>7.{digits}f}"


def loss(share: float) -> str:
    """Nothing is 0 unless it is."""
    return "0" if not share else f"{share:.2%}" if share >= 1e-4 else f"{share * 1e6:.1f} ppm"


# ---- two queues


@dataclass(slots=True)
class Load:
    """So many generators at once: packets a second by the clock, and CPU seconds of each, round by round."""

    rate: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, delivered: int, cpu: float, wall: float) -> None:
        self.rate.append(delivered / wall)
        self.seconds.append(cpu / delivered)


@dataclass(frozen=True, slots=True)
class Pair:
    """One generator and one queue, and two of each."""

    way: str
    one: Load
    two: Load
    lost: float  # with two

    @property
    def scales(self) -> float:
        """By the clock: 2 is the best there is, on a machine that does nothing else."""
        return times(self.one.rate, self.two.rate)

    @property
    def scales_by_cpu(self) -> float:
        """Twice as many CPUs, less what a packet costs more where there are two."""
        return 2 * times(self.two.seconds, self.one.seconds)


def pairs_table(pairs: Iterable[Pair]) -> str:
    head = f"{'two CPUs, two queues':24}{'Mpps 1':>8}{'2':>7}{'x':>7}{'ns 1':>8}{'2':>7}{'x':>7}{'lost':>9}"
    return "\n".join(["", head, *map(_pair, pairs)])


def _pair(pair: Pair) -> str:
    rates = [median(load.rate) / 1e6 for load in (pair.one, pair.two)]
    costs = [median(load.seconds) * 1e9 for load in (pair.one, pair.two)]
    text = f"  {pair.way:22}{rates[0]:>8.2f}{rates[1]:>7.2f}{pair.scales:>7.2f}"
    return f"{text}{costs[0]:>8.0f}{costs[1]:>7.0f}{pair.scales_by_cpu:>7.2f}{loss(pair.lost):>9}"


# ---- HTTP


@dataclass(slots=True)
class Requests:
    """One way and one kind of request: how many a second, and microseconds of CPU for each."""

    way: str
    kind: str
    rate: list[float] = field(default_factory=list)
    machine: list[float] = field(default_factory=list)  # of all that runs
    own: list[float] = field(default_factory=list)  # of clients, servers, balancer and softirqs
    errors: int = 0


def requests_table(rows: Iterable[Requests], against: str) -> str:
    known = {(row.kind, row.way): row for row in rows}
    printed, kind = list[str](), ""
    for row in known.values():
        if row.kind != kind:
            kind = row.kind
            head = f"{'a second':>10}{'x':>7}{'machine':>9}{'own us':>8}{'x':>7}{'errors':>8}"
            printed += ["", f"{kind:34}{head}"]
        base = known[kind, against]
        faster, dearer = times(base.rate, row.rate), times(base.own, row.own)
        printed.append(
            f"  {row.way:32}{median(row.rate):>10,.0f}{faster:>7.2f}"
            f"{median(row.machine):>9.1f}{median(row.own):>8.1f}{dearer:>7.2f}{row.errors:>8}"
        )
    return "\n".join(printed)


# ---- for machines


def document(rows: Iterable[Line]) -> list[dict[str, Any]]:
    return [
        {
            "stream": row.stream,
            "way": row.way,
            "mpps": round(row.mpps, 4),
            "mpps_min": round(row.low, 4),
            "mpps_max": round(row.high, 4),
            "lost": row.lost,
            "ns": round(row.ns, 1),
            "ns_above_floor": _rounded(row.above, 1),
            "times_nftables": _rounded(row.nftables, 3),
            "times_forwarding": _rounded(row.forwarding, 3),
            "mark": row.mark,
            "met": None if row.mark is None or row.nftables is None else row.nftables >= row.mark,
        }
        for row in rows
    ]


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def requests_document(rows: Iterable[Requests]) -> list[dict[str, Any]]:
    return [
        {
            "way": row.way,
            "kind": row.kind,
            "requests_a_second": [round(value) for value in row.rate],
            "machine_us_a_request": [round(value, 2) for value in row.machine],
            "own_us_a_request": [round(value, 2) for value in row.own],
            "errors": row.errors,
        }
        for row in rows
    ]


def pairs_document(pairs: Iterable[Pair]) -> list[dict[str, Any]]:
    return [
        {
            "way": pair.way,
            "pps": [[round(value) for value in load.rate] for load in (pair.one, pair.two)],
            "times": round(pair.scales, 3),
            "ns": [
                [round(value * 1e9, 1) for value in load.seconds] for load in (pair.one, pair.two)
            ],
            "times_by_cpu": round(pair.scales_by_cpu, 3),
            "lost": pair.lost,
        }
        for pair in pairs
    ]
