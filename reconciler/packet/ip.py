"""IPv4 with options, IPv6 with extension headers."""

import ipaddress
from dataclasses import replace

from reconciler.packet import sums
from reconciler.packet.fields import (
    Carrier,
    Field,
    Malformed,
    Next,
    Read,
    Span,
    layer,
)
from reconciler.packet.options import options, options6, until_broken

IPV4, IPV6, WORD = 20, 40, 4
SEGMENT_ROUTING = 4  # its last segment comes first
EXTENSIONS = {
    0: "hop-by-hop",
    43: "routing",
    44: "fragment",
    51: "authentication",
    60: "destination",
}
SEGMENTS = {1: "icmp", 4: "ipv4", 6: "tcp", 17: "udp", 41: "ipv6", 58: "icmpv6"}
NAMES = {**SEGMENTS, **EXTENSIONS, 2: "igmp", 47: "gre", 50: "esp", 59: "nothing", 132: "sctp"}
OPTIONS4 = {7: "record-route", 68: "timestamp", 131: "loose-source-route", 137: "strict-source-route", 148: "router-alert"}  # fmt: skip
OPTIONS6 = {1: "padn", 5: "router-alert", 194: "jumbo"}


def ipv4(span: Span) -> Read:
    data = span.take(IPV4, "the IPv4 header")
    version, length = data[0] >> 4, (data[0] & 15) * WORD
    total = int.from_bytes(data[2:4])
    if version != 4:  # noqa: PLR2004
        raise Malformed(f"IP version {version} where 4 is said")
    if length < IPV4:
        raise Malformed(f"a header of {length} bytes: {IPV4} is the least")
    if total < length:
        raise Malformed(f"a total length of {total} bytes, below the header's {length}")
    _check_room(span, total, "a total length")
    data = span.take(length, "the IPv4 options")
    fragment = int.from_bytes(data[6:8])
    listed, problem = until_broken(options(data[IPV4:], OPTIONS4))
    header = layer(
        "ipv4",
        span,
        length,
        Field("version", version),
        Field("header-length", length),
        Field("dscp", data[1] >> 2),
        Field("ecn", data[1] & 3),
        Field("total-length", total),
        Field("id", int.from_bytes(data[4:6])),
        Field("reserved", fragment >> 15),
        Field("dont-fragment", fragment >> 14 & 1),
        Field("more-fragments", fragment >> 13 & 1),
        Field("fragment-offset", (fragment & 0x1FFF) * 8),
        Field("ttl", data[8]),
        Field("protocol", data[9], _protocol(data[9])),
        Field("checksum", int.from_bytes(data[10:12]), _header_verdict(data)),
        Field("source", str(ipaddress.IPv4Address(data[12:16]))),
        Field("destination", str(ipaddress.IPv4Address(data[16:20]))),
        Field("options", listed, problem),
    )
    carrier = Carrier(
        data[12:16],
        data[16:20],
        data[9],
        first_fragment=fragment & 0x3FFF == 0x2000,  # noqa: PLR2004
        later_fragment=bool(fragment & 0x1FFF),
    )
    return Read(header, _behind(data[9], span.up_to(total).after(length), carrier), problem)


def _check_room(span: Span, total: int, what: str) -> None:
    """A quote may hold less of a packet, a frame may not."""
    if total > span.length and not span.quoted:
        raise Malformed(f"{what} of {total} bytes, the frame has {span.length} left")


def _header_verdict(header: bytes) -> str:
    bare = header[:10] + bytes(2) + header[12:]
    return sums.verdict(int.from_bytes(header[10:12]), sums.checksum(bare))


def ipv6(span: Span) -> Read:
    data = span.take(IPV6, "the IPv6 header")
    first, payload = int.from_bytes(data[:4]), int.from_bytes(data[4:6])
    if first >> 28 != 6:  # noqa: PLR2004
        raise Malformed(f"IP version {first >> 28} where 6 is said")
    _check_room(span, IPV6 + payload, "header and payload")
    header = layer(
        "ipv6",
        span,
        IPV6,
        Field("version", 6),
        Field("dscp", first >> 22 & 0x3F),
        Field("ecn", first >> 20 & 3),
        Field("flow-label", first & 0xFFFFF),
        Field("payload-length", payload),
        Field("next-header", data[6], _protocol(data[6])),
        Field("hop-limit", data[7]),
        Field("source", str(ipaddress.IPv6Address(data[8:24]))),
        Field("destination", str(ipaddress.IPv6Address(data[24:40]))),
    )
    carrier = Carrier(data[8:24], data[24:40], data[6])
    return Read(header, _behind(data[6], span.up_to(IPV6 + payload).after(IPV6), carrier))


