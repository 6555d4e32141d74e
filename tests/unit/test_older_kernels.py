"""What kernels before 6.8 refuse in a program's first look is seen here, without such a kernel."""

import struct
from pathlib import Path

import pytest

from tests.support.flowgraph import falls_back, refused

ROOT = Path(__file__).parents[2]
SOURCES = sorted(ROOT.glob("bpf/*.bpf.c"))
GO_ON, JUMP, JUMP_IF, CALL, EXIT = 0xB7, 0x05, 0x15, 0x85, 0x95


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_our_programs_close_loops_with_jumps(source: Path) -> None:
    assert falls_back(ROOT / "build" / source.with_suffix(".o").name) == []


def code(*instructions: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<BBhi", op, 0, jump, 0) for op, jump in instructions)


CASES = {
    "no loop": (code((GO_ON, 0), (EXIT, 0)), []),
    "a loop closed by a condition": (code((GO_ON, 0), (JUMP_IF, -2), (EXIT, 0)), []),
    "a loop closed by a jump": (code((JUMP_IF, 2), (GO_ON, 0), (JUMP, -3), (EXIT, 0)), []),
    "a loop entered in its middle": (
        code((JUMP, 1), (GO_ON, 0), (JUMP_IF, -2), (EXIT, 0)),
        [1],
    ),
    "the same, by a call": (code((JUMP, 1), (CALL, 0), (JUMP_IF, -2), (EXIT, 0)), [1]),
    "in the second function": (
        code((EXIT, 0), (JUMP, 1), (GO_ON, 0), (JUMP_IF, -2), (EXIT, 0)),
        [2],
    ),
}


@pytest.mark.parametrize(("program", "expected"), CASES.values(), ids=CASES)
def test_what_falls_back_into_a_loop(program: bytes, expected: list[int]) -> None:
    assert list(refused(program)) == expected
