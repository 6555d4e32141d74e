"""Bytes of a capture in order, the place of each, and what one packet of it is."""

from dataclasses import dataclass
from typing import Protocol

ETHERNET = 1
LONGEST = 262144  # bytes of a packet: what libpcap takes for possible, too
LINKS = {
    0: "BSD loopback",
    6: "token ring",
    9: "PPP",
    12: "raw IP",
    14: "raw IP",
    50: "PPP over serial",
    51: "PPP over Ethernet",
    101: "raw IP",
    105: "802.11",
    108: "OpenBSD loopback",
    113: "Linux cooked (tcpdump -i any)",
    127: "802.11 with radiotap",
    147: "user-defined",
    189: "USB",
    228: "raw IPv4",
    229: "raw IPv6",
    276: "Linux cooked v2 (tcpdump -i any)",
}


@dataclass(frozen=True, slots=True)
class Captured:
    """One packet. `length` is what it had on the wire; `data` may be less."""

    time: int | None  # ns since the epoch; None: the capture does not say
    data: bytes
    length: int

    @property
    def cut(self) -> bool:
        return len(self.data) < self.length


class CaptureError(Exception):
    """The file is no capture, or not from here on."""

    def __init__(self, offset: int, what: str) -> None:
        super().__init__(f"byte {offset}: {what}")
        self.offset = offset


class Readable(Protocol):
    """Anything that a binary file opened for reading is."""

    def read(self, size: int, /) -> bytes: ...


class Stream:
    """Exactly so many bytes, or an error that says where they end."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self.offset = 0

    def take(self, count: int, what: str) -> bytes:
        found = self.next(count, what)
        if count and not found:
            raise CaptureError(self.offset, f"the file ends before {what}")
        return found

    def next(self, count: int, what: str) -> bytes:
        """The same, but nothing at the very end of the file."""
        parts, missing = [], count
        while missing and (part := self._source.read(missing)):
            parts.append(part)
            missing -= len(part)
        if missing and parts:
            had = count - missing
            raise CaptureError(
                self.offset, f"the file ends within {what}: {had} of {count} bytes are there"
            )
        self.offset += count - missing
        return b"".join(parts)


def check_link(number: int, offset: int) -> None:
    if number != ETHERNET:
        name = LINKS.get(number, "unknown")
        raise CaptureError(
            offset,
            f"link type {number} ({name}): only Ethernet can be replayed;"
            " capture on one interface, as in `tcpdump -i eth0`",
        )


def check_lengths(captured: int, length: int, offset: int) -> None:
    if captured > LONGEST:
        raise CaptureError(offset, f"a packet of {captured} bytes: longer than {LONGEST} is none")
    if captured > length:
        raise CaptureError(offset, f"{captured} bytes are said to be captured of {length}")
