"""What `make kernels` makes of reports and package lists."""

import pytest

from tests.kernels import accelerator, report
from tests.kernels.accelerator import BOOTS, KVM, TCG
from tests.kernels.packages import CannotRun, named_by
from tests.kernels.report import Result

JUNIT = """<?xml version="1.0"?><testsuites><testsuite name="pytest">
<testcase classname="tests.bpf.test_sweep" name="test_good" time="1.5"/>
<testcase classname="tests.bpf.test_sweep" name="test_bad" time="2"><failure message="assert 1 == 2&#10;more">x</failure></testcase>
<testcase classname="tests.e2e.test_nat" name="test_broken" time="0"><error message="failed on setup">x</error></testcase>
<testcase classname="tests.e2e.test_nat" name="test_not" time="0"><skipped message="needs a kernel with fou">x</skipped></testcase>
</testsuite></testsuites>"""
GOOD = report.Test("test_sweep: test_good", "passed", "", 1.5)
BAD = report.Test("test_sweep: test_bad", "failed", "assert 1 == 2\nmore", 2)
BROKEN = report.Test("test_nat: test_broken", "failed", "failed on setup", 0)
NOT = report.Test("test_nat: test_not", "skipped", "needs a kernel with fou", 0)


def test_a_report_is_read_as_outcomes() -> None:
    assert report.tests(JUNIT) == (GOOD, BAD, BROKEN, NOT)


@pytest.mark.parametrize(
    ("result", "good"),
    [
        (Result("6.1", (GOOD, NOT)), True),
        (Result("6.1", (GOOD, BAD)), False),
        (Result("6.1", (NOT,)), False),
        (Result("6.1", ()), False),
        (Result("6.1", (GOOD,), "no whole report"), False),
    ],
)
def test_a_kernel_is_good_if_something_ran_and_nothing_failed(result: Result, good: bool) -> None:
    assert result.good is good


def test_the_table_names_what_failed_and_what_was_lacking() -> None:
    results = [Result("6.1.0-57", (GOOD, BAD, NOT, NOT)), Result("6.12", (), "no whole report")]
    assert list(report.table(results)) == [
        "kernel    passed  failed  skipped  seconds",
        "6.1.0-57       1       1        2        4",
        "6.12           0       0        0        0",
        "6.1.0-57: skipped 2: needs a kernel with fou",
        "6.1.0-57: FAILED test_sweep: test_bad: assert 1 == 2",
        "6.12: FAILED: no whole report",
    ]


def test_the_newest_kernel_of_a_suite_is_the_first_that_apt_shows() -> None:
    shown = "Package: linux-image-cloud-amd64\nDepends: linux-image-6.12.95-cloud-amd64 (= 6.12)\n"
    assert named_by(shown + "\n" + shown.replace("95", "90")) == "linux-image-6.12.95-cloud-amd64"


def test_a_suite_without_a_kernel_is_an_error() -> None:
    with pytest.raises(CannotRun, match="names no kernel"):
        named_by("")


@pytest.mark.parametrize(
    ("processors", "usable", "first"),
    [
        ("flags\t\t: fpu vmx sse\nbugs\t\t: none\n", True, KVM),
        ("processor: 0\nflags : fpu svm\n", True, KVM),
        ("flags : fpu svm\n", False, TCG),
        ("flags : fpu hypervisor vmmcall\nmodel name : svm\n", True, TCG),
    ],
)
def test_the_processor_helps_where_it_can_and_emulation_is_what_is_left(
    processors: str, usable: bool, first: accelerator.Accelerator
) -> None:
    found = accelerator._choices(processors, usable=usable)
    assert found[0] is first
    assert found[-BOOTS:] == (TCG,) * BOOTS
