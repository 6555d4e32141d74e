"""Which table is where in a map of maps, asked by a program, where asking from here takes seconds.

Before Linux 6.8 whoever looks at an entry of such a map from user space waits until every packet under way is over (a
grace period of RCU, 20 ms or so), for each entry anew, empty ones too. A program in the kernel does not
wait. It is loaded by whoever asks and gone with it; nothing is pinned, and nothing remembered.
"""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

from bpf import errors, libbpf, objects

OBJECT = "peek.bpf.o"
PROGRAM, MAP = b"peek", b"tables"
AT_ONCE = 64  # ids in an answer, as in peek.bpf.c
SINCE = (6, 8)  # nobody waits any more


class Answer(ctypes.Structure):
    """What the program is asked and answers in."""

    first: int
    ids: ctypes.Array[ctypes.c_uint32]
    _fields_ = (("first", ctypes.c_uint32), ("ids", ctypes.c_uint32 * AT_ONCE))


class Peek:
    """The program over one map of maps."""

    def __init__(self, outer: int, path: Path | None = None) -> None:
        """Needs CAP_BPF, CAP_PERFMON and a kernel that describes its types; raises KernelError without."""
        self._fd = _loaded(path or objects.beside(OBJECT), outer)

    def number(self, index: int) -> int | None:
        """The id of the map that is there."""
        return self._answer(index)[0] or None

    def numbers(self, entries: int) -> dict[int, int]:
        """The same of all that are in the first `entries`, by index."""
        starts = range(0, entries, AT_ONCE)
        found = ((at + i, number) for at in starts for i, number in enumerate(self._answer(at)))
        return {index: number for index, number in found if number}

    def close(self) -> None:
        os.close(self._fd)

    def _answer(self, first: int) -> list[int]:
        answer = Answer(first=first)
        objects.run_on(self._fd, answer, "looking for tables")
        return list(answer.ids)


def waits(release: str) -> bool:
    """Whether this kernel lets user space wait; where it was changed since, asking the program is as good."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return found is not None and (int(found[1]), int(found[2])) < SINCE


def _loaded(path: Path, outer: int) -> int:
    lib = libbpf.lib()
    with libbpf.captured() as said, objects.opened(path, said) as handle:
        lib.bpf_map__reuse_fd(lib.bpf_object__find_map_by_name(handle, MAP), outer)
        code = lib.bpf_object__load(handle)
        if code < 0:
            raise errors.failed(f"{path}: loading", code, said)
        return os.dup(lib.bpf_program__fd(lib.bpf_object__find_program_by_name(handle, PROGRAM)))
