"""Raw frames from readable parts, and back into readable parts. Knows nothing of Evenkeel.

Everything is right by default: lengths and checksums follow from the parts. Each of them can be
overridden, because half of the tests are about frames that lie. Nothing here is used to judge
checksums: that is `checksums.py`, which computes them on its own.

    eth(ipv4("198.51.100.7", "192.0.2.10", tcp(41000, 443, "S")))
"""

import struct
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address

CLIENT_MAC = "02:00:00:00:00:07"
BALANCER_MAC = "02:00:00:00:00:01"

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60
_FLAGS = {"F": 1, "S": 2, "R": 4, "P": 8, "A": 16, "U": 32, "E": 64, "C": 128}
_IPV4, _IPV6 = 0x0800, 0x86DD


def mac(text: str) -> bytes:
    """The six bytes of 02:00:00:00:00:01."""
    return bytes.fromhex(text.replace(":", ""))


def rfc1071(data: bytes) -> int:
    """The Internet checksum of `data`, as it is put on the wire."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@dataclass(frozen=True, slots=True)
class Segment:
    """What an IP header carries: its checksum is filled in when the addresses are known."""

    protocol: int
    data: bytes
    checksum_at: int | None = None  # None: leave the bytes alone

    def finish(self, pseudo: bytes) -> bytes:
        if self.checksum_at is None:
            return self.data
        data = bytearray(self.data)
        covered = pseudo if self.protocol != ICMP else b""
        value = rfc1071(covered + bytes(data))
        if self.protocol == UDP:
            value = value or 0xFFFF
        struct.pack_into("!H", data, self.checksum_at, value)
        return bytes(data)


def tcp(
    sport: int,
    dport: int,
    flags: str = "A",
    payload: bytes = b"",
    *,
    seq: int = 1000,
    ack: int = 2000,
    options: bytes = b"",
    offset: int | None = None,
    checksum: int | None = None,
) -> Segment:
    """A TCP segment; `offset` is the data offset in words, when it shall lie."""
    words = 5 + len(options) // 4 if offset is None else offset
    bits = sum(_FLAGS[flag] for flag in flags)
    fields = (sport, dport, seq, ack, words << 4, bits, 29200, checksum or 0, 0)
    data = struct.pack("!HHIIBBHHH", *fields) + options + payload
    return Segment(TCP, data, 16 if checksum is None else None)


def udp(
    sport: int,
    dport: int,
    payload: bytes = b"hello",
    *,
    length: int | None = None,
    checksum: int | None = None,
) -> Segment:
    """A UDP datagram; checksum 0 means that it has none."""
    size = 8 + len(payload) if length is None else length
    data = struct.pack("!HHHH", sport, dport, size, checksum or 0) + payload
    return Segment(UDP, data, 6 if checksum is None else None)


def icmp(
    kind: int,
    code: int = 0,
    body: bytes = b"",
    *,
    rest: int = 0,
    version: int = 4,
    checksum: int | None = None,
) -> Segment:
    """An ICMP (version 4) or ICMPv6 message; `rest` is the word behind the checksum."""
    data = struct.pack("!BBHI", kind, code, checksum or 0, rest) + body
    protocol = ICMP if version == 4 else ICMPV6
    return Segment(protocol, data, 2 if checksum is None else None)


def ping(version: int = 4, payload: bytes = b"ping", *, ident: int = 7, seq: int = 1) -> Segment:
    """An echo request."""
    kind = 8 if version == 4 else 128
    return icmp(kind, 0, payload, rest=ident << 16 | seq, version=version)


def pong(version: int = 4, payload: bytes = b"ping", *, ident: int = 7, seq: int = 1) -> Segment:
    """The reply to it."""
    kind = 0 if version == 4 else 129
    return icmp(kind, 0, payload, rest=ident << 16 | seq, version=version)


def too_big(version: int, mtu: int, quoted: bytes) -> Segment:
    """Fragmentation needed (IPv4) or packet too big (IPv6), quoting the start of an IP packet."""
    if version == 4:
        return icmp(3, 4, quoted, rest=mtu)
    return icmp(2, 0, quoted, rest=mtu, version=6)


def unreachable(version: int, quoted: bytes) -> Segment:
    """Port unreachable, quoting the start of an IP packet."""
    return icmp(3, 3, quoted) if version == 4 else icmp(1, 4, quoted, version=6)


def raw(protocol: int, data: bytes) -> Segment:
    """Any other protocol, or bytes that shall stay as they are."""
    return Segment(protocol, data)


def ipv4(
    src: str,
    dst: str,
    segment: Segment,
    *,
    ttl: int = 64,
    tos: int = 0,
    ident: int = 0x1234,
    df: bool = True,
    mf: bool = False,
    fragment_offset: int = 0,
    options: bytes = b"",
    version: int = 4,
    ihl: int | None = None,
    length: int | None = None,
    protocol: int | None = None,
    checksum: int | None = None,
) -> bytes:
    """An IPv4 packet; `fragment_offset` in bytes, `ihl` in words."""
    source, target = IPv4Address(src).packed, IPv4Address(dst).packed
    pseudo = source + target + struct.pack("!BBH", 0, segment.protocol, len(segment.data))
    body = segment.finish(pseudo)
    words = 5 + len(options) // 4 if ihl is None else ihl
    total = 20 + len(options) + len(body) if length is None else length
    where = df << 14 | mf << 13 | fragment_offset // 8
    carries = segment.protocol if protocol is None else protocol
    header = struct.pack(
        "!BBHHHBBH4s4s",
        version << 4 | words,
        tos,
        total,
        ident,
        where,
        ttl,
        carries,
        0,
        source,
        target,
    )
    header += options
    value = rfc1071(header) if checksum is None else checksum
    return header[:10] + struct.pack("!H", value) + header[12:] + body


@dataclass(frozen=True, slots=True)
class Extension:
    """An IPv6 extension header: its number and all of its bytes but the first."""

    number: int
    rest: bytes


def hop_by_hop(size: int = 8, *, number: int = HOP_BY_HOP, length: int | None = None) -> Extension:
    """Hop-by-hop or destination options of `size` bytes, padded with PadN."""
    words = size // 8 - 1 if length is None else length
    padding = bytes([1, size - 4]) + bytes(size - 4)
    return Extension(number, bytes([words]) + padding)


def destination_options(size: int = 8, *, length: int | None = None) -> Extension:
    return hop_by_hop(size, number=DESTINATION, length=length)


def routing(size: int = 8, *, length: int | None = None) -> Extension:
    """A routing header without segments left."""
    words = size // 8 - 1 if length is None else length
    return Extension(ROUTING, bytes([words, 4, 0]) + bytes(size - 4))


def fragment(offset: int = 0, *, more: bool = False, ident: int = 77) -> Extension:
    """A fragment header; `offset` in bytes."""
    return Extension(FRAGMENT, b"\0" + struct.pack("!HI", offset | more, ident))


def ipv6(
    src: str,
    dst: str,
    segment: Segment,
    *,
    hop_limit: int = 64,
    traffic_class: int = 0,
    flow_label: int = 0,
    extensions: tuple[Extension, ...] = (),
    version: int = 6,
    length: int | None = None,
    next_header: int | None = None,
) -> bytes:
    """An IPv6 packet with its extension headers in order."""
    source, target = IPv6Address(src).packed, IPv6Address(dst).packed
    pseudo = source + target + struct.pack("!II", len(segment.data), segment.protocol)
    numbers = [*(extension.number for extension in extensions), segment.protocol]
    chain = b"".join(
        bytes([follows]) + extension.rest
        for extension, follows in zip(extensions, numbers[1:], strict=True)
    )
    body = chain + segment.finish(pseudo)
    first = version << 28 | traffic_class << 20 | flow_label
    size = len(body) if length is None else length
    carries = numbers[0] if next_header is None else next_header
    return struct.pack("!IHBB16s16s", first, size, carries, hop_limit, source, target) + body


def ip(src: str, dst: str, segment: Segment, *, ttl: int = 64, tos: int = 0) -> bytes:
    """A plain packet of the family that the addresses have."""
    if ":" in dst:
        return ipv6(src, dst, segment, hop_limit=ttl, traffic_class=tos)
    return ipv4(src, dst, segment, ttl=ttl, tos=tos)


def eth(
    packet: bytes,
    *,
    src: str = CLIENT_MAC,
    dst: str = BALANCER_MAC,
    tags: tuple[tuple[int, int], ...] = (),
    ethertype: int | None = None,
) -> bytes:
    """A frame; `tags` are (ethertype, VLAN id) from the outside in."""
    if ethertype is None:
        ethertype = _IPV6 if packet[:1] and packet[0] >> 4 == 6 else _IPV4
    header = mac(dst) + mac(src)
    for kind, vlan in tags:
        header += struct.pack("!HH", kind, vlan)
    return header + struct.pack("!H", ethertype) + packet


def cut4(packet: bytes, start: int, size: int) -> bytes:
    """The fragment of an IPv4 packet that holds `size` bytes of its body from `start` on."""
    head = (packet[0] & 15) * 4
    body = packet[head:]
    piece = body[start : start + size]
    more = start + size < len(body)
    header = bytearray(packet[:head])
    struct.pack_into("!HHH", header, 2, head + len(piece), 0x1234, more << 13 | start // 8)
    struct.pack_into("!H", header, 10, 0)
    struct.pack_into("!H", header, 10, rfc1071(bytes(header)))
    return bytes(header) + piece


def cut6(packet: bytes, start: int, size: int) -> bytes:
    """The same for an IPv6 packet without extension headers."""
    body = packet[40:]
    more = start + size < len(body)
    header = bytes([packet[6]]) + fragment(start, more=more).rest
    piece = header + body[start : start + size]
    return packet[:4] + struct.pack("!HB", len(piece), FRAGMENT) + packet[7:40] + piece


def cut(packet: bytes, start: int, size: int) -> bytes:
    """The fragment with `size` bytes from `start` on, in either family."""
    return cut4(packet, start, size) if packet[0] >> 4 == 4 else cut6(packet, start, size)


# ---- back into readable parts ----


@dataclass(frozen=True, slots=True)
class Headers:
    """Where everything begins in a frame whose lengths can be believed."""

    version: int  # 0: neither IPv4 nor IPv6
    ip_at: int
    l4_at: int
    end: int
    protocol: int
    fragment_offset: int = 0
    more_fragments: bool = False


def headers(frame: bytes, *, ip_at: int | None = None) -> Headers:
    """Find the headers of a frame, or of an IP packet inside it that begins at `ip_at`."""
    if ip_at is None:
        at, kind = 14, int.from_bytes(frame[12:14], "big")
        while kind in (0x8100, 0x88A8):
            kind = int.from_bytes(frame[at + 2 : at + 4], "big")
            at += 4
        if kind not in (_IPV4, _IPV6):
            return Headers(0, at, at, len(frame), kind)
        ip_at = at
    return _headers4(frame, ip_at) if frame[ip_at] >> 4 == 4 else _headers6(frame, ip_at)


def _headers4(frame: bytes, at: int) -> Headers:
    total, _, where = struct.unpack_from("!HHH", frame, at + 2)
    l4_at = at + (frame[at] & 15) * 4
    return Headers(
        4, at, l4_at, at + total, frame[at + 9], (where & 0x1FFF) * 8, bool(where >> 13 & 1)
    )


def _headers6(frame: bytes, at: int) -> Headers:
    (size,) = struct.unpack_from("!H", frame, at + 4)
    here = Headers(6, at, at + 40, at + 40 + size, frame[at + 6])
    while (
        here.protocol in (HOP_BY_HOP, ROUTING, DESTINATION, FRAGMENT) and not here.fragment_offset
    ):
        l4_at = here.l4_at
        length = 8 if here.protocol == FRAGMENT else (frame[l4_at + 1] + 1) * 8
        if here.protocol == FRAGMENT:
            (where,) = struct.unpack_from("!H", frame, l4_at + 2)
            here = replace(here, fragment_offset=where & 0xFFF8, more_fragments=bool(where & 1))
        here = replace(here, protocol=frame[l4_at], l4_at=l4_at + length)
    return here


def _mac(data: bytes) -> str:
    return data.hex(":")


def describe(frame: bytes) -> dict[str, object]:
    """A frame's fields by name. What cannot be decoded is there as hex."""
    out: dict[str, object] = {"eth": f"{_mac(frame[6:12])} > {_mac(frame[:6])}"}
    try:
        here = headers(frame)
        if here.ip_at > 14:
            out["tags"] = frame[12 : here.ip_at].hex()
        if not here.version:
            return {**out, "ethertype": hex(here.protocol), "rest": frame[here.ip_at :].hex()}
        out |= describe_packet(frame[here.ip_at : here.end])
        if frame[here.end :]:
            out["padding"] = frame[here.end :].hex()
    except (IndexError, struct.error):
        return {**out, "undecodable": frame[14:].hex()}
    return out


