"""Sends streams into a lab, and counts what comes out of it. Knows no balancer.

One thread on one CPU sends, and all that happens to a frame up to the sink happens on that CPU, in
softirqs that are charged to the thread or are ksoftirqd's: together they are what a packet costs.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bpf import errors, libbpf, program
from bpf.link import NATIVE
from bpf.maps import Map, PerCpuMap
from tests.bench.objects import BenchError, Object
from tests.bench.rate_stream import LENGTH, Arrived, NextHop, Raw, Stream, Towards, raw
from tests.support.namespace import Namespace
from tests.support.wait import until

BATCH = 64  # a veth's NAPI takes as many at a time
SETTLED = 3  # looks in a row that found nothing new
GENERATORS = 2
URGENT = -20  # nice


@dataclass(frozen=True, slots=True)
class Entry:
    """Where frames start, where they have to come out, and what they are addressed to."""

    start: Namespace
    interface: str
    towards: Towards
    receivers: tuple[bytes, ...]  # MACs


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: frames sent and arrived, at each receiver; seconds of CPU and of the clock."""

    sent: int
    arrived: tuple[int, ...]
    stray: int
    cpu: float
    wall: float
    last: bytes

    @property
    def delivered(self) -> int:
        return sum(self.arrived)


class Wire(Object):
    def __init__(self) -> None:
        super().__init__(Path(__file__).with_name("rate.bpf.c"))
        self._streams = Map("streams", self.map("streams"), (int, Raw))
        self._backends = Map("backends", self.map("backends"), (int, int))
        self._hop = Map("next_hop", self.map("next_hop"), (int, NextHop))
        self._arrivals = PerCpuMap("arrivals", self.map("arrivals"), (int, Arrived))

    # ---- programs on interfaces: gone with their namespaces

    def attach(self, name: str, place: Namespace, interface: str) -> None:
        """One of the object's programs, in native mode."""
        with place.entered():
            index, fd = place.ifindex(interface), self.program(name)
            if code := libbpf.lib().bpf_xdp_attach(index, fd, NATIVE, None):
                raise errors.failed(f"interface {interface}: attaching {name}", code)

    def detach(self, place: Namespace, interface: str) -> None:
        with place.entered():
            libbpf.lib().bpf_xdp_detach(place.ifindex(interface), NATIVE, None)

    def set_hop(self, destination: bytes, source: bytes, ifindex: int) -> None:
        """Where `bare` sends everything."""
        macs = (destination + source).ljust(12, b"\0")
        self._hop.put(0, NextHop(macs=type(NextHop().macs).from_buffer_copy(macs), ifindex=ifindex))

    # ---- runs

    def send(self, entry: Entry, stream: Stream, count: int) -> Sample:
        """From the CPU that the calling thread is pinned to."""
        self._prepare(entry, stream)
        before, cpu, wall = self._count(), spent(), time.perf_counter()
        with entry.start.entered():
            self._generate(entry, count)
        took = time.perf_counter() - wall
        self._settle(before, count)
        return self._sample(before, count, spent() - cpu, took)

    def send_from(self, cpus: list[int], entry: Entry, stream: Stream, count: int) -> Sample:
        """So many from each of these CPUs at the same time; the clock runs until both have sent theirs."""
        self._prepare(entry, stream)
        before, gate = self._count(), threading.Barrier(len(cpus) + 1)
        worked, failures = list[float](), list[BaseException]()

        def one(cpu: int) -> None:
            try:
                worked.append(self._one_of(cpu, gate, entry, count))
            except Exception as error:  # noqa: BLE001 -- raised by whoever waits for this thread
                failures.append(error)
                gate.abort()

        threads = [threading.Thread(target=one, args=(cpu,)) for cpu in cpus]
        for thread in threads:
            thread.start()
        gate.wait()
        wall = time.perf_counter()
        for thread in threads:
            thread.join()
        took = time.perf_counter() - wall
        if failures:
            raise failures[0]
        self._settle(before, count * len(cpus))
        return self._sample(before, count * len(cpus), sum(worked), took)

    def _one_of(self, cpu: int, gate: threading.Barrier, entry: Entry, count: int) -> float:
        with first_on(cpu), entry.start.entered():
            gate.wait()
            before = spent()
            self._generate(entry, count)
            return spent() - before

    def _prepare(self, entry: Entry, stream: Stream) -> None:
        index = entry.start.ifindex(entry.interface)
        for generator in range(GENERATORS):
            start = random.getrandbits(32)
            self._streams.put(generator, raw(stream, entry.towards, index, start))
        macs = [int.from_bytes(mac, "little") for mac in entry.receivers]
        self._backends.put_many(list(enumerate(macs + [0] * (2 - len(macs)))))

    def _generate(self, entry: Entry, count: int) -> None:
        index = entry.start.ifindex(entry.interface)
        fd = self.program("generate")
        program.run_live(fd, bytes(LENGTH), ifindex=index, repeat=count, batch=BATCH)

    def _settle(self, before: list[int], sent: int) -> None:
        """Until all are there, or no more come."""
        last, still = -1, 0

        def quiet() -> bool:
            nonlocal last, still
            now = sum(self._count()) - sum(before)
            last, still = now, still + 1 if now == last else 0
            return now >= sent or still >= SETTLED

        until(quiet, what="the last frames", interval=0 if not sent else 0.01)

    def _count(self) -> list[int]:
        return [sum(values) for values in zip(*(a.packets for a in self._parts()), strict=True)]

    def _parts(self) -> list[Arrived]:
        return self._arrivals.per_cpu(0)

    def _sample(self, before: list[int], sent: int, cpu: float, wall: float) -> Sample:
        *came, stray = (now - then for now, then in zip(self._count(), before, strict=True))
        busiest = max(self._parts(), key=lambda part: sum(part.packets))
        return Sample(sent, tuple(came), stray, cpu, wall, bytes(busiest.kept))


# ---- what a CPU has worked


def spent() -> float:
    """Seconds of this thread, and of the kernel's thread for softirqs that its CPU had no time for."""
    (cpu,) = os.sched_getaffinity(0)
    late = int(Path(f"/proc/{ksoftirqd(cpu)}/schedstat").read_text().split()[0])
    return (time.thread_time_ns() + late) / 1e9


@cache
def ksoftirqd(cpu: int) -> int:
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            if comm.read_text().strip() == f"ksoftirqd/{cpu}":
                return int(comm.parent.name)
        except OSError:  # ended meanwhile
            continue
    raise BenchError(f"no ksoftirqd/{cpu} in /proc: is this a container?")


@contextmanager
def first_on(cpu: int) -> Iterator[None]:
    """The calling thread is on this CPU, before all that others want there: what it finds in the caches is its own."""
    before, nice = os.sched_getaffinity(0), os.getpriority(os.PRIO_PROCESS, 0)
    os.sched_setaffinity(0, {cpu})
    os.setpriority(os.PRIO_PROCESS, 0, URGENT)  # of the thread, here as there
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
        os.sched_setaffinity(0, before)
