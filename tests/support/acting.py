"""What a thread does as another user, with few capabilities. All other threads stay who they are.

By system calls of our own: those of the C library speak for all threads of a process. There is no way back, so a thread
is made for it. What it starts, threads and processes, is that user's too; processes have no capabilities.
"""

import ctypes
import enum
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from reconciler.privilege import KEEP_CAPABILITIES, keep_effective

_NO_NEW_PRIVILEGES = 38  # of prctl
_NUMBERS = {  # setgroups, setresgid, setresuid
    "x86_64": (116, 119, 117),
    "aarch64": (159, 149, 147),
}
_libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


class Capability(enum.IntEnum):
    """Those that units name, and to read whatever there is, by the kernel's numbers."""

    CAP_DAC_READ_SEARCH = 2
    CAP_NET_ADMIN = 12
    CAP_NET_RAW = 13
    CAP_LEASE = 28
    CAP_PERFMON = 38
    CAP_BPF = 39


def mask(capabilities: Iterable[Capability]) -> int:
    return sum(1 << one for one in capabilities)


def done_by(uid: int, gid: int, capabilities: Iterable[Capability], what: Callable[[], T]) -> T:
    """What comes of it; what it raises, too."""
    if os.geteuid() == uid:
        return what()  # a thread that such a one has started
    who = (uid, gid, mask(capabilities))
    with ThreadPoolExecutor(1, initializer=_become, initargs=who) as thread:
        return thread.submit(what).result()


def _become(uid: int, gid: int, capabilities: int) -> None:
    _libc.prctl(KEEP_CAPABILITIES, 1, 0, 0, 0)
    groups, group, user = _NUMBERS[os.uname().machine]
    _call(groups, 0, None)
    _call(group, gid, gid, gid)
    _call(user, uid, uid, uid)
    keep_effective(capabilities)
    _libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)


def _call(*arguments: object) -> None:
    if _libc.syscall(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
