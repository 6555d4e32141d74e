"""The object of wrapper.bpf.c, loaded with maps of a given size, run.

It touches no pin and no map but its own: what is measured is handed over as a
program's file descriptor, and stays as it is.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from bpf import libbpf
from bpf.program import Action
from tests.bench.objects import BenchError, Object

SOURCE = Path(__file__).with_name("wrapper.bpf.c")
WORDS = {4: (0, 6, 14, 18, 26, 34, 38, 46), 6: (0, 6, 14, 22, 30, 38, 46, 54, 58, 66)}
ROOM = 2048  # for a frame that comes out


class Order(IntEnum):
    """Which of the flows the next packet belongs to: enum order in wrapper.bpf.c."""

    ONE = 0
    SEQUENTIAL = 1
    RANDOM = 2


@dataclass(frozen=True, slots=True)
class Packet:
    """What the wrapper gives the program at each repeat."""

    frame: bytes
    order: Order = Order.ONE
    flows: int = 1
    first: int = 0  # where a sequence starts

    @property
    def family(self) -> int:
        return self.frame[14] >> 4

    def encode(self, target: int) -> bytes:
        """struct packet."""
        words = [self.frame[at : at + 8] for at in WORDS[self.family]]
        head = struct.pack("=6I", len(self.frame), self.order, self.flows, self.first, target, 0)
        return head + b"".join(words).ljust(80, b"\0")


@dataclass(frozen=True, slots=True)
class Outcome:
    action: Action
    frame: bytes
    kernel: int  # nanoseconds a run, as the kernel rounded them
    spent: float  # nanoseconds a run, by this thread's own clock


def run(program: int, frame: bytes, repeat: int = 1) -> Outcome:
    """BPF_PROG_TEST_RUN, timed from outside as well: the kernel rounds to whole nanoseconds."""
    given = ctypes.create_string_buffer(frame, len(frame))
    out = ctypes.create_string_buffer(ROOM)
    options = libbpf.TestRunOptions(
        data_in=ctypes.addressof(given),
        data_out=ctypes.addressof(out),
        data_size_in=len(frame),
        data_size_out=ROOM,
        repeat=repeat,
    )
    start = time.thread_time_ns()
    error = libbpf.lib().bpf_prog_test_run_opts(program, ctypes.byref(options))
    spent = time.thread_time_ns() - start
    if error:
        raise BenchError(f"test run of a {len(frame)} byte frame: {os.strerror(-error)}")
    result = out.raw[: options.data_size_out]
    return Outcome(Action(options.retval), result, options.duration, spent / repeat)


class Wrapper(Object):
    """`bare` holds as many entries as asked for."""

    def __init__(self, entries: int) -> None:
        super().__init__(SOURCE, {"bare": entries})
        self._targets = self.map("targets")
        self._packet = self.map("packet")
        self._slots: dict[int, int] = {}
        self._restore = {4: self.program("restore4"), 6: self.program("restore6")}

    def _slot(self, program: int) -> int:
        """Where the program stands among the targets."""
        if program not in self._slots:
            self._slots[program] = len(self._slots)
            self._put(self._targets, self._slots[program], struct.pack("=i", program))
        return self._slots[program]

    def _put(self, fd: int, index: int, value: bytes) -> None:
        key = struct.pack("=I", index)
        if error := libbpf.lib().bpf_map_update_elem(fd, key, value, 0):
            raise BenchError(f"wrapper's own maps: {os.strerror(-error)}")

    def through(self, program: int, packet: Packet, repeat: int) -> Outcome:
        """Run `program` on a packet restored before each repeat."""
        self._put(self._packet, 0, packet.encode(self._slot(program)))
        return run(self._restore[packet.family], packet.frame, repeat)
