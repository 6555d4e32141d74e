"""The object of wrapper.bpf.c: compiled on demand, loaded with maps of a given size, run.

It touches no pin and no map but its own: what is measured is handed over as a
program's file descriptor, and stays as it is.
"""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from bpf import libbpf
from bpf.program import Action

SOURCE = Path(__file__).with_name("wrapper.bpf.c")
ROOT = Path(__file__).parents[2]
OBJECT = ROOT / "build/bench/wrapper.bpf.o"
WORDS = {4: (0, 6, 14, 18, 26, 34, 38, 46), 6: (0, 6, 14, 22, 30, 38, 46, 54, 58, 66)}
ROOM = 2048  # for a frame that comes out


class Order(IntEnum):
    """Which of the flows the next packet belongs to: enum order in wrapper.bpf.c."""

    ONE = 0
    SEQUENTIAL = 1
    RANDOM = 2


class BenchError(Exception):
    """What was measured did not do what it is measured for."""


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


def compile_wrapper(clang: str = "clang") -> Path:
    """The object, built anew when a source is newer than it."""
    sources = [SOURCE, ROOT / "bpf/abi.h"]
    if OBJECT.exists() and all(OBJECT.stat().st_mtime > s.stat().st_mtime for s in sources):
        return OBJECT
    OBJECT.parent.mkdir(parents=True, exist_ok=True)
    machine = os.uname().machine
    flags = ["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Wextra", "-Wno-unused-parameter"]
    command = [clang, *flags, f"-I/usr/include/{machine}-linux-gnu", "-c", str(SOURCE)]
    try:
        subprocess.run([*command, "-o", str(OBJECT)], check=True)
    except FileNotFoundError:
        raise BenchError(f"no {clang}: sudo make setup, or apt-get install clang") from None
    except subprocess.CalledProcessError:
        raise BenchError(f"{SOURCE}: does not compile, see above") from None
    return OBJECT


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


class Wrapper:
    """One loaded copy of the object; `bare` holds as many entries as asked for."""

    def __init__(self, entries: int) -> None:
        path = compile_wrapper()
        self._object = libbpf.lib().bpf_object__open_file(bytes(path), None)
        if not self._object:
            raise BenchError(f"open {path}: {os.strerror(ctypes.get_errno())}")
        self._load(entries)
        self._targets = self._map("targets")
        self._packet = self._map("packet")
        self._slots: dict[int, int] = {}
        self._restore = {4: self.program("restore4"), 6: self.program("restore6")}

    def _load(self, entries: int) -> None:
        library = libbpf.lib()
        library.bpf_map__set_max_entries(self._find("bare"), entries)
        with libbpf.captured() as log:
            if error := library.bpf_object__load(self._object):
                self.close()
                said = "\n".join(log)
                raise BenchError(f"load {OBJECT} (as root?): {os.strerror(-error)}\n{said}")

    def _find(self, name: str) -> int:
        library, found = libbpf.lib(), None
        while found := library.bpf_object__next_map(self._object, found):
            if library.bpf_map__name(found).decode() == name:
                return int(found)
        raise BenchError(f"no map {name} in {OBJECT}")

    def _map(self, name: str) -> int:
        return int(libbpf.lib().bpf_map__fd(self._find(name)))

    def program(self, name: str) -> int:
        """File descriptor of one of the object's own programs."""
        found = libbpf.lib().bpf_object__find_program_by_name(self._object, name.encode())
        if not found:
            raise BenchError(f"no program {name} in {OBJECT}")
        return int(libbpf.lib().bpf_program__fd(found))

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

    def close(self) -> None:
        libbpf.lib().bpf_object__close(self._object)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
