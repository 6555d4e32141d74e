"""A frame, layer by layer, until it ends or cannot be what it says. Never raises.

Checksums are verified, not believed; what a capture cut off is told apart from what
was never there.
"""

from collections.abc import Callable
from dataclasses import dataclass

from reconciler.packet import icmp, ip, link, transport
from reconciler.packet.fields import Carrier, Cut, Field, Layer, Malformed, Next, Read, Span, layer

GUE_PORT = 6080
DEEPEST = 32  # layers; what nests deeper is somebody's joke
SHOWN = 32  # bytes of a payload
CARRIERS = ("ipv4", "ipv6")


@dataclass(frozen=True, slots=True)
class Tuple:
    """Who sends to whom. Fragments, and what has no ports, have both 0."""

    source: str
    destination: str
    protocol: int
    sport: int = 0
    dport: int = 0

    @property
    def version(self) -> int:
        return 6 if ":" in self.source else 4

    def __str__(self) -> str:
        name = ip.NAMES.get(self.protocol, str(self.protocol))
        return f"{self._end(self.source, self.sport)} -> {self._end(self.destination, self.dport)}/{name}"

    def _end(self, address: str, port: int) -> str:
        if self.protocol not in (6, 17):
            return address
        return f"[{address}]:{port}" if self.version == 6 else f"{address}:{port}"  # noqa: PLR2004


@dataclass(frozen=True, slots=True)
class Decoded:
    layers: tuple[Layer, ...]
    problem: str = ""  # why the rest was not read
    cut: bool = False  # ... and whether the capture is to blame

    @property
    def tuple(self) -> Tuple | None:
        """The outermost one."""
        return _tuple(self.layers, quoted=False)

    @property
    def quoted(self) -> Tuple | None:
        """Of the packet that an ICMP error is about."""
        return _tuple([one for one in self.layers if one.quoted], quoted=True)

    @property
    def wrong_sums(self) -> list[str]:
        """Which checksums are wrong, in words."""
        return [
            f"{'quoted ' * one.quoted}{one.name} checksum {field.note}"
            for one in self.layers
            for field in one.fields
            if field.note.startswith("wrong")
        ]


def decode(frame: bytes, length: int | None = None, gue_port: int = GUE_PORT) -> Decoded:
    """`length`: what the frame had on the wire, when it is not all here."""
    layers: list[Layer] = []
    problem, cut = "", False
    todo: Next | None = Next("ethernet", Span(frame, 0, max(len(frame), length or 0)))
    while todo is not None:
        if len(layers) >= DEEPEST:
            return Decoded(tuple(layers), problem or f"more than {DEEPEST} layers")
        try:
            read = _READERS[todo.kind](todo, gue_port)
        except (Malformed, Cut) as error:
            said = f"{todo.kind} at byte {todo.span.at}: {error}"
            return Decoded(tuple(layers), problem or said, cut or isinstance(error, Cut))
        if read.layer.name != "payload" or read.layer.length:
            layers.append(read.layer)
        if read.problem and not problem:
            problem, cut = f"{todo.kind} at byte {todo.span.at}: {read.problem}", read.cut
        todo = read.next
    return Decoded(tuple(layers), problem, cut)


def _payload(todo: Next, _: int) -> Read:
    """What no header is known for: its length, and how it starts."""
    span = todo.span
    here = span.frame[span.at : span.end]
    shown = here[:SHOWN].hex() + "..." * (len(here) > SHOWN)
    length = max(0, span.length)
    note = f"{len(here)} captured" if len(here) < length and not span.quoted else ""
    return Read(layer("payload", span, length, Field("bytes", length, note), Field("data", shown)))


def _plain(read: Callable[[Span], Read]) -> Callable[[Next, int], Read]:
    return lambda todo, _: read(todo.span)


def _carried(read: Callable[[Span, Carrier], Read]) -> Callable[[Next, int], Read]:
    return lambda todo, _: read(todo.span, _carrier(todo))


def _carrier(todo: Next) -> Carrier:
    assert todo.carrier is not None  # noqa: S101 -- only IP headers lead here
    return todo.carrier


_READERS: dict[str, Callable[[Next, int], Read]] = {
    "ethernet": _plain(link.ethernet),
    "vlan": _plain(link.vlan),
    "arp": _plain(link.arp),
    "ipv4": _plain(ip.ipv4),
    "ipv6": _plain(ip.ipv6),
    "hop-by-hop": lambda todo, _: ip.with_options("hop-by-hop", todo.span, _carrier(todo)),
    "destination": lambda todo, _: ip.with_options("destination", todo.span, _carrier(todo)),
    "routing": _carried(ip.routing),
    "fragment": _carried(ip.fragment),
    "authentication": _carried(ip.authentication),
    "tcp": _carried(transport.tcp),
    "udp": lambda todo, port: transport.udp(todo.span, _carrier(todo), port),
    "gue": _plain(transport.gue),
    "icmp": _carried(icmp.icmp),
    "icmpv6": _carried(icmp.icmpv6),
    "payload": _payload,
}


def _tuple(layers: "list[Layer] | tuple[Layer, ...]", *, quoted: bool) -> Tuple | None:
    at = next((i for i, one in enumerate(layers) if one.name in CARRIERS), None)
    if at is None:
        return None
    header, protocol = layers[at], None
    for one in layers[at:]:
        if one.name in CARRIERS and one is not header:
            break
        if one.quoted != quoted:
            break
        if one.name in ("tcp", "udp") and not _is_fragment(layers[at:]):
            ports = one["source-port"], one["destination-port"]
            return Tuple(header["source"], header["destination"], protocol or 0, *ports)
        protocol = _protocol(one, protocol)
    return Tuple(header["source"], header["destination"], protocol or 0)


def _protocol(one: Layer, before: int | None) -> int | None:
    """Of what comes behind this header."""
    names = [field.name for field in one.fields]
    for name in ("protocol", "next-header"):
        if name in names:
            return int(one[name])
    return before


def _is_fragment(layers: "list[Layer] | tuple[Layer, ...]") -> bool:
    first = layers[0]
    if first.name == "ipv4":
        return bool(first["more-fragments"] or first["fragment-offset"])
    own = next((i for i, one in enumerate(layers[1:], 1) if one.name in CARRIERS), len(layers))
    return any(one.name == "fragment" and (one["more"] or one["offset"]) for one in layers[1:own])
