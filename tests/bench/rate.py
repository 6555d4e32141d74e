"""`make bench ARGS="--part rate"`: packets and requests a second, beside neighbours, in one run.

It judges nothing: what is compared, and how, is `rate_report`'s. A run whose frames came out wrong, or at the
wrong place, has no figure but an error; one that lost some says how many.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from bpf.errors import KernelError
from tests.bench import rate_http as http
from tests.bench import rate_report as report
from tests.bench import rate_ways as ways
from tests.bench.objects import BenchError
from tests.bench.rate_report import Load, Pair, Series
from tests.bench.rate_stream import Stream
from tests.bench.rate_ways import Way
from tests.bench.rate_wire import Sample, Wire, first_on
from tests.bench.report import cpu_model

RESULT = Path("build/bench/rate.json")
VERSION = 1
STREAMS = tuple(Stream(p, n) for p in ("udp", "tcp") for n in (1, 1000, 50_000))
PAIRED = Stream("udp", 1000)  # of two queues
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Effort:
    rounds: int = 5  # after the first, which is dropped
    frames: int = 300_000
    seconds: float = 2.0  # of requests


FULL, QUICK = Effort(), Effort(rounds=2, frames=100_000, seconds=1.0)


@contextmanager
def set_up(wire: Wire, say: Say) -> Iterator[tuple[list[Way], dict[str, str]]]:
    """All ways at once, each in a lab of its own, and those that this kernel has not got."""
    makers = (
        ways.dropped, ways.redirected, ways.routed, ways.nftables, ways.ipvs,
        *map(ways.evenkeel, ("nat", "dsr", "ipip", "fullnat")),
    )  # fmt: skip
    found, absent = list[Way](), dict[str, str]()
    with ExitStack() as stack:
        for number, make in enumerate(makers):
            say(f"setting up: {number + 1} of {len(makers)}")
            try:
                way = stack.enter_context(make(wire))
            except ways.NotHere as missing:
                absent[missing.args[0]] = missing.args[1]
                continue
            if way.sink:
                wire.attach("sink", way.lab.switch, way.sink)
            found.append(way)
        yield found, absent


class Bench:
    def __init__(self, wire: Wire, effort: Effort, say: Say) -> None:
        self._wire, self._effort, self._say = wire, effort, say

    def packets(self, found: list[Way], wanted: list[str]) -> list[Series]:
        streams = [s for s in STREAMS if not wanted or any(w in str(s) for w in wanted)]
        pairs = [(stream, way) for stream in streams for way in found]
        series = [Series(str(stream), way.name) for stream, way in pairs]
        with first_on(max(os.sched_getaffinity(0))):
            for number in range(self._effort.rounds + 1):
                for (stream, way), one in zip(pairs, series, strict=True):
                    self._say(f"round {number} of {self._effort.rounds}: {stream}, {way.name}")
                    sample = self._sample(way, stream)
                    if number:
                        one.add(sample.sent, sample.delivered, sample.cpu, sample.wall)
        return series

    def _sample(self, way: Way, stream: Stream) -> Sample:
        before = way.forwarded() if way.forwarded else 0
        sample = self._wire.send(way.entry, stream, self._effort.frames)
        forwarded = way.forwarded() - before if way.forwarded else None
        judge(way.name, stream, sample, forwarded, spread=way.balances and stream.flows > 1)
        way.check(sample.last)
        return sample

    def pairs(self, found: list[Way]) -> list[Pair]:
        """Each generator on a CPU, and so on a queue, of its own."""
        cpus = neighbours(os.sched_getaffinity(0))
        chosen = [
            way for way in found if way.name in (report.NAT, report.NFTABLES, report.FORWARDING)
        ]
        return [self._pair(way, cpus) for way in chosen] if cpus else []

    def _pair(self, way: Way, cpus: list[int]) -> Pair:
        one, two, sent, came = Load(), Load(), 0, 0
        for number in range(self._effort.rounds + 1):
            self._say(f"two queues, round {number} of {self._effort.rounds}: {way.name}")
            for load, some in ((one, cpus[:1]), (two, cpus)):
                sample = self._wire.send_from(some, way.entry, PAIRED, self._effort.frames)
                judge(way.name, PAIRED, sample, None, spread=way.balances)
                if number:
                    load.add(sample.delivered, sample.cpu, sample.wall)
                if number and load is two:
                    sent, came = sent + sample.sent, came + sample.delivered
        return Pair(way.name, one, two, 1 - came / sent)


def judge(way: str, stream: Stream, sample: Sample, forwarded: int | None, *, spread: bool) -> None:
    """What arrived must be what was sent, as far as anybody can be made to answer for it."""
    what = f"{way}, {stream}"
    if sample.stray:
        raise BenchError(f"{what}: {sample.stray} frames came out for nobody")
    if not sample.delivered or sample.delivered > sample.sent:
        raise BenchError(f"{what}: {sample.delivered} of {sample.sent} frames came out")
    if forwarded is not None and not sample.delivered <= forwarded <= sample.sent:
        raise BenchError(f"{what}: {forwarded} counted as forwarded, {sample.delivered} came out")
    if spread and not all(sample.arrived):
        raise BenchError(f"{what}: one backend got nothing: {sample.arrived}")


def neighbours(cpus: set[int]) -> list[int]:
    """Two CPUs whose frames are put into different queues of two; none if there are not two."""
    even, odd = ({cpu for cpu in cpus if cpu % 2 == rest} for rest in (0, 1))
    return [min(odd), min(even)] if even and odd else []


def measure(wanted: list[str], effort: Effort, say: Say) -> None:
    with Wire() as wire:
        bench = Bench(wire, effort, say)
        with set_up(wire, say) as (found, absent):
            series = bench.packets(found, wanted)
            rows, held = report.lines(series), [one for s in series for one in s.kept]
            pairs = [] if wanted else bench.pairs(found)
        requests, others = (
            ([], []) if wanted else http.measure(wire, effort.rounds, effort.seconds, say)
        )
    say("")
    print(report.table(rows, absent))
    print(f"\nof the clock, the bench had {median(held):.0%} of its CPU")
    if pairs:
        print(report.pairs_table(pairs))
    if requests:
        print(report.requests_table(requests, http.DIRECT))
        print(f"\njust before each round, others had {median(others):.0%} of the machine")
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "version": VERSION,
        "kernel": os.uname().release,
        "cpu": cpu_model(),
        "settings": asdict(effort),
        "absent": absent,
        "packets": report.document(rows),
        "two_queues": report.pairs_document(pairs),
        "http": report.requests_document(requests),
        "cpu_held": round(median(held), 3),
        "others_share": [round(share, 3) for share in others],
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n")
    print(f"\nwritten to {RESULT}")


def bench(wanted: list[str], *, quick: bool, say: Say) -> int:
    try:
        ways.needs()
        measure(wanted, QUICK if quick else FULL, say)
    except (BenchError, KernelError) as error:
        print(f"make bench: {error}", file=sys.stderr)
        return 1
    return 0
