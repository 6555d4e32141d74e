"""Which jumps of a program kernels before 6.8 refuse, without such a kernel: the first look of their verifier.

They follow the program depth first, and take a loop only where it is closed by a jump: an instruction that just goes
on to the next one must not lead back into a loop that is being followed. How a compiler lays a loop out decides that.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

from bpf import btf

_JUMPS, _ALWAYS, _EXIT, _CALL = (0x05, 0x06), 0x00, 0x90, 0x80


def falls_back(path: Path) -> list[str]:
    """Each instruction that falls back into a loop, by its section and number."""
    return [
        f"{name}: instruction {at}"
        for name, code in btf.sections(path.read_bytes())
        if _is_code(name)
        for at in refused(code)
    ]


def _is_code(name: str) -> bool:
    return name in {".text", "xdp", "tc", "syscall"} or name.startswith(("xdp.", "tc/"))


def refused(code: bytes) -> Iterator[int]:
    """Functions follow each other, and each is followed from its first instruction."""
    program = [(op, jump) for op, _, jump, _ in struct.iter_unpack("<BBhi", code)]
    seen: set[int] = set()
    for start in range(len(program)):
        if start not in seen:
            yield from _follow(program, start, seen)


def _follow(program: list[tuple[int, int]], start: int, seen: set[int]) -> Iterator[int]:
    path = [(start, _ways(program, start))]
    seen.add(start)
    under_way = {start}
    while path:
        at, ways = path[-1]
        target, jumps = next(ways, (-1, True))
        if target < 0:
            path.pop()
            under_way.discard(at)
        elif target not in seen:
            seen.add(target)
            under_way.add(target)
            path.append((target, _ways(program, target)))
        elif target in under_way and not jumps:
            yield at


def _ways(program: list[tuple[int, int]], at: int) -> Iterator[tuple[int, bool]]:
    """Where it goes on, in the verifier's order, and whether that may close a loop."""
    op, jump = program[at]
    kind, which = op & 0x07, op & 0xF0
    if kind not in _JUMPS or which == _CALL:
        yield at + 1, False
    elif which == _ALWAYS:
        yield at + 1 + jump, True
    elif which != _EXIT:
        yield at + 1, True
        yield at + 1 + jump, True
