"""`python -m tests.bench.health`: what a health check costs, beside HAProxy in the same run."""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench import health_rig as rig
from tests.bench.objects import BenchError
from tests.bench.report import verdict
from tests.support.certificates import make
from tests.support.wait import until

RESULT = Path("build/bench/health.json")
VERSION = 1
SHORT, LONG = 0.5, 1.5  # of the checks that should have been
WARM = 2.5  # seconds until start-up is over and every target was probed


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    kind: str
    count: int
    every: float
    mark: float | None
    against: str = ""  # the neighbour's kind, where it is another
    options: tuple[tuple[str, Any], ...] = ()


CASES = (
    Case("tcp, 10,000 a second", "tcp", 10000, 1.0, 0.9),
    Case("tcp, 2,000 a second", "tcp", 2000, 1.0, 1.2),
    Case("http, fresh connections, 10,000 a second", "http", 10000, 1.0, 0.9),
    Case("http, fresh connections, 2,000 a second", "http", 2000, 1.0, 1.2),
    Case(
        "http kept alive, against fresh, 10,000 a second",
        "http",
        10000,
        1.0,
        0.3,
        options=(("keep_alive", True),),
    ),
    Case("tls, 500 a second", "tls", 500, 1.0, 1.1),
)


def backends(case: Case, ca: Path) -> list[dict[str, Any]]:
    kind = "https" if case.kind == "tls" else case.kind
    check = {"name": "bench", "type": kind, "every": case.every, "timeout": min(case.every, 1.0)}
    check |= {"rise": 2, "fall": 3, **dict(case.options)}
    if kind == "https":
        check |= {"ca": str(ca), "server_name": "www.example"}
    port = rig.SECURE if kind == "https" else rig.PLAIN
    return [
        {"id": n + 1, "name": f"pool/b{n}", "address": rig.address(n), "port": port, "check": check}
        for n in range(case.count)
    ]


class Bench:
    def __init__(self, directory: Path, seconds: float, say: Callable[[str], None]) -> None:
        self.directory = directory
        self.seconds = seconds
        self.say = say
        self.certificate = make(directory / "tls", "DNS:www.example,IP:127.0.0.1")

    def span(self, seconds: float) -> float:
        began = time.monotonic()
        until(lambda: time.monotonic() - began >= seconds, timeout=seconds + 10, what="time")
        return time.monotonic() - began

    def neighbour(self, case: Case) -> float:
        """Microseconds a check."""
        arguments = (self.directory, case.against or case.kind, case.count, case.every)
        with rig.neighbour(*arguments, self.certificate.chain) as process:
            self.span(WARM)
            cpu, done, began = rig.cpu_of(process), rig.opened(), time.monotonic()
            self.span(self.seconds)
            took = time.monotonic() - began
            return per_check(case, rig.cpu_of(process) - cpu, rig.opened() - done, took)

    def ours(self, case: Case, *options: str) -> float:
        with rig.ours(self.directory, backends(case, self.certificate.chain), *options) as checker:
            self.span(WARM)
            before, cpu = checker.mark(), rig.cpu_of(checker.pid)
            self.span(self.seconds)
            after, spent = checker.mark(), rig.cpu_of(checker.pid) - cpu
            if after["down"] or after["own_trouble"]:
                raise BenchError(f"{case.name}: not all targets passed: {after}")
            took = after["clock"] - before["clock"]
            return per_check(case, spent, after["probes"] - before["probes"], took)

    def case(self, case: Case, rounds: int) -> dict[str, Any]:
        pairs = []
        for number in range(rounds):
            self.say(f"{case.name}: round {number + 1} of {rounds}")
            pairs.append((self.ours(case), self.neighbour(case)))
        ratio = median(mine / theirs for mine, theirs in pairs)
        return {
            "name": case.name,
            "ours_us": median(mine for mine, _ in pairs),
            "haproxy_us": median(theirs for _, theirs in pairs),
            "ratio": ratio,
            "mark": case.mark,
            "met": case.mark is None or ratio <= case.mark,
        }

    def others(self) -> list[dict[str, Any]]:
        """Lateness, memory, start-up, and how fast ten thousand failures get into the map."""
        self.say("lateness, memory, start-up")
        case = CASES[0]
        targets = backends(case, self.certificate.chain)
        with rig.ours(self.directory, targets, "timed") as checker:
            self.span(WARM)
            checker.mark()
            self.span(6)  # a whole report at least
            figures = checker.mark()
        with rig.ours(self.directory, targets) as checker:  # without the list of lateness
            self.span(WARM + 6)
            weighed = checker.mark()
        nobody = [{**target, "port": rig.CLOSED} for target in targets]
        with rig.ours(self.directory, nobody) as checker:  # each falls with its first probe
            self.span(WARM)
            fallen = checker.mark()
        if fallen["down"] != case.count:
            raise BenchError(f"flips: {fallen['down']} of {case.count} fell")
        memory = (weighed["resident"] - weighed["base"]) / case.count
        return [
            fact("lateness of starts, 99th percentile, ms", figures["late_p99"] * 1000, 10),
            fact("start-up until probes run, 10,000 targets, s", figures["began"], 1),
            fact("10,000 fall: last probe to map, longest, ms", fallen["slowest_flip"] * 1000, 100),
            fact("memory a target, bytes", memory, 2048),
        ]