def describe_packet(packet: bytes, prefix: str = "", *, quoted: bool = False) -> dict[str, object]:
    """The fields of an IP packet, those of what it carries included."""
    try:
        here = headers(packet, ip_at=0)
        ip_fields = _describe4(packet) if here.version == 4 else _describe6(packet, here)
        out = {prefix + name: value for name, value in ip_fields.items()}
        end = len(packet) if quoted else min(here.end, len(packet))
        return out | _describe_l4(packet[here.l4_at : end], here, prefix)
    except (IndexError, struct.error):
        return {prefix + "undecodable": packet.hex()}


def _describe4(packet: bytes) -> dict[str, object]:
    first, tos, total, ident, where, ttl, protocol, checksum, src, dst = struct.unpack_from(
        "!BBHHHBBH4s4s", packet
    )
    return {
        "ip": f"{IPv4Address(src)} > {IPv4Address(dst)}",
        "ip.tos": tos,
        "ip.length": total,
        "ip.id": ident,
        "ip.df": bool(where >> 14 & 1),
        "ip.fragment": f"{(where & 0x1FFF) * 8}{'+' if where >> 13 & 1 else ''}",
        "ip.ttl": ttl,
        "ip.protocol": protocol,
        "ip.checksum": hex(checksum),
        "ip.options": packet[20 : (first & 15) * 4].hex(),
    }


