"""What is written into a frame on its way out, by docs/packet-path.md §9 to §11. Decides nothing.

Checksums are updated incrementally, RFC 1624 equation 3, so a wrong one stays wrong.
"""

import struct
from dataclasses import dataclass, field

from tests.support.model import hashing
from tests.support.model.config import Backend
from tests.support.model.parse import ICMP, ICMPV6, TCP, UDP, Packet, Piece, Tuple, words

CHECKSUM_AT = {TCP: 16, UDP: 6, ICMP: 2, ICMPV6: 2}
TTL_OUT = 64
QUOTED = {4: 528, 6: 1232}
IN_IP = {4: 4, 6: 41}
GUE_PORTS = 0xC000


def folded(total: int) -> int:
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checksum(data: bytes) -> int:
    """RFC 1071, over all of `data`."""
    return ~folded(sum(words(data))) & 0xFFFF


def updated(old: int, before: bytes, after: bytes) -> int:
    """RFC 1624, equation 3: HC' = ~(~HC + ~m + m')."""
    total = ~old & 0xFFFF
    total += sum(~word & 0xFFFF for word in words(before)) + sum(words(after))
    return ~folded(total) & 0xFFFF


@dataclass
class Change:
    """Bytes that were replaced, in order: what a checksum over them must hear of."""

    before: bytes = b""
    after: bytes = b""

    def add(self, before: bytes, after: bytes) -> None:
        self.before += before
        self.after += after


@dataclass
class Draft:
    """A frame being rewritten: one IP packet in it, at `l3`, with its L4 header at `l4`."""

    data: bytearray
    family: int
    l3: int
    l4: int
    end: int
    protocol: int
    piece: Piece
    header: Change = field(default_factory=Change)  # covered by the IPv4 header checksum
    pseudo: Change = field(default_factory=Change)  # addresses and ports
    written: Change = field(default_factory=Change)  # everything, checksums included

    @classmethod
    def of(cls, packet: Packet) -> "Draft":
        return cls(
            bytearray(packet.frame),
            packet.family,
            packet.l3,
            packet.l4,
            packet.end,
            packet.tuple.protocol,
            packet.piece,
        )

    def put(self, at: int, new: bytes) -> tuple[bytes, bytes]:
        old = bytes(self.data[at : at + len(new)])
        self.data[at : at + len(new)] = new
        self.written.add(old, new)
        return old, new

    def source(self, address: bytes, port: int | None) -> None:
        self._endpoint(address, port, first=True)

    def destination(self, address: bytes, port: int | None) -> None:
        self._endpoint(address, port, first=False)

    def _endpoint(self, address: bytes, port: int | None, *, first: bool) -> None:
        at = self.l3 + (12 if self.family == 4 else 8) + (0 if first else len(address))
        change = self.put(at, address)
        self.header.add(*change)
        self.pseudo.add(*change)
        if port is not None and self.piece is Piece.WHOLE:
            self.pseudo.add(*self.put(self.l4 + (0 if first else 2), port.to_bytes(2, "big")))

    def hop(self) -> None:
        """One router further."""
        if self.family == 6:
            self.data[self.l3 + 7] -= 1
            return
        at = self.l3 + 8
        ttl, protocol = self.data[at], self.data[at + 1]
        self.header.add(*self.put(at, bytes([ttl - 1, protocol])))

    def finish(self) -> None:
        """Bring the checksums of the header and, where there is one, of TCP or UDP up to date."""
        if self.family == 4:
            self._update(self.l3 + 10, self.header)
        if self.piece is Piece.LATER or self.protocol not in (TCP, UDP):
            return
        at = self.l4 + CHECKSUM_AT[self.protocol]
        if at + 2 > self.end:
            return
        if self.protocol == UDP and not any(self.data[at : at + 2]):
            return
        self._update(at, self.pseudo)

    def _update(self, at: int, change: Change) -> None:
        old = int.from_bytes(self.data[at : at + 2], "big")
        new = updated(old, change.before, change.after)
        if self.protocol == UDP and at == self.l4 + CHECKSUM_AT[UDP]:
            new = new or 0xFFFF
        self.put(at, new.to_bytes(2, "big"))

    def macs(self, dmac: bytes, smac: bytes) -> None:
        self.data[:12] = dmac + smac

    def swap_macs(self) -> None:
        self.macs(bytes(self.data[6:12]), bytes(self.data[:6]))

    def frame(self) -> bytes:
        return bytes(self.data)


def encapsulated(draft: Draft, backend: Backend, source: bytes, udp: bytes | None) -> None:
    """Put an outer IP header, and for GUE a UDP header, before the packet of `draft`."""
    carried = bytes(draft.data[draft.l3 : draft.end])
    size = len(carried) + (8 if udp is not None else 0)
    protocol = UDP if udp is not None else IN_IP[draft.family]
    outer = _outer(backend, source, size, protocol, _traffic_class(carried))
    draft.data[draft.l3 : draft.l3] = outer + (udp or b"")
    kind = 0x0800 if backend.family == 4 else 0x86DD
    draft.data[draft.l3 - 2 : draft.l3] = kind.to_bytes(2, "big")


