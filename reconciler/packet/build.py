"""A client's packet as a frame: every length and checksum right, and no payload."""

from collections.abc import Iterable

from reconciler.model import Packet, Proto
from reconciler.packet import sums
from reconciler.packet.fields import Carrier

ETHERTYPE = {4: 0x0800, 6: 0x86DD}
TAG = 0x8100
FLAGS = {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "none": 0}
SYN, TTL, WINDOW = FLAGS["syn"], 64, 65535
PLACES = {Proto.TCP: 16, Proto.UDP: 6}  # of checksums


def flags_of(text: str) -> int | None:
    """The bits of "syn,ack"; None: there are no such flags."""
    names = text.lower().split(",")
    return sum({FLAGS[name] for name in names}) if set(names) <= FLAGS.keys() else None


def frame(packet: Packet, flags: int = SYN, tags: Iterable[int] = ()) -> bytes:
    """With these TCP flags, inside these VLANs; MAC addresses zero."""
    segment = _segment(packet, flags)
    version = packet.source.version
    header = _ipv4(packet, len(segment)) if version == 4 else _ipv6(packet, len(segment))  # noqa: PLR2004
    tagged = b"".join(TAG.to_bytes(2) + tag.to_bytes(2) for tag in tags)
    return bytes(12) + tagged + ETHERTYPE[version].to_bytes(2) + header + segment


def _segment(packet: Packet, flags: int) -> bytes:
    bare = packet.sport.to_bytes(2) + packet.dport.to_bytes(2)
    if packet.proto is Proto.TCP:
        bare += bytes(8) + bytes([5 << 4, flags]) + WINDOW.to_bytes(2) + bytes(4)
    else:
        bare += (8).to_bytes(2) + bytes(2)
    at = PLACES[packet.proto]
    carrier = Carrier(packet.source.packed, packet.destination.packed, packet.proto)
    return bare[:at] + sums.segment_sum(bare, at, carrier).to_bytes(2) + bare[at + 2 :]


def _ipv4(packet: Packet, size: int) -> bytes:
    head = bytes([0x45, 0]) + (20 + size).to_bytes(2) + bytes(4) + bytes([TTL, packet.proto])
    ends = packet.source.packed + packet.destination.packed
    return head + sums.checksum(head + bytes(2) + ends).to_bytes(2) + ends


def _ipv6(packet: Packet, size: int) -> bytes:
    head = bytes([0x60, 0, 0, 0]) + size.to_bytes(2) + bytes([packet.proto, TTL])
    return head + packet.source.packed + packet.destination.packed