def _describe6(packet: bytes, here: Headers) -> dict[str, object]:
    first, size, protocol, hops, src, dst = struct.unpack_from("!IHBB16s16s", packet)
    return {
        "ip": f"{IPv6Address(src)} > {IPv6Address(dst)}",
        "ip.tos": first >> 20 & 0xFF,
        "ip.flow_label": first & 0xFFFFF,
        "ip.length": size,
        "ip.ttl": hops,
        "ip.next_header": protocol,
        "ip.fragment": f"{here.fragment_offset}{'+' if here.more_fragments else ''}",
        "ip.extensions": packet[40 : here.l4_at].hex(),
    }


def _describe_l4(data: bytes, here: Headers, prefix: str) -> dict[str, object]:
    if here.fragment_offset:
        return {prefix + "data": data.hex()}
    if here.protocol == TCP and len(data) >= 20:
        return _describe_tcp(data, prefix)
    if here.protocol == UDP and len(data) >= 8:
        sport, dport, length, checksum = struct.unpack_from("!HHHH", data)
        ports = {prefix + "udp": f"{sport} > {dport}", prefix + "udp.length": length}
        rest: dict[str, object] = {prefix + "udp.checksum": hex(checksum)}
        return ports | rest | _describe_inner(data[8:], prefix)
    if here.protocol in (ICMP, ICMPV6) and len(data) >= 8:
        return _describe_icmp(data, here.version, prefix)
    if here.protocol in (4, 41):
        return describe_packet(data, prefix + "inner.")
    return {prefix + "data": data.hex()}


