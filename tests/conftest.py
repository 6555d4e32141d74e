"""Marks each test with its folder's kind, skips with a reason what this machine cannot run, and counts by kind.

A law that needs the kernel says so itself: `pytestmark = pytest.mark.bpf`.
"""

import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

KINDS = ("unit", "property", "bpf", "e2e")
TOOLS = {"bpf": ("clang", "ip"), "e2e": ("clang", "curl", "ethtool", "ip", "nsenter", "ping")}
HERE = Path(__file__).parent

# In CI always the same cases: a failure there is about the change, not about luck.
_EVERYWHERE = settings(
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("quick", _EVERYWHERE, max_examples=100)
settings.register_profile("deep", _EVERYWHERE, max_examples=5000, derandomize=False)
settings.load_profile(os.environ.get("PROFILE") or "quick")


def kind_of(path: Path) -> str | None:
    parts = path.relative_to(HERE).parts if path.is_relative_to(HERE) else ()
    return parts[0] if parts and parts[0] in KINDS else None


def pytest_configure(config: pytest.Config) -> None:
    """What the daemons keep goes where it is forgotten, unless a test says where."""
    folder = tempfile.TemporaryDirectory(prefix="ek-state-")
    config.add_cleanup(folder.cleanup)
    os.environ["STATE_DIRECTORY"] = folder.name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        kind = kind_of(item.path)
        if kind is None:
            raise pytest.UsageError(f"{item.path}: tests live in {', '.join(KINDS)}")
        item.add_marker(kind)
        for privileged in filter(item.get_closest_marker, TOOLS):
            if reason := cannot(privileged):
                item.add_marker(pytest.mark.skip(reason=reason))


@cache
def cannot(kind: str) -> str:
    """Why tests of this kind cannot run here; empty if they can."""
    if os.geteuid() != 0:
        return "needs root: sudo make test"
    if absent := [tool for tool in TOOLS[kind] if not shutil.which(tool)]:
        return f"needs {', '.join(absent)}: sudo make setup"
    if not _succeeds("unshare", "--mount", "sh", "-c", "mount -t bpf bpf /sys/fs/bpf"):
        return "needs the BPF file system, which this machine does not let root mount"
    if not _succeeds("unshare", "--net", "true"):
        return "needs network namespaces, which this machine does not let root make"
    return ""


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter,
) -> Generator[None, None, None]:
    """One line per kind, and why anything was skipped: after the failures, before pytest's own line."""
    yield
    lines = list(summary(terminalreporter))
    if lines:
        terminalreporter.section("by kind")
        for line in lines:
            terminalreporter.line(line)


def summary(terminal: pytest.TerminalReporter) -> Iterator[str]:
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    seconds: Counter[str] = Counter()
    reasons: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for outcome, reports in terminal.stats.items():
        for report in reports:
            kind = kind_of(HERE.parent / str(getattr(report, "nodeid", "")).partition("::")[0])
            if kind is None or not isinstance(report, pytest.TestReport):
                continue
            seconds[kind] += report.duration
            counts[kind][outcome] += 1
            if outcome == "skipped":
                reasons[kind][why(report)] += 1
    for kind in KINDS:
        had = counts[kind]
        if not sum(had.values()):
            continue
        failed = had["failed"] + had["error"]
        yield (
            f"{kind:9}{had['passed']} passed, {failed} failed, {had['skipped']} skipped"
            f" in {seconds[kind]:.1f} s"
        )
        for reason, times in reasons[kind].items():
            yield f"{'':9}skipped {times}: {reason}"


def why(report: pytest.TestReport) -> str:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ")
