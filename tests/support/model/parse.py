"""Bytes in, a `Packet` out, by docs/packet-path.md §1. Looks nothing up: what a malformed packet
means depends on whom it is for, and that is program.py's question.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from bpf.abi import Verdict

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10

HOP_BY_HOP, ROUTING, FRAGMENT_HEADER, DESTINATION_OPTIONS = 0, 43, 44, 60
EXTENSIONS_FOLLOWED = 6

_TAGS = (0x8100, 0x88A8)
_FAMILIES = {0x0800: 4, 0x86DD: 6}
FIXED_HEADER = {4: 20, 6: 40}
ADDRESS_SIZE = {4: 4, 6: 16}
ERRORS = {4: (3, 11, 12), 6: (1, 2, 3, 4)}
ICMP_OF = {4: ICMP, 6: ICMPV6}
ECHO_REQUEST = {4: 8, 6: 128}


class Stop(Exception):
    """Parsing ends here, with this verdict if the packet is for a service."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.name)
        self.verdict = verdict


@dataclass(frozen=True, slots=True)
class Tuple:
    """A 5-tuple; fragments have both ports 0."""

    source: bytes
    destination: bytes
    sport: int
    dport: int
    protocol: int

    @property
    def family(self) -> int:
        return 4 if len(self.source) == 4 else 6

    def back(self) -> "Tuple":
        """The same conversation, as the other side sends it."""
        return Tuple(self.destination, self.source, self.dport, self.sport, self.protocol)


class Piece(Enum):
    """Which part of a datagram a packet is."""

    WHOLE = "whole"
    FIRST = "first fragment"
    LATER = "later fragment"


@dataclass(frozen=True, slots=True)
class Head:
    """What can be said before the IP header is believed."""

    family: int
    l3: int
    source: bytes
    destination: bytes
    protocol: int  # next header, for IPv6


@dataclass(frozen=True, slots=True)
class Layers:
    """Where an IP header leads to."""

    protocol: int
    l4: int
    piece: Piece
    plain: bool  # neither options nor extension headers


@dataclass(frozen=True, slots=True)
class Quote:
    """The packet that an ICMP error is about. Offsets are into the frame."""

    l3: int
    l4: int
    end: int
    piece: Piece
    tuple: Tuple


@dataclass(frozen=True, slots=True)
class Packet:
    """A frame whose every length has been checked."""

    frame: bytes
    family: int
    l3: int
    l4: int
    end: int  # of the IP packet; padding follows
    piece: Piece
    plain: bool
    tuple: Tuple
    flags: int = 0  # TCP's, of whole segments
    kind: int = -1  # ICMP's type and code
    code: int = -1
    quote: Quote | None = None

    @property
    def length(self) -> int:
        return self.end - self.l3

    @property
    def fragment(self) -> bool:
        return self.piece is not Piece.WHOLE

    @property
    def ttl(self) -> int:
        return self.frame[self.l3 + (8 if self.family == 4 else 7)]

    @property
    def syn(self) -> bool:
        return self.flags & (SYN | ACK | FIN | RST) == SYN

    @property
    def ack(self) -> bool:
        return self.flags & (SYN | ACK | FIN | RST) == ACK


def head(frame: bytes) -> Head:
    """The addresses, from their places in the fixed header."""
    family, l3 = _ethernet(frame)
    if len(frame) < l3 + FIXED_HEADER[family]:
        raise Stop(Verdict.TRUNCATED)
    size = ADDRESS_SIZE[family]
    at = l3 + (12 if family == 4 else 8)
    source, destination = frame[at : at + size], frame[at + size : at + 2 * size]
    return Head(family, l3, source, destination, frame[l3 + (9 if family == 4 else 6)])


def _ethernet(frame: bytes) -> tuple[int, int]:
    at = 12
    for tags in range(3):
        if len(frame) < at + 2:
            raise Stop(Verdict.TRUNCATED)
        ethertype = _be16(frame, at)
        if ethertype not in _TAGS or tags == 2:
            break
        at += 4
    if ethertype not in _FAMILIES:
        raise Stop(Verdict.NOT_OURS)
    return _FAMILIES[ethertype], at + 2


def packet(frame: bytes, head: Head) -> Packet:
    """The whole packet; Stop says what is wrong with it, or that it is nothing of ours."""
    layers, end = (_ipv4 if head.family == 4 else _ipv6)(frame, head.l3)
    if layers.protocol in (TCP, UDP):
        return _transport(frame, head, layers, end)
    if layers.protocol == ICMP_OF[head.family] and layers.piece is Piece.WHOLE:
        return _icmp(frame, head, layers, end)
    raise Stop(Verdict.NOT_OURS)


def _ipv4(frame: bytes, l3: int) -> tuple[Layers, int]:
    size = (frame[l3] & 15) * 4
    if frame[l3] >> 4 != 4 or size < 20:
        raise Stop(Verdict.BAD_IP_HEADER)
    total = _be16(frame, l3 + 2)
    if not size <= total <= len(frame) - l3:
        raise Stop(Verdict.BAD_IP_LENGTH)
    return Layers(frame[l3 + 9], l3 + size, _piece4(frame, l3), size == 20), l3 + total


def _piece4(frame: bytes, l3: int) -> Piece:
    return _piece(_be16(frame, l3 + 6) & 0x1FFF, bool(frame[l3 + 6] & 0x20))


def _piece(offset: int, more: bool) -> Piece:
    if offset:
        return Piece.LATER
    return Piece.FIRST if more else Piece.WHOLE


