"""ICMP and ICMPv6, and the packets that their errors quote."""

import ipaddress

from reconciler.packet import sums
from reconciler.packet.fields import Carrier, Field, Next, Read, Span, layer

HEAD, ADDRESS = 8, 16
ECHO4 = (0, 8)
ECHO6 = (128, 129)
NAMES4 = {0: "echo reply", 3: "unreachable", 4: "source quench", 5: "redirect", 8: "echo request", 11: "time exceeded", 12: "parameter problem"}  # fmt: skip
NAMES6 = {1: "unreachable", 2: "packet too big", 3: "time exceeded", 4: "parameter problem", 128: "echo request", 129: "echo reply", 133: "router solicitation", 134: "router advertisement", 135: "neighbour solicitation", 136: "neighbour advertisement"}  # fmt: skip
ERRORS4 = (3, 4, 5, 11, 12)
ERRORS6 = (1, 2, 3, 4)
UNREACHABLE, REDIRECT, PARAMETER = 3, 5, 12
TOO_BIG_CODE, TOO_BIG6, PARAMETER6 = 4, 2, 4
NEIGHBOURS = (135, 136)


def icmp(span: Span, carrier: Carrier) -> Read:
    data = span.take(HEAD, "the ICMP header")
    rest = _rest4(data[0], data[1], data[4:8])
    header = layer("icmp", span, HEAD, *_start(span, data, NAMES4, carrier), *rest)
    return Read(header, _behind(span, "ipv4", quotes=data[0] in ERRORS4))


def icmpv6(span: Span, carrier: Carrier) -> Read:
    data = span.take(HEAD, "the ICMPv6 header")
    rest = _rest6(data[0], data[4:8])
    length = HEAD
    if data[0] in NEIGHBOURS:
        target = span.take(HEAD + ADDRESS, "the neighbour's address")[HEAD:]
        rest = (*rest, Field("target", str(ipaddress.IPv6Address(target))))
        length += ADDRESS
    header = layer("icmpv6", span, length, *_start(span, data, NAMES6, carrier), *rest)
    if length > HEAD:
        return Read(header, Next("payload", span.after(length)))
    return Read(header, _behind(span, "ipv6", quotes=data[0] in ERRORS6))


def _start(span: Span, data: bytes, names: dict[int, str], carrier: Carrier) -> tuple[Field, ...]:
    verdict = sums.segment_verdict(span, 2, carrier)
    return (
        Field("type", data[0], names.get(data[0], "unknown")),
        Field("code", data[1]),
        Field("checksum", int.from_bytes(data[2:4]), verdict),
    )


def _rest4(kind: int, code: int, rest: bytes) -> tuple[Field, ...]:
    if kind in ECHO4:
        return _echo(rest)
    if kind == UNREACHABLE and code == TOO_BIG_CODE:
        return (Field("mtu", int.from_bytes(rest[2:])),)
    if kind == REDIRECT:
        return (Field("gateway", str(ipaddress.IPv4Address(rest))),)
    if kind == PARAMETER:
        return (Field("pointer", rest[0]),)
    return (Field("rest", rest.hex()),)


def _rest6(kind: int, rest: bytes) -> tuple[Field, ...]:
    if kind in ECHO6:
        return _echo(rest)
    if kind == TOO_BIG6:
        return (Field("mtu", int.from_bytes(rest)),)
    if kind == PARAMETER6:
        return (Field("pointer", int.from_bytes(rest)),)
    return (Field("rest", rest.hex()),)


def _echo(rest: bytes) -> tuple[Field, ...]:
    return Field("id", int.from_bytes(rest[:2])), Field("sequence", int.from_bytes(rest[2:]))


def _behind(span: Span, kind: str, *, quotes: bool) -> Next:
    inside = span.after(HEAD)
    if not quotes or not inside.length:
        return Next("payload", inside)
    return Next(kind, Span(span.frame, inside.at, inside.end, quoted=True))
