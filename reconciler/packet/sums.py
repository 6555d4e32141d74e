"""Internet checksums: what they are, and what they should be."""

from reconciler.packet.fields import Carrier, Span

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
IPV4_BYTES = 4
EXACT, NONE = "exact", "none"


def checksum(data: bytes) -> int:
    """RFC 1071, as it is put on the wire."""
    if len(data) % 2:
        data += b"\0"
    total = int.from_bytes(data) % 0xFFFF  # 2^16 is 1 here, so words just add up
    if total == 0 and any(data):
        total = 0xFFFF
    return ~total & 0xFFFF


def pseudo(carrier: Carrier, length: int) -> bytes:
    if len(carrier.source) == IPV4_BYTES:
        rest = bytes([0, carrier.protocol]) + length.to_bytes(2)
    else:
        rest = length.to_bytes(4) + bytes([0, 0, 0, carrier.protocol])
    return carrier.source + carrier.target + rest


def verdict(found: int, wanted: int) -> str:
    return EXACT if found == wanted else f"wrong, should be 0x{wanted:04x}"


def segment_verdict(span: Span, place: int, carrier: Carrier) -> str:
    """Of a segment's checksum, which is two bytes at `place`."""
    if carrier.fragment:
        return "not checked: a fragment"
    data = span.whole()
    if data is None:
        return f"not checked: {len(span.frame) - span.at} of {span.length} bytes are here"
    found = int.from_bytes(data[place : place + 2])
    if carrier.protocol == UDP and not found:
        return _without(carrier)
    wanted = segment_sum(data, place, carrier)
    return verdict(found, wanted)


def segment_sum(data: bytes, place: int, carrier: Carrier) -> int:
    """What should be in those two bytes."""
    bare = data[:place] + bytes(2) + data[place + 2 :]
    covered = bare if carrier.protocol == ICMP else pseudo(carrier, len(data)) + bare
    wanted = checksum(covered)
    return wanted or 0xFFFF if carrier.protocol == UDP else wanted


def _without(carrier: Carrier) -> str:
    if len(carrier.source) == IPV4_BYTES:
        return NONE
    return f"{NONE}: over IPv6 only tunnels may (RFC 6935)"