def _ipv6(frame: bytes, l3: int) -> tuple[Layers, int]:
    if frame[l3] >> 4 != 6:
        raise Stop(Verdict.BAD_IP_HEADER)
    end = l3 + 40 + _be16(frame, l3 + 4)
    if end > len(frame):
        raise Stop(Verdict.BAD_IP_LENGTH)
    return _chain(frame, l3, end), end


def _chain(frame: bytes, l3: int, end: int) -> Layers:
    """Follow the extension headers of an IPv6 packet."""
    protocol, at, piece, followed = frame[l3 + 6], l3 + 40, Piece.WHOLE, 0
    while protocol in (HOP_BY_HOP, ROUTING, FRAGMENT_HEADER, DESTINATION_OPTIONS):
        if followed == EXTENSIONS_FOLLOWED:
            raise Stop(Verdict.BAD_IP_HEADER)
        if at + 8 > end:
            raise Stop(Verdict.BAD_IP_LENGTH)
        size = 8 if protocol == FRAGMENT_HEADER else (frame[at + 1] + 1) * 8
        if at + size > end:
            raise Stop(Verdict.BAD_IP_LENGTH)
        if protocol == FRAGMENT_HEADER:
            where = _be16(frame, at + 2)
            here = _piece(where >> 3, bool(where & 1))
            piece = piece if here is Piece.WHOLE else here
        protocol, at, followed = frame[at], at + size, followed + 1
        if piece is Piece.LATER:
            break
    return Layers(protocol, at, piece, followed == 0)


def _transport(frame: bytes, head: Head, layers: Layers, end: int) -> Packet:
    if layers.piece is not Piece.LATER:
        (_check_tcp if layers.protocol == TCP else _check_udp)(frame, layers, end)
    sport = dport = flags = 0
    if layers.piece is Piece.WHOLE:
        sport, dport = _be16(frame, layers.l4), _be16(frame, layers.l4 + 2)
        flags = frame[layers.l4 + 13] if layers.protocol == TCP else 0
    addressed = Tuple(head.source, head.destination, sport, dport, layers.protocol)
    return Packet(
        frame, head.family, head.l3, layers.l4, end, layers.piece, layers.plain, addressed, flags
    )


def _check_tcp(frame: bytes, layers: Layers, end: int) -> None:
    segment = end - layers.l4
    if segment < 20:
        raise Stop(Verdict.BAD_TCP)
    size = (frame[layers.l4 + 12] >> 4) * 4
    if size < 20 or (layers.piece is Piece.WHOLE and size > segment):
        raise Stop(Verdict.BAD_TCP)


def _check_udp(frame: bytes, layers: Layers, end: int) -> None:
    segment = end - layers.l4
    if segment < 8:
        raise Stop(Verdict.BAD_UDP)
    length = _be16(frame, layers.l4 + 4)
    if length < 8 or (layers.piece is Piece.WHOLE and length > segment):
        raise Stop(Verdict.BAD_UDP)


def _icmp(frame: bytes, head: Head, layers: Layers, end: int) -> Packet:
    if end - layers.l4 < 8:
        raise Stop(Verdict.BAD_ICMP)
    kind, code = frame[layers.l4], frame[layers.l4 + 1]
    quote = _quote(frame, head.family, layers.l4 + 8, end) if kind in ERRORS[head.family] else None
    addressed = Tuple(head.source, head.destination, 0, 0, layers.protocol)
    return Packet(
        frame,
        head.family,
        head.l3,
        layers.l4,
        end,
        layers.piece,
        layers.plain,
        addressed,
        kind=kind,
        code=code,
        quote=quote,
    )


def _quote(frame: bytes, family: int, l3: int, end: int) -> Quote:
    if end - l3 < FIXED_HEADER[family] or frame[l3] >> 4 != family:
        raise Stop(Verdict.BAD_ICMP)
    layers = _quoted_layers(frame, family, l3, end)
    if layers.protocol not in (TCP, UDP):
        raise Stop(Verdict.NOT_OURS)
    sport = dport = 0
    if layers.l4 + (0 if layers.piece is Piece.LATER else 8) > end:
        raise Stop(Verdict.BAD_ICMP)
    if layers.piece is Piece.WHOLE:
        sport, dport = _be16(frame, layers.l4), _be16(frame, layers.l4 + 2)
    size, at = ADDRESS_SIZE[family], l3 + (12 if family == 4 else 8)
    source, destination = frame[at : at + size], frame[at + size : at + 2 * size]
    about = Tuple(source, destination, sport, dport, layers.protocol)
    return Quote(l3, layers.l4, end, layers.piece, about)


def _quoted_layers(frame: bytes, family: int, l3: int, end: int) -> Layers:
    if family == 6:
        try:
            return _chain(frame, l3, end)
        except Stop:
            raise Stop(Verdict.BAD_ICMP) from None
    size = (frame[l3] & 15) * 4
    if size < 20:
        raise Stop(Verdict.BAD_ICMP)
    return Layers(frame[l3 + 9], l3 + size, _piece4(frame, l3), size == 20)


def _be16(frame: bytes, at: int) -> int:
    return frame[at] << 8 | frame[at + 1]


def words(data: bytes) -> Iterator[int]:
    """The 16-bit words of `data`, an odd last byte padded with zero."""
    padded = data + b"\0" if len(data) % 2 else data
    return (_be16(padded, at) for at in range(0, len(padded), 2))