def per_check(case: Case, cpu: float, done: float, seconds: float) -> float:
    """Whoever got less of the machine than it needed shows another cost than it has."""
    expected = case.count / case.every * seconds
    if not SHORT * expected < done < LONG * expected:
        raise BenchError(
            f"{case.name}: {done:.0f} checks, expected about {expected:.0f}: is something else running?"
        )
    return cpu / done * 1e6


def fact(name: str, value: float, mark: float) -> dict[str, Any]:
    return {"name": name, "value": value, "mark": mark, "met": value <= mark}


def table(rows: list[dict[str, Any]], facts: list[dict[str, Any]]) -> str:
    head = f"{'CPU of the checker, microseconds a check':52}{'ours':>7}{'haproxy':>9}{'ratio':>7}{'mark':>6}"
    lines = [head]
    for row in rows:
        text = (
            f"{row['name']:52}{row['ours_us']:>7.1f}{row['haproxy_us']:>9.1f}{row['ratio']:>7.2f}"
        )
        lines.append(f"{text}{row['mark']:>6g}  {verdict(row['ratio'], row['mark'])}")
    lines += [
        f"{one['name']:52}{one['value']:>23.2f}{one['mark']:>6g}  {verdict(one['value'], one['mark'])}"
        for one in facts
    ]
    return "\n".join(lines)


def measure(rounds: int, seconds: float, wanted: list[str], say: Callable[[str], None]) -> None:
    with tempfile.TemporaryDirectory(prefix="ekbench") as name:
        bench = Bench(Path(name), seconds, say)
        with rig.targets(Path(name), bench.certificate):
            cases = [case for case in CASES if not wanted or any(w in case.name for w in wanted)]
            rows = [bench.case(case, rounds) for case in cases]
            facts = [] if wanted else bench.others()
    say("")
    print(table(rows, facts))
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "version": VERSION,
        "rounds": rounds,
        "seconds": seconds,
        "rows": rows,
        "facts": facts,
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n")
    print(f"\nwritten to {RESULT}")


def bench(wanted: list[str], *, quick: bool) -> int:
    def say(what: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{what}", end="", file=sys.stderr, flush=True)

    try:
        rig.needs()
        rig.alone()
        measure(1 if quick else 5, 2.0 if quick else 5.0, wanted, say)
    except BenchError as error:
        print(f"make bench: {error}", file=sys.stderr)
        return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.health", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round: for a first look")
    parser.add_argument(
        "--case", action="append", default=[], metavar="NAME", help="rows with NAME in them"
    )
    options = parser.parse_args()
    return bench(options.case, quick=options.quick)


if __name__ == "__main__":
    sys.exit(main())
