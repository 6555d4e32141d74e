"""Where a row's nanoseconds go: sampled by perf, told by function, source file and line.

A software clock does the sampling, so it works in virtual machines without counters. What
an interrupt hits is the instruction that waits, not always the one that made it wait.
"""

from __future__ import annotations

import argparse
import bisect
import ctypes
import os
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_char_p, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bpf import libbpf
from bpf.libbpf import ProgInfo
from tests.bench import cases
from tests.bench.cases import Place, Row
from tests.bench.dataplane import call_overhead, pinned_to_one_cpu
from tests.bench.objects import BenchError
from tests.bench.rig import Rig

RATE = 15_000
REPEAT = 3_000_000
LINES = 16


class LineInfo(ctypes.Structure):
    """struct bpf_line_info."""

    instruction: int
    file: int
    text: int
    line: int
    _fields_ = (
        ("instruction", c_uint32),
        ("file", c_uint32),
        ("text", c_uint32),
        ("line", c_uint32),
    )


@dataclass(frozen=True, slots=True)
class Source:
    """Machine code addresses of a program, in order, and the lines that begin there."""

    addresses: list[int]
    lines: list[str]

    def at(self, address: int) -> str:
        return self.lines[bisect.bisect_right(self.addresses, address) - 1]


def source_of(program: int) -> Source:
    """Which line each address of the program comes from, as the kernel knows it."""
    known = libbpf.info(program, ProgInfo)
    addresses = (c_uint64 * known.nr_jited_line_info)()
    lines = (LineInfo * known.nr_line_info)()
    wanted = ProgInfo(
        jited_line_info=ctypes.addressof(addresses),
        nr_jited_line_info=len(addresses),
        jited_line_info_rec_size=8,
        line_info=ctypes.addressof(lines),
        nr_line_info=len(lines),
        line_info_rec_size=ctypes.sizeof(LineInfo),
    )
    size = c_uint32(ctypes.sizeof(wanted))
    code = libbpf.lib().bpf_obj_get_info_by_fd(program, ctypes.byref(wanted), ctypes.byref(size))
    if code < 0:
        raise BenchError("no line information: is kernel.kptr_restrict or the JIT's set?")
    with _names(known.btf_id) as name:
        told = [f"{Path(name(x.file)).name}:{x.line >> 10}  {name(x.text).strip()}" for x in lines]
    pairs = sorted(zip(addresses, told, strict=True))
    return Source([address for address, _ in pairs], [line for _, line in pairs])


@contextmanager
def _names(btf_id: int) -> Iterator[Callable[[int], str]]:
    """The strings of a program's types."""
    lib = libbpf.lib()
    for function, result, arguments in (
        ("btf__load_from_kernel_by_id", c_void_p, [c_uint32]),
        ("btf__name_by_offset", c_char_p, [c_void_p, c_uint32]),
        ("btf__free", None, [c_void_p]),
    ):
        getattr(lib, function).restype = result
        getattr(lib, function).argtypes = arguments
    btf = lib.btf__load_from_kernel_by_id(btf_id)
    try:
        yield lambda offset: lib.btf__name_by_offset(btf, offset).decode()
    finally:
        lib.btf__free(btf)


@contextmanager
def sampled(data: Path) -> Iterator[None]:
    """perf looks at this process meanwhile: from when it says that it does."""
    if not shutil.which("perf"):
        raise BenchError("no perf: apt-get install linux-perf")
    ears, mouth = os.pipe()
    answer, voice = os.pipe()
    command = ["perf", "record", "-q", "-e", "cpu-clock:k", "-F", str(RATE), "-p", str(os.getpid())]
    command += ["-D", "-1", f"--control=fd:{ears},{voice}", "-o", str(data)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, pass_fds=(ears, voice)) as perf:
        os.close(ears)
        os.close(voice)
        try:
            os.write(mouth, b"enable\n")
            if not os.read(answer, 16):
                raise BenchError(f"perf does not sample here: {' '.join(command)}")
            yield
        finally:
            perf.send_signal(signal.SIGINT)
            perf.wait()  # before its pipes close: it would leave without writing the end
            os.close(mouth)
            os.close(answer)


def samples(data: Path) -> list[tuple[int, str]]:
    """Address and function of each."""
    command = ["perf", "script", "-i", str(data), "-F", "ip,sym"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"{' '.join(command)}: {done.stderr.strip()}")
    found = (line.split() for line in done.stdout.splitlines())
    return [(int(words[0], 16), words[1]) for words in found if len(words) > 1]


def show(options: argparse.Namespace) -> None:
    """The rows named, else those that have a mark."""
    rows = [r for r in cases.named(options.case) if options.case or r.mark]
    with pinned_to_one_cpu():
        for place in Place:
            wanted = [r for r in rows if r.place == place]
            if wanted:
                with Rig(cases.world(), place.sizes) as rig:
                    _profile(rig, wanted)


def _profile(rig: Rig, rows: list[Row]) -> None:
    for row in [rig.prepare(row) for row in rows]:
        if row.known:
            rig.greet(row)
        with TemporaryDirectory() as directory:
            data = Path(directory, "perf.data")
            with sampled(data):
                outcome = rig.measure(row, REPEAT)
            found = samples(data)
        cost = outcome.spent - call_overhead(rig) / REPEAT
        print(told(row.name, cost, source_of(rig.program_of(row)), found))


def told(name: str, cost: float, source: Source, found: list[tuple[int, str]]) -> str:
    """The shares of the functions, of the source files and of the dearest lines, in ns."""
    each = cost / max(1, len(found))
    own = [source.at(address) for address, symbol in found if _is_measured(symbol)]
    parts = [
        ("functions", Counter(_short(symbol) for _, symbol in found), 12),
        ("files", Counter(line.partition(":")[0] for line in own), 12),
        ("lines", Counter(own), LINES),
    ]
    text = [f"\n{name}: {cost:.0f} ns, {len(found)} samples"]
    for title, counted, most in parts:
        text.append(f"  {title}")
        text += [f"  {n * each:>7.1f}  {what}" for what, n in counted.most_common(most)]
    return "\n".join(text)


def _is_measured(symbol: str) -> bool:
    return symbol.startswith("bpf_prog_") and not symbol.endswith(("restore4", "restore6"))


def _short(symbol: str) -> str:
    return symbol.split("_", 3)[3] if symbol.startswith("bpf_prog_") else symbol
