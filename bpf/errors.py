"""What can go wrong at the kernel's door, each with what to do about it.

Nothing here calls the kernel: it puts the kernel's short answers into words.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from errno import E2BIG, EACCES, EDQUOT, ENOSPC, EPERM, EROFS
from pathlib import Path

OLDEST = (6, 1)  # xdp.frags and live-frame test runs are of 5.18; 6.1 is the oldest tested
CAPABILITIES = {12: "CAP_NET_ADMIN", 38: "CAP_PERFMON", 39: "CAP_BPF"}
SYS_ADMIN = 21  # implies CAP_BPF and CAP_PERFMON
LOG_LINES = 24
REMEDIES = {
    EACCES: "; be root",
    EPERM: "; be root",
    ENOSPC: "; make room there",
    EDQUOT: "; make room there",
    EROFS: "; mount it writable, or name another folder with --run-dir or --state-dir",
}
CGROUP_MEMORY = (5, 11)  # from here on the kernel charges maps to the cgroup, not to memlock


class KernelError(Exception):
    """What failed, where, and what to do."""


class NotPermitted(KernelError):
    """The process lacks a privilege, which the message names."""


class Unsupported(KernelError):
    """The kernel cannot do it; the message says which one can."""


class AbiMismatch(KernelError):
    """Pinned maps, program and Python do not agree on a layout or a size."""


class Busy(KernelError):
    """Somebody else's XDP program is on the interface."""


class MapFull(KernelError):
    """No entry is left; the message names the setting."""


class NotLoaded(KernelError):
    """No instance of that name is pinned."""


def reason(code: int) -> str:
    return os.strerror(abs(code))


def failed(what: str, code: int, log: Iterable[str] = ()) -> KernelError:
    """The error for a failed call to the kernel; `log` is what libbpf said meanwhile."""
    log = list(log)
    if abs(code) == EPERM or (abs(code) == EACCES and not log):  # EACCES is the verifier's no, too
        return NotPermitted(f"{what}: {reason(code)}. {_privileges()}{_tail(log)}")
    if release() < OLDEST:
        return Unsupported(f"{what}: {reason(code)}. {_too_old()}{_tail(log)}")
    return KernelError(f"{what}: {reason(code)}{_tail(log)}")


def full(name: str, entries: int, setting: str) -> MapFull:
    return MapFull(
        f"map {name} is full: it holds {entries} entries. Raise sizes.{setting} in node.yaml;"
        " `reconciler upgrade` then goes over to larger maps, under traffic"
    )


def plainly(error: BaseException) -> str:
    """What the kernel said of a file: where, what, and what to do; not how Python puts it."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    if not error.filename:
        return error.strerror
    return f"{error.filename}: {error.strerror}{REMEDIES.get(error.errno or 0, '')}"


def is_full(code: int) -> bool:
    return abs(code) == E2BIG


def release() -> tuple[int, int]:
    """The running kernel's version: 6.18.44-fc-v595 is (6, 18)."""
    major, minor, *_ = os.uname().release.split(".")
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)


def _too_old() -> str:
    needed = ".".join(map(str, OLDEST))
    return (
        f"This kernel is {os.uname().release}; {needed} or later is needed"
        " (XDP programs that take fragments, global functions, map-in-map of several sizes)"
    )


def _privileges() -> str:
    missing = missing_capabilities()
    if missing:
        names = ", ".join(missing)
        return (
            f"The process lacks {names}: run it as root, or give its unit"
            f" AmbientCapabilities={' '.join(CAPABILITIES.values())}"
        )
    if release() < CGROUP_MEMORY:
        return "Raise the memlock limit (LimitMEMLOCK=infinity): this kernel counts maps by it"
    return (
        "All needed capabilities are there: the kernel's verifier refuses the program (its words"
        " follow, if so), or a user namespace, a security module or lockdown forbids bpf()"
    )


def missing_capabilities() -> list[str]:
    effective = _effective()
    implied = {38, 39} if effective >> SYS_ADMIN & 1 else set()
    return [
        name
        for bit, name in CAPABILITIES.items()
        if not effective >> bit & 1 and bit not in implied
    ]


def _effective() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return int(line.split()[1], 16)


def _tail(log: Iterable[str]) -> str:
    lines = [line for text in log for line in text.splitlines() if line.strip()]
    said = lines[-LOG_LINES:]
    return "".join(f"\n  {line}" for line in said)
