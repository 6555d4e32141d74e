"""Every checksum in a frame, verified with scapy's arithmetic. Builds nothing, repairs nothing.

Independent of `frames.py` on purpose: it walks the headers by itself, and scapy does the sums, so
a mistake in our own builder cannot hide one in the program.
"""

import struct

from scapy.utils import checksum as scapy_sum

ICMP, TCP, UDP, ICMPV6, IPIP, IPV6 = 1, 6, 17, 58, 4, 41
EXTENSIONS = (0, 43, 60)
FRAGMENT = 44
CHECKSUM_AT = {TCP: 16, UDP: 6, ICMP: 2, ICMPV6: 2}
SHORTEST = {TCP: 20, UDP: 8, ICMP: 8, ICMPV6: 8}


def problems(frame: bytes, *, gue_port: int = 6080) -> list[str]:
    """What is wrong, in words: outer, encapsulated and quoted headers. Empty: every sum is right."""
    at, kind = 14, frame[12:14]
    while kind in (b"\x81\x00", b"\x88\xa8"):
        kind, at = frame[at + 2 : at + 4], at + 4
    if kind not in (b"\x08\x00", b"\x86\xdd"):
        return []
    try:
        return list(_packet(frame[at:], "", gue_port, quoted=False))
    except (IndexError, struct.error):
        return ["headers end too early"]


def _packet(packet: bytes, where: str, gue_port: int, *, quoted: bool) -> list[str]:
    if packet[0] >> 4 == 4:
        return _packet4(packet, where, gue_port, quoted=quoted)
    return _packet6(packet, where, gue_port, quoted=quoted)


def _packet4(packet: bytes, where: str, gue_port: int, *, quoted: bool) -> list[str]:
    size = (packet[0] & 15) * 4
    total, _, fragment = struct.unpack_from("!HHH", packet, 2)
    found = [f"{where}ip.checksum"] if scapy_sum(packet[:size]) else []
    if fragment & 0x3FFF or total > len(packet):  # cannot be verified: not all of it is here
        return found if quoted or fragment & 0x3FFF else [*found, f"{where}ip.length"]
    body, protocol = packet[size:total], packet[9]
    pseudo = packet[12:20] + struct.pack("!HH", protocol, len(body))
    return found + _carried(protocol, body, pseudo, where, gue_port, version=4)


def _packet6(packet: bytes, where: str, gue_port: int, *, quoted: bool) -> list[str]:
    (length,) = struct.unpack_from("!H", packet, 4)
    if 40 + length > len(packet):
        return [] if quoted else [f"{where}ip.length"]
    protocol, at = packet[6], 40
    while protocol in EXTENSIONS or protocol == FRAGMENT:
        if protocol == FRAGMENT and struct.unpack_from("!H", packet, at + 2)[0] & 0xFFF9:
            return []
        size = 8 if protocol == FRAGMENT else (packet[at + 1] + 1) * 8
        protocol, at = packet[at], at + size
    body = packet[at : 40 + length]
    pseudo = packet[8:40] + struct.pack("!II", len(body), protocol)
    return _carried(protocol, body, pseudo, where, gue_port, version=6)


def _carried(
    protocol: int, body: bytes, pseudo: bytes, where: str, gue_port: int, version: int
) -> list[str]:
    if protocol in (IPIP, IPV6):
        return _packet(body, where + "inner.", gue_port, quoted=False)
    if protocol not in CHECKSUM_AT:
        return []
    if len(body) < SHORTEST[protocol]:
        return [f"{where}l4 is too short"]
    found = _l4(protocol, body, pseudo, where, version)
    if protocol == UDP and struct.unpack_from("!H", body, 2)[0] == gue_port:
        return found + _packet(body[8:], where + "gue.", gue_port, quoted=False)
    if _is_error(protocol, body) and len(body) >= 28:
        return found + _packet(body[8:], where + "quoted.", gue_port, quoted=True)
    return found


def _is_error(protocol: int, body: bytes) -> bool:
    kinds = {ICMP: (3, 11, 12), ICMPV6: (1, 2, 3, 4)}
    return body[0] in kinds.get(protocol, ())


def _l4(protocol: int, body: bytes, pseudo: bytes, where: str, version: int) -> list[str]:
    (value,) = struct.unpack_from("!H", body, CHECKSUM_AT[protocol])
    if protocol == UDP and value == 0:
        return [f"{where}udp.checksum is 0 over IPv6"] if version == 6 else []
    covered = body if protocol == ICMP else pseudo + body
    name = {TCP: "tcp", UDP: "udp", ICMP: "icmp", ICMPV6: "icmp"}[protocol]
    return [f"{where}{name}.checksum"] if scapy_sum(covered) else []
