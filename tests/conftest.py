"""Marks each test with its folder's kind, skips with a reason what this machine cannot run, and counts by kind."""

import os
import subprocess
from collections import Counter
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

KINDS = ("unit", "property", "bpf", "e2e")
HERE = Path(__file__).parent

_SLOW_IS_FINE = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    "quick", max_examples=100, deadline=None, suppress_health_check=_SLOW_IS_FINE
)
settings.register_profile(
    "deep", max_examples=5000, deadline=None, suppress_health_check=_SLOW_IS_FINE
)
settings.load_profile(os.environ.get("PROFILE") or "quick")


def kind_of(path: Path) -> str | None:
    parts = path.relative_to(HERE).parts if path.is_relative_to(HERE) else ()
    return parts[0] if parts and parts[0] in KINDS else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        kind = kind_of(item.path)
        if kind is None:
            raise pytest.UsageError(f"{item.path}: tests live in {', '.join(KINDS)}")
        item.add_marker(kind)
        if kind in ("bpf", "e2e") and (reason := cannot(kind)):
            item.add_marker(pytest.mark.skip(reason=reason))


@cache
def cannot(kind: str) -> str:
    """Why tests of this kind cannot run here; empty if they can."""
    if os.geteuid() != 0:
        return "needs root: sudo make test"
    needs = {
        "a BPF file system, which this machine does not let root mount": _can_mount_bpffs,
        "network namespaces, which this machine does not let root make": _can_make_namespace,
    }
    if kind == "bpf":
        needs.popitem()
    return next((f"needs {need}" for need, check in needs.items() if not check()), "")


def _can_make_namespace() -> bool:
    return _succeeds("unshare", "--net", "true")


def _can_mount_bpffs() -> bool:
    return _succeeds("unshare", "--mount", "sh", "-c", "mount -t bpf bpf /sys/fs/bpf")


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
