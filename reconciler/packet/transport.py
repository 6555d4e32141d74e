"""TCP with options, UDP, and GUE, which travels in UDP."""

from reconciler.packet import sums
from reconciler.packet.fields import (
    Carrier,
    Cut,
    Field,
    Malformed,
    Next,
    Read,
    Span,
    Value,
    layer,
)
from reconciler.packet.ip import NAMES, SEGMENTS
from reconciler.packet.options import options, until_broken

TCP, UDP, GUE, WORD = 20, 8, 4, 4
PORTS = 8  # bytes of a segment that every ICMP error quotes at least
FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr", "ae")
OPTIONS = {2: "mss", 3: "window-scale", 4: "sack-permitted", 5: "sack", 8: "timestamps"}
WIDTHS = {2: (2,), 3: (1,), 4: (), 8: (4, 4)}  # bytes of each number in an option


def tcp(span: Span, carrier: Carrier) -> Read:
    if span.quoted and TCP > _here(span) >= PORTS:
        return _start_of_tcp(span)
    data = span.take(TCP, "the TCP header")
    bits = int.from_bytes(data[12:14])
    length = (bits >> 12) * WORD
    lie = _lie("TCP header", length, TCP, span, carrier)
    missing, data_of_options = ("", b"") if lie else _options(span, length)
    listed, problem = until_broken(options(data_of_options, OPTIONS, _value))
    header = layer(
        "tcp",
        span,
        TCP + len(data_of_options),
        Field("source-port", int.from_bytes(data[:2])),
        Field("destination-port", int.from_bytes(data[2:4])),
        Field("sequence", int.from_bytes(data[4:8])),
        Field("acknowledgement", int.from_bytes(data[8:12])),
        Field("header-length", length),
        Field("reserved", bits >> 9 & 7),
        Field("flags", bits & 0x1FF, _flags(bits)),
        Field("window", int.from_bytes(data[14:16])),
        Field("checksum", int.from_bytes(data[16:18]), sums.segment_verdict(span, 16, carrier)),
        Field("urgent", int.from_bytes(data[18:20])),
        Field("options", listed, problem),
    )
    if lie or missing:
        return Read(header, problem=lie or missing, cut=not lie)
    return Read(header, Next("payload", span.after(length)), problem)


def _lie(what: str, length: int, least: int, span: Span, carrier: Carrier) -> str:
    """What is wrong with a length in a header. A fragment, and a quote, may hold less than it says."""
    if length < least:
        return f"a {what} of {length} bytes: {least} is the least"
    if length > span.length and not (carrier.fragment or span.quoted):
        return f"a {what} of {length} bytes, the segment has {span.length}"
    return ""


def _options(span: Span, length: int) -> tuple[str, bytes]:
    """Where a fragment, a quote or a capture ends before they do, none, and why."""
    try:
        return "", span.take(length, "the TCP options")[TCP:]
    except (Cut, Malformed) as error:
        return str(error), b""


def _here(span: Span) -> int:
    return min(span.end, len(span.frame)) - span.at


def _start_of_tcp(span: Span) -> Read:
    """As much as routers of old quote."""
    data = span.take(PORTS, "the TCP header")
    header = layer(
        "tcp",
        span,
        PORTS,
        Field("source-port", int.from_bytes(data[:2])),
        Field("destination-port", int.from_bytes(data[2:4])),
        Field("sequence", int.from_bytes(data[4:8])),
    )
    return Read(header, problem="the quote ends within the TCP header", cut=True)


def _flags(bits: int) -> str:
    return ",".join(name for i, name in enumerate(FLAGS) if bits >> i & 1) or "none"


def _value(kind: int, data: bytes) -> Value:
    """Numbers, if the option has just as many bytes as its numbers need."""
    widths = WIDTHS.get(kind)
    if kind == 5 and data and not len(data) % 8:  # noqa: PLR2004 -- pairs of edges
        widths = (4,) * (len(data) // 4)
    if not widths or sum(widths) != len(data):
        return data.hex()
    starts = [sum(widths[:i]) for i in range(len(widths))]
    found = tuple(int.from_bytes(data[s : s + w]) for s, w in zip(starts, widths, strict=True))
    return found[0] if len(found) == 1 else found


def udp(span: Span, carrier: Carrier, gue_port: int) -> Read:
    data = span.take(UDP, "the UDP header")
    length = int.from_bytes(data[4:6])
    lie = _lie("UDP datagram", length, UDP, span, carrier)
    datagram = span if carrier.fragment or lie else span.up_to(length)
    target = int.from_bytes(data[2:4])
    header = layer(
        "udp",
        span,
        UDP,
        Field("source-port", int.from_bytes(data[:2])),
        Field("destination-port", target),
        Field("length", length),
        Field("checksum", int.from_bytes(data[6:8]), sums.segment_verdict(datagram, 6, carrier)),
    )
    if lie:
        return Read(header, problem=lie)
    tunnel = target == gue_port and not carrier.fragment and length > UDP
    return Read(header, Next("gue" if tunnel else "payload", datagram.after(UDP)))


def gue(span: Span) -> Read:
    """Variant 1 has no header: the first bits are the packet's own version."""
    first = span.take(1, "the GUE header")[0]
    variant, version = first >> 6, first >> 4
    if variant == 1:
        kind = {4: "ipv4", 6: "ipv6"}.get(version)
        if kind is None:
            raise Malformed(f"GUE variant 1 with an IP version of {version}")
        return Read(layer("gue", span, 0, Field("variant", 1)), Next(kind, span))
    if variant:
        raise Malformed(f"GUE variant {variant}: only 0 and 1 are known")
    length = GUE + (first & 31) * WORD
    data = span.take(length, "the GUE header")
    control = first >> 5 & 1
    header = layer(
        "gue",
        span,
        length,
        Field("variant", 0),
        Field("control", control),
        Field("header-length", length),
        Field("protocol", data[1], "" if control else NAMES.get(data[1], "unknown")),
        Field("flags", int.from_bytes(data[2:4])),
        Field("fields", data[4:].hex()),
    )
    inner = SEGMENTS.get(data[1], "payload") if not control else "payload"
    if inner not in ("ipv4", "ipv6"):
        inner = "payload"
    return Read(header, Next(inner, span.after(length)))
