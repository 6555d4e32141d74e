"""The format of Wireshark: sections, interfaces, packets. What else a file holds is passed over."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from reconciler.capture.stream import (
    Captured,
    CaptureError,
    Stream,
    check_lengths,
    check_link,
)

SECTION = bytes.fromhex("0a0d0d0a")
ORDERS = {bytes.fromhex("1a2b3c4d"): ">", bytes.fromhex("4d3c2b1a"): "<"}
INTERFACE, OBSOLETE, SIMPLE, ENHANCED = 1, 2, 3, 6
END, RESOLUTION, OFFSET = 0, 9, 14
OFFSET_BYTES = 8
FRAME = 12  # bytes of a block that are type and lengths
SECTION_BYTES = 28
LARGEST = 1 << 24
BILLION, MICRO = 10**9, 10**6
BINARY = 0x80
MAJOR = 1


@dataclass(frozen=True, slots=True)
class _Interface:
    link: int
    snaplen: int
    parts: int = MICRO  # of a second
    offset: int = 0  # seconds


@dataclass(slots=True)
class _Section:
    order: str
    interfaces: list[_Interface] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Block:
    at: int
    kind: int
    body: bytes

    def numbers(self, layout: str, at: int = 0) -> tuple[int, ...]:
        if at + struct.calcsize(layout) > len(self.body):
            raise CaptureError(self.at, f"a block of type {self.kind} that is too short for one")
        return struct.unpack_from(layout, self.body, at)


def frames(stream: Stream) -> Iterator[Captured]:
    """The first four bytes, which say that it is a section, have been read."""
    section = _section(stream)
    while kind := stream.next(4, "a block's type"):
        if kind == SECTION:
            section = _section(stream)
            continue
        block = _block(stream, section.order, kind)
        if block.kind == INTERFACE:
            section.interfaces.append(_interface(block, section.order))
        elif block.kind == ENHANCED:
            yield _enhanced(block, section)
        elif block.kind == SIMPLE:
            yield _simple(block, section)
        elif block.kind == OBSOLETE:
            raise CaptureError(
                block.at, "an obsolete packet block: `editcap -F pcap` makes it readable"
            )


def _section(stream: Stream) -> _Section:
    at = stream.offset - 4
    length, magic = stream.take(4, "a section's length"), stream.take(4, "its byte order")
    order = ORDERS.get(magic)
    if order is None:
        raise CaptureError(at + 8, f"{magic.hex()} is no byte order of pcapng")
    total = _length(at, _number(order, length), SECTION_BYTES)
    body = stream.take(total - FRAME, "the end of a section's header")
    (major, minor) = struct.unpack_from(order + "HH", body)
    if major != MAJOR:
        raise CaptureError(at + 12, f"pcapng version {major}.{minor}: only version 1 is known")
    _check_end(at, order, body[-4:], total)
    return _Section(order)


def _block(stream: Stream, order: str, kind: bytes) -> _Block:
    at = stream.offset - 4
    length = stream.take(4, "a block's length")
    total = _length(at, _number(order, length), FRAME)
    body = stream.take(total - FRAME, "a block's content")
    _check_end(at, order, stream.take(4, "the end of a block"), total)
    return _Block(at, _number(order, kind), body)


def _number(order: str, data: bytes) -> int:
    return int.from_bytes(data, "little" if order == "<" else "big")


def _length(at: int, total: int, least: int) -> int:
    if total % 4 or not least <= total <= LARGEST:
        raise CaptureError(
            at,
            f"a block of {total} bytes: a multiple of 4 between {least} and {LARGEST} is possible",
        )
    return total


def _check_end(at: int, order: str, again: bytes, total: int) -> None:
    repeated = _number(order, again)
    if repeated != total:
        raise CaptureError(at, f"a block of {total} bytes that ends by saying {repeated}")


# ---- interfaces


def _interface(block: _Block, order: str) -> _Interface:
    link, _, snaplen = block.numbers(order + "HHI")
    options = dict(_options(block, order, 8))
    return _Interface(
        link,
        snaplen,
        _parts(options.get(RESOLUTION, b"\x06")),
        _offset(options.get(OFFSET, bytes(OFFSET_BYTES)), block, order),
    )


def _options(block: _Block, order: str, at: int) -> Iterator[tuple[int, bytes]]:
    while at < len(block.body):
        code, length = block.numbers(order + "HH", at)
        at += 4
        if code == END:
            return
        if at + length > len(block.body):
            raise CaptureError(block.at, f"option {code} goes on behind the end of its block")
        yield code, block.body[at : at + length]
        at += -(-length // 4) * 4


def _offset(said: bytes, block: _Block, order: str) -> int:
    if len(said) != OFFSET_BYTES:
        raise CaptureError(block.at, f"a time offset of {len(said)} bytes: it has {OFFSET_BYTES}")
    return int.from_bytes(said, "little" if order == "<" else "big", signed=True)


def _parts(said: bytes) -> int:
    """How many there are in a second."""
    exponent = said[0] if said else 6
    return int(1 << (exponent & ~BINARY) if exponent & BINARY else 10**exponent)


# ---- packets


def _enhanced(block: _Block, section: _Section) -> Captured:
    layout = section.order + "IIIII"
    number, high, low, captured, length = block.numbers(layout)
    interface = _of(block, section, number)
    data = _data(block, struct.calcsize(layout), captured, length)
    time = (high << 32 | low) * BILLION // interface.parts + interface.offset * BILLION
    return Captured(time, data, length)


def _simple(block: _Block, section: _Section) -> Captured:
    (length,) = block.numbers(section.order + "I")
    snaplen = _of(block, section, 0).snaplen
    captured = min(length, snaplen or length)
    return Captured(None, _data(block, 4, captured, length), length)


def _of(block: _Block, section: _Section, number: int) -> _Interface:
    if number >= len(section.interfaces):
        raise CaptureError(
            block.at, f"a packet of interface {number}: {len(section.interfaces)} are described"
        )
    interface = section.interfaces[number]
    check_link(interface.link, block.at)
    return interface


def _data(block: _Block, at: int, captured: int, length: int) -> bytes:
    check_lengths(captured, length, block.at)
    if at + captured > len(block.body):
        raise CaptureError(
            block.at, f"a packet of {captured} bytes in a block that has room for less"
        )
    return block.body[at : at + captured]