def _describe_inner(data: bytes, prefix: str) -> dict[str, object]:
    if data and data[0] >> 4 in (4, 6) and len(data) >= 28:
        return {prefix + "data": data.hex()} | describe_packet(data, prefix + "gue.")
    return {prefix + "data": data.hex()}


def _describe_tcp(data: bytes, prefix: str) -> dict[str, object]:
    sport, dport, seq, ack, words, bits, window, checksum, _ = struct.unpack_from(
        "!HHIIBBHHH", data
    )
    return {
        prefix + "tcp": f"{sport} > {dport}",
        prefix + "tcp.flags": "".join(name for name, bit in _FLAGS.items() if bits & bit),
        prefix + "tcp.offset": words >> 4,
        prefix + "tcp.seq": f"{seq}/{ack}/{window}",
        prefix + "tcp.checksum": hex(checksum),
        prefix + "data": data[20:].hex(),
    }


def _describe_icmp(data: bytes, version: int, prefix: str) -> dict[str, object]:
    kind, code, checksum, rest = struct.unpack_from("!BBHI", data)
    out: dict[str, object] = {
        prefix + "icmp": f"{kind}/{code}",
        prefix + "icmp.checksum": hex(checksum),
        prefix + "icmp.rest": rest,
    }
    error = kind in (3, 11, 12) if version == 4 else kind in (1, 2, 3, 4)
    if not error or len(data) < 28:
        return out | {prefix + "data": data[8:].hex()}
    return out | describe_packet(data[8:], prefix + "quoted.", quoted=True)


def difference(got: bytes, want: bytes) -> str:
    """What differs, field by field; empty when the frames are the same bytes."""
    if got == want:
        return ""
    here, there = describe(got), describe(want)
    lines = [
        f"{name}: got {here.get(name)!r}, want {there.get(name)!r}"
        for name in dict.fromkeys([*there, *here])
        if here.get(name) != there.get(name)
    ]
    return "\n".join(lines or [f"got {got.hex()}", f"want {want.hex()}"])
