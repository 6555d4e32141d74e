"""The format of tcpdump -w, both byte orders, micro- and nanoseconds."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from reconciler.capture.stream import (
    Captured,
    CaptureError,
    Stream,
    check_lengths,
    check_link,
)

BILLION = 10**9
# Magic number as it is in the file: byte order, and parts of a second.
MAGICS = {
    bytes.fromhex("a1b2c3d4"): (">", 10**6),
    bytes.fromhex("d4c3b2a1"): ("<", 10**6),
    bytes.fromhex("a1b23c4d"): (">", BILLION),
    bytes.fromhex("4d3cb2a1"): ("<", BILLION),
}
HEADER, RECORD = "HHiIII", "IIII"
MAJOR = 2
LINK_BITS = 0xFFFF  # above are bits about frame check sequences


@dataclass(frozen=True, slots=True)
class _Form:
    order: str
    parts: int  # of a second


def frames(stream: Stream, magic: bytes) -> Iterator[Captured]:
    form = _Form(*MAGICS[magic])
    header = stream.take(struct.calcsize(form.order + HEADER), "the end of the file's header")
    major, minor, _, _, _, link = struct.unpack(form.order + HEADER, header)
    if major != MAJOR:
        raise CaptureError(4, f"pcap version {major}.{minor}: only version 2 is known")
    check_link(link & LINK_BITS, 20)
    return _records(stream, form)


def _records(stream: Stream, form: _Form) -> Iterator[Captured]:
    layout = struct.Struct(form.order + RECORD)
    while True:
        at = stream.offset
        header = stream.next(layout.size, "a packet's header")
        if not header:
            return
        seconds, fraction, captured, length = layout.unpack(header)
        if fraction >= form.parts:
            raise CaptureError(at, f"{fraction} parts of a second, which has {form.parts}")
        check_lengths(captured, length, at)
        time = seconds * BILLION + fraction * (BILLION // form.parts)
        yield Captured(time, stream.take(captured, "a packet's bytes"), length)
