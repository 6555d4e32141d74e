"""Captures are read strictly: what cannot be is an error with its place, and what came before counts."""

import io
import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.all import Ether, PcapNgWriter, wrpcap

from reconciler.capture import Captured, CaptureError, frames

FRAMES = (b"\x02" * 60, b"\x03" * 61)
NS = 1_700_000_000_123_456_789


def pcap(order: str = "<", nano: bool = False, link: int = 1, cut: int = 0) -> bytes:
    magic, parts = (0xA1B23C4D, 10**9) if nano else (0xA1B2C3D4, 10**6)
    out = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, link)
    for frame in FRAMES:
        fraction = NS % 10**9 // (10**9 // parts)
        data = frame[: len(frame) - cut]
        out += struct.pack(order + "IIII", NS // 10**9, fraction, len(data), len(frame)) + data
    return out


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    body += bytes(-len(body) % 4)
    size = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + size + body + size


def pcapng(order: str = "<", link: int = 1, options: bytes = b"") -> bytes:
    out = block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)
    out += block(1, struct.pack(order + "HHI", link, 0, 0) + options, order)
    out += block(5, bytes(12), order)  # statistics
    for frame in FRAMES:
        stamp = NS // 1000
        head = (0, stamp >> 32, stamp & 0xFFFFFFFF, len(frame), len(frame))
        out += block(6, struct.pack(order + "5I", *head) + frame, order)
    return out


def read(data: bytes) -> list[Captured]:
    return list(frames(io.BytesIO(data)))


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcap_of_both_byte_orders_and_units_is_read(order: str) -> None:
    micro = [Captured(NS // 1000 * 1000, frame, len(frame)) for frame in FRAMES]
    assert read(pcap(order)) == micro
    assert read(pcap(order, nano=True)) == [Captured(NS, f, len(f)) for f in FRAMES]


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng_of_both_byte_orders_is_read(order: str) -> None:
    assert read(pcapng(order)) == [Captured(NS // 1000 * 1000, f, len(f)) for f in FRAMES]


def test_pcapng_interfaces_say_what_their_clock_counts() -> None:
    nano = struct.pack("<HHB3xHHqHH", 9, 1, 9, 14, 8, 5, 0, 0)
    assert [one.time for one in read(pcapng(options=nano))] == [NS // 1000 + 5 * 10**9] * 2
    halves = struct.pack("<HHB3x", 9, 1, 0x81)
    assert read(pcapng(options=halves))[0].time == NS // 1000 * 10**9 // 2


def test_simple_packets_have_no_time_and_end_at_the_snaplen() -> None:
    data = block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
    data += block(1, struct.pack("<HHI", 1, 0, 20)) + block(3, struct.pack("<I", 60) + bytes(20))
    assert read(data) == [Captured(None, bytes(20), 60)]
    assert read(data)[0].cut


def test_what_the_snaplen_cut_is_marked() -> None:
    assert [one.cut for one in read(pcap(cut=10))] == [True, True]
    assert not any(one.cut for one in read(pcap()))


def test_what_others_write_is_read(tmp_path) -> None:  # noqa: ANN001
    path, ng = tmp_path / "a.pcap", tmp_path / "a.pcapng"
    sent = [Ether(frame) for frame in FRAMES]
    wrpcap(str(path), sent)
    with PcapNgWriter(str(ng)) as writer:
        writer.write(sent)
    assert [one.data for one in read(path.read_bytes())] == list(FRAMES)
    assert [one.data for one in read(ng.read_bytes())] == list(FRAMES)


@pytest.mark.parametrize("whole", [pcap(), pcap(">", nano=True), pcapng(), pcapng(">")])
def test_every_truncation_is_an_error_or_an_end_and_what_came_before_counts(whole: bytes) -> None:
    full = read(whole)
    clean = 0
    for length in range(len(whole)):
        found, error = [], None
        try:
            found.extend(frames(io.BytesIO(whole[:length])))
        except CaptureError as said:
            error = said
        assert found == full[: len(found)]
        if error is None:
            clean += 1
        else:
            assert 0 <= error.offset <= length
    assert clean == (2 if whole[:4] != bytes.fromhex("0a0d0d0a") else 4)  # between records


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "ends before the magic number"),
        (b"\x1f\x8b\x08\x00", "it is compressed: `zcat"),
        (b"hello", "neither pcap nor pcapng"),
        (pcap(link=113), r"link type 113 \(Linux cooked"),
        (pcapng(link=276), r"link type 276 \(Linux cooked v2"),
        (pcap(link=4711), r"link type 4711 \(unknown\)"),
        (pcap()[:4] + b"\x03\x00" + pcap()[6:], "pcap version 3"),
        (pcap()[:24] + struct.pack("<4I", 0, 0, 1 << 30, 1 << 30), "longer than 262144 is none"),
        (pcap()[:24] + struct.pack("<4I", 0, 0, 61, 60), "61 bytes are said to be captured of 60"),
        (pcap()[:24] + struct.pack("<4I", 0, 10**6, 4, 4), "1000000 parts of a second"),
        (pcapng()[:8] + b"abcd" + pcapng()[12:], "no byte order"),
        (pcapng()[:12] + b"\x02\x00" + pcapng()[14:], "pcapng version 2"),
        (pcapng()[:28] + block(6, bytes(19)), "a packet of interface 0: 0 are described"),
        (pcapng()[:28] + block(6, bytes(4)), "too short"),
        (pcapng()[:28] + block(2, bytes(20)), "obsolete packet block"),
        (pcapng()[:28] + struct.pack("<II", 5, 0xFFFFFFFC), "a block of 4294967292 bytes"),
        (pcapng()[:28] + struct.pack("<II", 5, 13), "a block of 13 bytes"),
        (pcapng()[:24] + bytes(4), "ends by saying 0"),
        (pcapng()[:28] + block(1, struct.pack("<HHIHH", 1, 0, 0, 2, 99)), "option 2 goes on"),
        (pcapng(options=struct.pack("<HH4x", 14, 4)), "a time offset of 4 bytes: it has 8"),
        (pcapng()[:48] + block(6, struct.pack("<5I", 0, 0, 0, 99, 99)), "has room for less"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(data: bytes, said: str) -> None:
    with pytest.raises(CaptureError, match=said):
        read(data)


def test_a_pipe_that_gives_little_at_a_time_is_read_whole() -> None:
    class Drip(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 3))

    assert list(frames(Drip(pcapng()))) == read(pcapng())


@given(st.binary(max_size=200), st.sampled_from([pcap(), pcapng(), pcapng(">")]), st.integers(0))
def test_hostile_bytes_are_refused_and_break_nothing(noise: bytes, whole: bytes, at: int) -> None:
    at %= len(whole)
    for data in (whole[:at] + noise, whole[:at] + noise + whole[at + len(noise) :]):
        try:
            for one in itertools.islice(frames(io.BytesIO(data)), 100):
                assert len(one.data) <= one.length
        except CaptureError as error:
            assert str(error)  # noqa: PT017