def _traffic_class(packet: bytes) -> int:
    if packet[0] >> 4 == 4:
        return packet[1]
    return (packet[0] << 4 | packet[1] >> 4) & 0xFF


def _outer(backend: Backend, source: bytes, size: int, protocol: int, tos: int) -> bytes:
    ends = source + backend.address
    if backend.family == 6:
        return struct.pack("!IHBB", 6 << 28 | tos << 20, size, protocol, TTL_OUT) + ends
    return _ipv4(tos, 20 + size, protocol, ends)


def _ipv4(tos: int, length: int, protocol: int, ends: bytes) -> bytes:
    header = struct.pack("!BBHHHBBH", 0x45, tos, length, 0, 0x4000, TTL_OUT, protocol, 0) + ends
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:]


def gue_header(
    draft: Draft, packet: Packet, client: Tuple, backend: Backend, source: bytes, port: int
) -> bytes:
    """The UDP header of GUE variant 1: the inner packet follows directly."""
    inner = bytes(draft.data[draft.l3 : draft.end])
    sport = GUE_PORTS | hashing.tuple_hash(client) & 0x3FFF
    header = struct.pack("!HHHH", sport, port, 8 + len(inner), 0)
    if backend.family == 4:
        return header
    pseudo = source + backend.address + struct.pack("!II", len(header) + len(inner), UDP)
    covered = header + (_trusted(inner, packet) if trusts_l4(packet) else inner)
    return header[:6] + (checksum(pseudo + covered) or 0xFFFF).to_bytes(2, "big")


def trusts_l4(packet: Packet) -> bool:
    """Whether the sum over the segment can be had from its own checksum."""
    if not packet.plain or packet.fragment:
        return False
    if packet.tuple.protocol != UDP:
        return True
    length, sum_ = struct.unpack_from("!HH", packet.frame, packet.l4 + 4)
    return bool(sum_ and length == packet.end - packet.l4)


def _trusted(inner: bytes, packet: Packet) -> bytes:
    """Words with the sum of the inner packet, if its L4 checksum is right: then a segment and
    its pseudo-header cancel out.
    """
    header = inner[: 20 if packet.family == 4 else 40]
    if packet.tuple.protocol == ICMP:
        return header
    ends = packet.tuple.source + packet.tuple.destination
    pseudo = ends + struct.pack("!II", len(inner) - len(header), packet.tuple.protocol)
    return header + bytes(~byte & 0xFF for byte in pseudo)


def echo_reply(packet: Packet) -> bytes:
    """The answer to an echo request."""
    draft = Draft.of(packet)
    draft.swap_macs()
    draft.source(packet.tuple.destination, None)
    draft.destination(packet.tuple.source, None)
    _set_ttl(draft)
    kind = bytes([0 if packet.family == 4 else 129])
    change = draft.put(packet.l4, kind + bytes(draft.data[packet.l4 + 1 : packet.l4 + 2]))
    draft.finish()
    at = packet.l4 + 2
    old = int.from_bytes(draft.data[at : at + 2], "big")
    draft.put(at, updated(old, *change).to_bytes(2, "big"))
    return draft.frame()


def _set_ttl(draft: Draft) -> None:
    if draft.family == 6:
        draft.data[draft.l3 + 7] = TTL_OUT
        return
    at = draft.l3 + 8
    draft.header.add(*draft.put(at, bytes([TTL_OUT, draft.data[at + 1]])))


def can_quote(packet: Packet) -> bool:
    return packet.length >= QUOTED[packet.family]


def dont_fragment(packet: Packet) -> bool:
    return packet.family == 6 or bool(packet.frame[packet.l3 + 6] & 0x40)


def too_big(packet: Packet, mtu: int) -> bytes:
    """The ICMP error that tells the sender what would have fitted."""
    l3, frame = packet.l3, packet.frame
    quoted = frame[l3 : l3 + QUOTED[packet.family]]
    ends = packet.tuple.destination + packet.tuple.source
    link = frame[6:12] + frame[:6] + frame[12:l3]
    if packet.family == 4:
        message = struct.pack("!BBHHH", 3, 4, 0, 0, mtu) + quoted
        message = _summed(message, b"")
        return link + _ipv4(0, 20 + len(message), ICMP, ends) + message
    message = struct.pack("!BBHI", 2, 0, 0, mtu) + quoted
    message = _summed(message, ends + struct.pack("!II", len(message), ICMPV6))
    return link + struct.pack("!IHBB", 6 << 28, len(message), ICMPV6, TTL_OUT) + ends + message


def _summed(message: bytes, pseudo: bytes) -> bytes:
    return message[:2] + checksum(pseudo + message).to_bytes(2, "big") + message[4:]
