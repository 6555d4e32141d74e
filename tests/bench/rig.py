"""The unmodified program over maps of its own, the world in them, and proof that each run did its work.

Nothing is pinned or attached: when the rig closes, the kernel forgets it all.
"""

from __future__ import annotations

import os
import re
import time
from array import array
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Self

from bpf import abi, program
from bpf.mapset import Maps, Sizes, names, open_map
from bpf.program import ProgramInfo
from tests.bench.cases import INGRESS, Row, opening
from tests.bench.objects import BenchError
from tests.bench.wrapper import Order, Outcome, Packet, Wrapper, run
from tests.support.world import World

AT_ONCE = 8192  # handshakes: the half-open ones must fit their map
HOP = 1


class Rig(ExitStack):
    """One loaded balancer and one wrapper, whose own flow map has the same size."""

    def __init__(self, world: World, sizes: Sizes) -> None:
        super().__init__()
        self.world = world
        self.loaded = program.load(program.default_object(), sizes, {})
        for fd in (self.loaded.program, self.loaded.sweep):
            if fd >= 0:
                self.callback(os.close, fd)
        fds = self.loaded.maps
        self.maps = Maps({name: open_map(name, fds[name], None) for name in names()})
        self.callback(self.maps.close)
        self.wrapper: Wrapper = self.enter_context(Wrapper(sizes.flows4))
        self.expected: dict[str, bytes] = {}
        self._random = Random(1)
        self._program()

    def __enter__(self) -> Self:
        return self

    def _program(self) -> None:
        raw = self.world.raw()
        view = self.maps.prefilter.view()
        for bucket, kinds in raw.pop("prefilter").items():
            view[bucket] = kinds
        for name in ("tables", "spares"):
            for index, slots in raw.pop(name).items():
                getattr(self.maps, name).put(index, slots)
        for name, entries in raw.items():
            getattr(self.maps, name).put_many(entries.items())
        self.maps.hops.put(HOP, abi.Hop(ifindex=INGRESS, mtu=9000, dmac=bytes(6), smac=bytes(6)))

    # ---- asking

    def info(self) -> ProgramInfo:
        return program.info(self.loaded.program)

    def bytes_per_entry(self, name: str) -> float:
        """What the kernel says a map costs, its buckets included."""
        found = self.maps[name]
        text = Path(f"/proc/self/fdinfo/{found.fd}").read_text()
        memlock = re.search(r"memlock:\s*(\d+)", text)
        return int(memlock[1]) / found.max_entries if memlock else float("nan")

    def table_writes(self) -> dict[str, float]:
        """Milliseconds that it takes to write a table, by how much of it is new."""
        index = self.maps.tables.indexes()[0]
        now = self.maps.tables.get(index)
        assert now is not None, "the world has a table for each pool"
        turned_round, other = now[::-1], now[:-1]
        return {
            "ms to write all slots anew": self._write(index, turned_round),
            "ms to write one slot": self._write(index, turned_round[:-1] + now[:1]),
            "ms to put a table of another size": self._write(index, other),
            "ms to put the first one back": self._write(index, now),
        }

    def _write(self, index: int, slots: array[int]) -> float:
        start = time.perf_counter_ns()
        self.maps.tables.put(index, slots)
        return (time.perf_counter_ns() - start) / 1e6

    def packets(self, verdict: abi.Verdict) -> int:
        cpu = self.maps.cpus.get(0)
        return int(cpu.verdict[verdict].packets) if cpu else 0

    def learnt(self, row: Row) -> int:
        """New flows that the row's service has counted."""
        counts = self.maps.service_counts.get(self.world.index(row.service))
        return int(counts.flows) if counts else 0

    def why(self) -> str:
        """All verdicts so far, for who must find out what went wrong."""
        counted = ((v, self.packets(v)) for v in abi.Verdict if v < abi.Verdict.MISCONFIGURED + 1)
        return ", ".join(f"{verdict.name} {n}" for verdict, n in counted if n)

    # ---- making flows known

    def prepare(self, row: Row) -> Row:
        """The row with its flows learnt, by packets; measured is then what it says."""
        if row.program == "look_up":
            self._through("remember", row, Order.SEQUENTIAL, row.packet.flows, 0)
        if row.service:
            self._open(row)
        if row.reply:
            row = self._replied(row)
        if row.packet.flows == 1:
            self.expected[row.name] = self._once(row).frame
        return row

    def _once(self, row: Row) -> Outcome:
        """One run without the wrapper: what it hands over must not make a difference."""
        return run(self.program_of(row), row.packet.frame)

    def program_of(self, row: Row) -> int:
        if row.program == "balancer":
            return self.loaded.program
        return self.wrapper.program(row.program)

    def _through(self, name: str, row: Row, order: Order, repeat: int, first: int) -> Outcome:
        packet = replace(row.packet, order=order, first=first)
        fd = self.loaded.program if name == "balancer" else self.wrapper.program(name)
        return self.wrapper.through(fd, packet, repeat)

    def _open(self, row: Row) -> None:
        frames, flows = opening(row), row.packet.flows
        step = flows if len(frames) == 1 else AT_ONCE
        before, known = self.packets(abi.Verdict.FORWARDED), self.learnt(row)
        for first in range(0, flows, step):
            for frame in frames:
                packet = Packet(frame, Order.SEQUENTIAL, flows, first)
                self.wrapper.through(self.loaded.program, packet, min(step, flows - first))
        sent = self.packets(abi.Verdict.FORWARDED) - before
        if sent != flows * len(frames):
            raise BenchError(f"{row.name}: {sent} of {flows} handshakes forwarded: {self.why()}")
        if frames and self.learnt(row) - known != flows:
            raise BenchError(f"{row.name}: not {flows} flows learnt, {self.learnt(row) - known}")

    def _replied(self, row: Row) -> Row:
        """The row for the backend's answer, whose next hop is known."""
        frame = turned(run(self.loaded.program, row.packet.frame).frame)
        self._give_hop(frame)
        return replace(row, packet=Packet(frame))

    def _give_hop(self, frame: bytes) -> None:
        """As after the first reply: a test run has no routes to find it by."""
        four = frame[14] >> 4 == 4
        table = self.maps.returns4 if four else self.maps.returns6
        key = abi.Flow4Key.from_bytes(key4(frame)) if four else abi.Flow6Key.from_bytes(key6(frame))
        entry = table.get(key)  # type: ignore[arg-type]
        if entry is None:
            raise BenchError(f"no entry for the reply: {key}; {self.why()}")
        entry.flow.hop = HOP
        entry.flow.hop_epoch = self.world.settings.hop_epoch & 0xFF
        table.put(key, entry)  # type: ignore[arg-type]

    # ---- measuring

    def measure(self, row: Row, repeat: int) -> Outcome:
        """Run it, and refuse the figure unless every repeat did what the row says."""
        before = self.packets(row.verdict) if row.verdict is not None else 0
        known = self.learnt(row) if row.service else 0
        outcome = self._run(row, repeat)
        self._check_frame(row, outcome)
        if row.verdict is None:
            return outcome
        counted = self.packets(row.verdict) - before
        if counted != repeat:
            raise BenchError(f"{row.name}: {counted} of {repeat} {row.verdict.name}: {self.why()}")
        new = self.learnt(row) - known if row.service else 0
        if new < 0.9 * repeat if row.learns else new:
            raise BenchError(f"{row.name}: {new} new flows in {repeat} packets")
        return outcome

    def greet(self, row: Row) -> None:
        """A packet of each flow, as flows that are alive have sent one lately."""
        packet = replace(row.packet, order=Order.SEQUENTIAL)
        self.measure(replace(row, packet=packet), packet.flows)

    def _run(self, row: Row, repeat: int) -> Outcome:
        if row.wrapped:
            packet = row.packet
            if packet.order is Order.RANDOM:  # elsewhere in the sequence each time
                packet = replace(packet, first=self._random.getrandbits(32))
            return self.wrapper.through(self.program_of(row), packet, repeat)
        return run(self.program_of(row), row.packet.frame, repeat)

    def _check_frame(self, row: Row, outcome: Outcome) -> None:
        length = len(row.packet.frame) + row.grows
        if outcome.action != row.action or len(outcome.frame) != length:
            raise BenchError(
                f"{row.name}: {outcome.action.name} of {len(outcome.frame)} bytes,"
                f" not {row.action.name} of {length}: {self.why()}"
            )
        expected = self.expected.get(row.name, outcome.frame)
        if outcome.frame != expected and row.name != "MAC swap":  # it swaps them back
            raise BenchError(f"{row.name}: the last repeat did not give the frame of a single run")


def turned(frame: bytes) -> bytes:
    """The same with addresses and ports changed over: no checksum notices."""
    a, size, ports = (26, 4, 34) if frame[14] >> 4 == 4 else (22, 16, 54)
    return (
        frame[:a]
        + frame[a + size : a + 2 * size]
        + frame[a : a + size]
        + frame[a + 2 * size : ports]
        + frame[ports + 2 : ports + 4]
        + frame[ports : ports + 2]
        + frame[ports + 4 :]
    )


def key4(frame: bytes) -> bytes:
    """struct flow4_key of a frame without options."""
    return frame[26:38] + bytes([frame[23], 0, 0, 0])


def key6(frame: bytes) -> bytes:
    """struct flow6_key of a frame without extension headers."""
    return frame[22:58] + bytes([frame[20], 0, 0, 0])
