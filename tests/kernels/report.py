"""What a run under a kernel came to, in words. Runs nothing."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree as ET


@dataclass(frozen=True, slots=True)
class Test:
    name: str
    outcome: str  # passed, failed or skipped
    why: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """Of one kernel; without tests it did not come so far, and `trouble` says why."""

    release: str
    tests: tuple[Test, ...]
    trouble: str = ""

    @property
    def good(self) -> bool:
        """Whether something ran, and nothing failed."""
        counts = self.counts
        return not self.trouble and counts["passed"] > 0 and not counts["failed"]

    @property
    def counts(self) -> Counter[str]:
        return Counter(test.outcome for test in self.tests)


def tests(junit: str) -> tuple[Test, ...]:
    """Raises ET.ParseError where the report is not whole."""
    return tuple(map(_test, ET.fromstring(junit).iter("testcase")))  # noqa: S314 -- our own pytest wrote it


def _test(case: ET.Element) -> Test:
    name = f"{case.get('classname', '').rpartition('.')[2]}: {case.get('name')}"
    seconds = float(case.get("time", 0))
    for tag, outcome in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        if (found := case.find(tag)) is not None:
            return Test(name, outcome, (found.get("message") or "").strip(), seconds)
    return Test(name, "passed", "", seconds)


def table(results: list[Result]) -> Iterator[str]:
    width = max(len(result.release) for result in results)
    yield f"{'kernel':{width}}  passed  failed  skipped  seconds"
    for result in results:
        counts = result.counts
        yield (
            f"{result.release:{width}}  {counts['passed']:6}  {counts['failed']:6}"
            f"  {counts['skipped']:7}  {sum(test.seconds for test in result.tests):7.0f}"
        )
    for result in results:
        yield from _particulars(result)


def _particulars(result: Result) -> Iterator[str]:
    skipped = Counter(test.why for test in result.tests if test.outcome == "skipped")
    for why, times in skipped.items():
        yield f"{result.release}: skipped {times}: {why}"
    for test in result.tests:
        if test.outcome == "failed":
            yield f"{result.release}: FAILED {test.name}: {test.why.partition(chr(10))[0]}"
    if result.trouble:
        yield f"{result.release}: FAILED: {result.trouble}"