def _protocol(number: int) -> str:
    return NAMES.get(number, "unknown")


def _behind(number: int, span: Span, carrier: Carrier) -> Next:
    """A later fragment has no header of what it carries; a first one of a packet in a packet is no packet."""
    kind = SEGMENTS.get(number, "payload")
    if len(carrier.source) == sums.IPV4_BYTES and number == sums.ICMPV6:
        kind = "payload"
    if len(carrier.source) != sums.IPV4_BYTES:
        kind = EXTENSIONS.get(number, kind if number != sums.ICMP else "payload")
    if carrier.later_fragment or (carrier.fragment and kind in ("ipv4", "ipv6")):
        kind = "payload"
    return Next(kind, span, carrier)


# ---- extension headers


def with_options(kind: str, span: Span, carrier: Carrier) -> Read:
    """Hop-by-hop and destination options, which look alike."""
    data = _extension(kind, span)
    listed, problem = until_broken(options6(data[2:], OPTIONS6))
    header = layer(
        kind,
        span,
        len(data),
        Field("next-header", data[0], _protocol(data[0])),
        Field("header-length", len(data)),
        Field("options", listed, problem),
    )
    return Read(header, _further(data[0], span.after(len(data)), carrier), problem)


def routing(span: Span, carrier: Carrier) -> Read:
    data = _extension("routing", span)
    header = layer(
        "routing",
        span,
        len(data),
        Field("next-header", data[0], _protocol(data[0])),
        Field("header-length", len(data)),
        Field("type", data[2]),
        Field("segments-left", data[3]),
        Field("data", data[4:].hex()),
    )
    final = replace(carrier, target=_final(data, carrier.target))
    return Read(header, _further(data[0], span.after(len(data)), final))


def _final(data: bytes, target: bytes) -> bytes:
    """Whom the packet reaches in the end, which is who checksums are about (RFC 8200, 8.1)."""
    addresses = [data[at : at + 16] for at in range(8, len(data) - 15, 16)]
    if not data[3] or not addresses:
        return target
    return {SEGMENT_ROUTING: addresses[0]}.get(data[2], addresses[-1])


def fragment(span: Span, carrier: Carrier) -> Read:
    data = span.take(8, "the fragment header")
    place = int.from_bytes(data[2:4])
    header = layer(
        "fragment",
        span,
        8,
        Field("next-header", data[0], _protocol(data[0])),
        Field("reserved", data[1]),
        Field("offset", place & 0xFFF8),
        Field("reserved-bits", place >> 1 & 3),
        Field("more", place & 1),
        Field("id", int.from_bytes(data[4:8])),
    )
    inner = Carrier(
        carrier.source,
        carrier.target,
        data[0],
        first_fragment=place & 0xFFF9 == 1,
        later_fragment=bool(place & 0xFFF8),
    )
    return Read(header, _behind(data[0], span.after(8), inner))


def authentication(span: Span, carrier: Carrier) -> Read:
    data = span.take(12, "the authentication header")
    length = (data[1] + 2) * WORD
    if length < 12:  # noqa: PLR2004
        raise Malformed(f"an authentication header of {length} bytes: 12 is the least")
    data = span.take(length, "the authentication header")
    header = layer(
        "authentication",
        span,
        length,
        Field("next-header", data[0], _protocol(data[0])),
        Field("header-length", length),
        Field("spi", int.from_bytes(data[4:8])),
        Field("sequence", int.from_bytes(data[8:12])),
        Field("value", data[12:].hex()),
    )
    return Read(header, _further(data[0], span.after(length), carrier))


def _extension(kind: str, span: Span) -> bytes:
    what = f"the {kind} header"
    return span.take((span.take(2, what)[1] + 1) * 8, what)


def _further(number: int, span: Span, carrier: Carrier) -> Next:
    return _behind(number, span, replace(carrier, protocol=number))
