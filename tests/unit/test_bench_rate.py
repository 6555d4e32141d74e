"""The arithmetic of `make bench ARGS="--part rate"`, and what it refuses to print a figure for."""

from dataclasses import replace
from typing import Any

import pytest

from tests.bench import rate_report as report
from tests.bench.objects import BenchError
from tests.bench.rate import judge, neighbours
from tests.bench.rate_http import Told
from tests.bench.rate_report import FLOOR, NAT, NFTABLES, Line, Load, Pair, Requests, Series
from tests.bench.rate_stream import CHECK, IP, L4, Stream, Towards, raw, template
from tests.bench.rate_wire import Sample
from tests.support.checksums import problems
from tests.support.frames import mac

UDP = Stream("udp", 1000)
TOWARDS = Towards("192.0.2.10", mac("02:00:00:00:00:01"))
SAMPLE = Sample(sent=100, arrived=(50, 50), stray=0, cpu=1, wall=1, last=b"")

WRK = """\
Running 2s test @ http://192.0.2.10:80/
  1 threads and 16 connections
  29043 requests in 2.10s, 3.02MB read
Requests/sec:  13830.00
"""


def series(way: str, *nanoseconds: float, delivered: int = 10) -> Series:
    made = Series("UDP", way)
    for each in nanoseconds:
        made.add(10, delivered, each * delivered / 1e9, 1)
    return made


def line(way: str, *rows: Series) -> Line:
    return next(one for one in report.lines(rows) if one.way == way)


# ---- packets


def test_a_ratio_is_the_median_of_each_rounds_own() -> None:
    """The slow second round slows both sides: it must not make a ratio of two medians."""
    nat = line(NAT, series(NAT, 100, 400, 110), series(NFTABLES, 300, 1200, 330))
    assert nat.nftables == pytest.approx(3)
    assert report.times([1, 2, 3], [2, 8, 3]) == 2


def test_packets_a_second_follow_from_nanoseconds() -> None:
    nat = line(NAT, series(NAT, 200, 250, 500))
    assert (nat.ns, nat.mpps, nat.low, nat.high) == pytest.approx((250, 4, 2, 5))


def test_the_floor_is_taken_off_round_by_round() -> None:
    nat = line(NAT, series(FLOOR, 100, 300, 100), series(NAT, 350, 550, 351))
    assert nat.above == pytest.approx(250)


def test_a_missed_mark_is_said_and_by_how_much() -> None:
    rows = (series(NAT, 500), series(NFTABLES, 900))
    assert line(NAT, *rows).verdict == "missed by 10%"
    assert line(NFTABLES, *rows).verdict == ""
    assert line(NAT, series(NAT, 450), rows[1]).verdict == "ok"


def test_only_nat_has_a_mark_and_yardsticks_are_compared_with_nothing() -> None:
    floor = line(FLOOR, series(FLOOR, 100), series(NFTABLES, 900))
    assert (floor.mark, floor.nftables, floor.above) == (None, None, None)
    assert line("Evenkeel dsr", series("Evenkeel dsr", 1)).mark is None


def test_what_was_lost_is_no_packet_and_is_never_rounded_away() -> None:
    short = series(NAT, 100, delivered=9)
    assert short.lost == pytest.approx(0.1)
    assert short.ns == pytest.approx(100)
    assert [report.loss(s) for s in (0, 3e-6, 0.1)] == ["0", "3.0 ppm", "10.00%"]


def test_the_table_says_what_this_kernel_has_not() -> None:
    printed = report.table(report.lines([series(NAT, 100)]), {"IPVS": "not in this kernel (why)"})
    assert printed.splitlines()[-1].split() == ["IPVS", "not", "in", "this", "kernel", "(why)"]


def test_two_queues_scale_by_clock_and_by_what_a_packet_costs() -> None:
    pair = Pair(NAT, Load([1e6, 2e6], [1e-6, 1e-6]), Load([1.5e6, 3e6], [1.25e-6, 1.25e-6]), 0)
    assert (pair.scales, pair.scales_by_cpu) == pytest.approx((1.5, 1.6))


@pytest.mark.parametrize(
    "changes",
    [
        {"stray": 1},
        {"arrived": (0, 0)},
        {"arrived": (60, 50)},
        {"arrived": (100, 0)},
    ],
    ids=str,
)
def test_frames_that_went_elsewhere_have_no_figure(changes: dict[str, Any]) -> None:
    with pytest.raises(BenchError):
        judge("nat", UDP, replace(SAMPLE, **changes), None, spread=True)


def test_a_balancer_that_counts_other_than_what_came_out_has_no_figure() -> None:
    judge("nat", UDP, SAMPLE, 100, spread=True)
    judge("nat", UDP, replace(SAMPLE, arrived=(40, 50)), 95, spread=True)
    for counted in (99, 101):
        with pytest.raises(BenchError):
            judge("nat", UDP, SAMPLE, counted, spread=True)


def test_two_generators_fill_two_queues() -> None:
    assert neighbours({0, 1, 2, 3}) == [1, 0]
    assert neighbours({2, 5}) == [5, 2]
    assert neighbours({0, 2}) == neighbours({1}) == []


# ---- frames


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_the_sums_for_the_generator_make_the_templates_checksums(protocol: str) -> None:
    frame = template(Stream(protocol, 1), TOWARDS)
    assert len(frame) == 60
    assert problems(frame) == []
    made = raw(Stream(protocol, 1), TOWARDS, 1, 0)
    address, ports = word(frame, 26) + word(frame, 28), word(frame, L4) + word(frame, L4 + 2)
    assert folded(made.ip_sum + address) == word(frame, IP + 10)
    assert folded(made.l4_sum + address + ports) == word(frame, CHECK[protocol])


def word(frame: bytes, at: int) -> int:
    return int.from_bytes(frame[at : at + 2], "little")


def folded(total: int) -> int:
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


# ---- requests


def test_wrk_is_understood() -> None:
    assert Told.of(WRK) == Told(29043, 2.1, 0)
    assert Told.of(WRK.replace("2.10s", "900.00ms")).seconds == pytest.approx(0.9)


def test_failures_of_every_kind_are_errors() -> None:
    failed = (
        "  Socket errors: connect 1, read 2, write 3, timeout 4\n  Non-2xx or 3xx responses: 5\n"
    )
    assert Told.of(WRK + failed).errors == 15


def test_another_wrk_is_an_error_and_no_zero() -> None:
    with pytest.raises(BenchError, match="unable to connect"):
        Told.of("unable to connect to 192.0.2.10:80 Connection refused")


def test_requests_are_compared_round_by_round() -> None:
    base = Requests("direct", "keep-alive", [100, 50], [9, 9], [10, 20])
    other = Requests("nat", "keep-alive", [150, 75], [9, 9], [20, 40], errors=3)
    last = report.requests_table([base, other], "direct").splitlines()[-1].split()
    assert last == ["nat", "112", "1.50", "9.0", "30.0", "2.00", "3"]
