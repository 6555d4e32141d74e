"""Ethernet, VLAN tags, ARP."""

import ipaddress
import itertools

from reconciler.packet.fields import Field, Next, Read, Span, layer

ETHERNET, TAG, ARP, ARP_HEAD = 14, 4, 28, 8
KINDS = {
    0x0800: "ipv4",
    0x0806: "arp",
    0x8100: "vlan",
    0x86DD: "ipv6",
    0x88A8: "vlan",
}
NAMES = {0x8100: "802.1Q", 0x88A8: "802.1ad", 0x8847: "MPLS", 0x88CC: "LLDP", 0x8863: "PPPoE"}
LARGEST_LENGTH = 1500  # a number up to here is no type but a length
OPERATIONS = {1: "request", 2: "reply", 3: "reverse request", 4: "reverse reply"}
MAC_BYTES, IPV4_BYTES = 6, 4


def ethernet(span: Span) -> Read:
    data = span.take(ETHERNET, "the Ethernet header")
    kind = int.from_bytes(data[12:])
    header = layer(
        "ethernet",
        span,
        ETHERNET,
        Field("destination", data[:6].hex(":")),
        Field("source", data[6:12].hex(":")),
        Field("type", kind, _name(kind)),
    )
    return Read(header, _behind(kind, span.after(ETHERNET)))


def vlan(span: Span) -> Read:
    data = span.take(TAG, "a VLAN tag")
    control, kind = int.from_bytes(data[:2]), int.from_bytes(data[2:])
    header = layer(
        "vlan",
        span,
        TAG,
        Field("priority", control >> 13),
        Field("drop-eligible", control >> 12 & 1),
        Field("id", control & 0xFFF),
        Field("type", kind, _name(kind)),
    )
    return Read(header, _behind(kind, span.after(TAG)))


def _name(kind: int) -> str:
    if kind <= LARGEST_LENGTH:
        return "a length: 802.3"
    return NAMES.get(kind) or KINDS.get(kind, "unknown")


def _behind(kind: int, span: Span) -> Next:
    return Next(KINDS.get(kind, "payload"), span)


def arp(span: Span) -> Read:
    head = span.take(ARP_HEAD, "the ARP header")
    hardware, protocol = head[4], head[5]
    length = ARP_HEAD + 2 * (hardware + protocol)
    data = span.take(length, "an ARP packet")
    cuts = (ARP_HEAD, hardware, protocol, hardware, protocol)
    ends = [sum(cuts[: i + 1]) for i in range(len(cuts))]
    parts = [data[start:end] for start, end in itertools.pairwise(ends)]
    operation = int.from_bytes(data[6:8])
    header = layer(
        "arp",
        span,
        length,
        Field("hardware-type", int.from_bytes(data[:2])),
        Field("protocol-type", int.from_bytes(data[2:4])),
        Field("hardware-length", hardware),
        Field("protocol-length", protocol),
        Field("operation", operation, OPERATIONS.get(operation, "unknown")),
        Field("sender-hardware", _mac(parts[0])),
        Field("sender-protocol", _address(parts[1])),
        Field("target-hardware", _mac(parts[2])),
        Field("target-protocol", _address(parts[3])),
    )
    return Read(header)


def _mac(data: bytes) -> str:
    return data.hex(":") if len(data) == MAC_BYTES else data.hex()


def _address(data: bytes) -> str:
    return str(ipaddress.IPv4Address(data)) if len(data) == IPV4_BYTES else data.hex()
