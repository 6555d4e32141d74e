"""The generator and the sink of `make bench ARGS="--part rate"`: frames that are right, and all of them counted."""

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from bpf import program
from bpf.program import Action
from tests.bench import rate_ways as ways
from tests.bench.objects import BenchError
from tests.bench.rate_stream import FIRST_PORT, LENGTH, SOURCE, Stream, Towards, raw
from tests.bench.rate_wire import Wire, first_on, ksoftirqd
from tests.support.checksums import problems
from tests.support.frames import mac

TOWARDS = Towards("192.0.2.10", mac("02:00:00:00:00:01"), 80, 4)


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    with Wire() as wire:
        yield wire


def kernel_threads() -> bool:
    try:
        return bool(ksoftirqd(0))
    except BenchError:
        return False


def generated(wire: Wire, stream: Stream, count: int) -> Iterator[bytes]:
    """What the generator makes of a frame that came back as rubbish."""
    for generator in range(2):
        wire._streams.put(generator, raw(stream, TOWARDS, 1, 4711))
    for _ in range(count):
        run = program.run(wire.program("generate"), b"\xff" * LENGTH, ifindex=1, repeat=1)
        assert run.action is Action.REDIRECT
        yield run.frame


def flow(frame: bytes) -> int:
    """Which of the stream's flows a frame belongs to."""
    address = int.from_bytes(frame[26:30], "big") - int(IPv4Address(SOURCE))
    return address * 64 + int.from_bytes(frame[34:36], "big") - FIRST_PORT


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_every_frame_is_whole_whatever_was_in_its_page(wire: Wire, protocol: str) -> None:
    frames = list(generated(wire, Stream(protocol, 1000), 300))
    assert [frame for frame in frames if problems(frame)] == []
    assert {frame[23] for frame in frames} == {17 if protocol == "udp" else 6}
    flows = [flow(frame) for frame in frames]
    assert set(flows) <= set(range(1000))
    assert len(set(flows)) > 200
    assert {int.from_bytes(frame[36:38], "big") for frame in frames} == {80, 81, 82, 83}
    assert all(frame[37] == 80 + flow(frame) % 4 for frame in frames)


def test_one_flow_is_one_flow(wire: Wire) -> None:
    assert len(set(generated(wire, Stream("udp", 1), 20))) == 1


@pytest.mark.skipif(not kernel_threads(), reason="the kernel's threads are not in this container")
def test_every_frame_that_leaves_is_counted_where_it_arrives(wire: Wire) -> None:
    with ways.redirected(wire) as way, first_on(0):
        wire.attach("sink", way.lab.switch, way.sink)
        sample = wire.send(way.entry, Stream("tcp", 1000), 3000)
        assert (sample.arrived, sample.stray) == ((3000, 0), 0)
        way.check(sample.last)
        entry = replace(way.entry, receivers=(b"\2\0\0\0\0\1", way.lab.backends[1].mac))
        astray = wire.send(entry, Stream("udp", 1000), 2048)
        assert (astray.arrived, astray.stray) == ((0, 0), 2048)
