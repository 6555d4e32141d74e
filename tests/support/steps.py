"""Steps of a conversation with the data plane, as values, and the frames that they mean.

A step says what to send in terms of what is known by then ("a reply to the third last thing that
went out"), so that a sequence shrinks well. Nothing here draws, and nothing here sends.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Any

from tests.support import frames
from tests.support.scenes import NETS, Net
from tests.support.world import World


@dataclass(frozen=True, slots=True)
class Shape:
    """How a packet looks, whatever it is about."""

    payload: int = 10
    ttl: int = 64
    tos: int = 0
    tags: tuple[tuple[int, int], ...] = ()
    options: int = 0  # bytes of IP options, or extension headers of 8
    df: bool = True
    piece: str = "whole"
    checksum: int | None = None  # None: the right one
    padding: int = 0


@dataclass(frozen=True, slots=True)
class Towards:
    """From a client to a frontend, or to a port near it."""

    service: int
    frontend: int
    client: int
    sport: int
    flags: str
    shape: Shape
    astray: bool = False


@dataclass(frozen=True, slots=True)
class Back:
    """A backend's reply to something that went out."""

    pick: int
    flags: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class Again:
    """A frame that came in before, once more."""

    pick: int


@dataclass(frozen=True, slots=True)
class Complaint:
    """An ICMP error about a frame that went in or out."""

    pick: int
    about_reply: bool  # sent towards the frontend; else about what went to a backend
    kind: int
    by_router: bool
    quoted: int
    shape: Shape


@dataclass(frozen=True, slots=True)
class Ping:
    service: int
    frontend: int
    shape: Shape
    code: int = 0


@dataclass(frozen=True, slots=True)
class Mangled:
    """Another step's frame with headers that lie, bytes that are changed, or cut short."""

    step: Step
    lies: tuple[tuple[str, int], ...] = ()  # which field, and by how much
    changes: tuple[tuple[int, int], ...] = ()  # where, and the new value
    keep: int | None = None


# Fields worth lying in: the header that they are in, offset, size, and what one is worth.
LIES = {
    "version and header length": ("ip", 0, 1, 1),
    "version": ("ip", 0, 1, 16),
    "IPv4 length": ("ip", 2, 2, 1),
    "IPv4 fragment": ("ip", 6, 2, 1),
    "IPv4 flags": ("ip", 6, 2, 0x2000),
    "IPv4 protocol": ("ip", 9, 1, 1),
    "IPv6 length": ("ip", 4, 2, 1),
    "IPv6 next header": ("ip", 6, 1, 1),
    "extension header length": ("ip", 41, 1, 1),
    "fragment header": ("ip", 42, 2, 1),
    "TCP data offset": ("l4", 12, 1, 16),
    "TCP flags": ("l4", 13, 1, 1),
    "UDP length": ("l4", 4, 2, 1),
    "checksum of UDP": ("l4", 6, 2, 1),
    "ICMP type": ("l4", 0, 1, 1),
    "quoted version and header length": ("l4", 8, 1, 1),
    "quoted IPv4 protocol": ("l4", 17, 1, 1),
    "quoted IPv4 fragment": ("l4", 14, 2, 1),
    "quoted IPv4 flags": ("l4", 14, 2, 0x2000),
    "quoted IPv6 next header": ("l4", 14, 1, 1),
    "quoted source": ("l4", 21, 1, 1),
    "source": ("ip", 15, 1, 1),
}


@dataclass(frozen=True, slots=True)
class Raw:
    frame: bytes


@dataclass(frozen=True, slots=True)
class Age:
    """Ticks pass."""

    ticks: int


@dataclass(frozen=True, slots=True)
class Reload:
    """The configuration of a pool's backend changes."""

    pool: int
    backend: int
    change: str
    value: Any


@dataclass(frozen=True, slots=True)
class Evict:
    """Every entry of one kind is gone, as if the LRU had needed the room."""

    store: str


@dataclass(frozen=True, slots=True)
class Tamper:
    """The maps contradict each other, as they may between two writes, or the prefilter is wrong."""

    what: str


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is idle goes."""


Step = (
    Towards
    | Back
    | Again
    | Complaint
    | Ping
    | Mangled
    | Raw
    | Age
    | Reload
    | Evict
    | Tamper
    | Sweep
)

CLIENTS = ("client", "client2", "far", "narrow", "silent", "nowhere", "node")

STORES = ("flows", "returns", "opening", "answering")
TAMPERS = ("service", "frontend", "mark", "prefilter", "hop_epoch", "pool")


def tampered(raw: dict[str, dict[Any, Any]], what: str) -> dict[str, dict[Any, Any]]:
    """Map contents in which the newest service, frontend or pool is not what its id says."""
    gone = {"service": "services", "frontend": "frontends", "pool": "tables"}.get(what)
    if gone and raw[gone]:
        raw[gone].pop(max(raw[gone]))
    elif what == "mark":
        for name in ("frontends4", "frontends6"):
            raw[name] = {key: 0 if value > 1 and not key.port else value
                         for key, value in raw[name].items()}  # fmt: skip
    elif what == "prefilter":
        raw["prefilter"] = dict.fromkeys(range(1 << 16), 13)  # all but TABLE_FIRST
    elif what == "hop_epoch":
        raw["settings"][0].hop_epoch += 1
    return raw


def changed(world: World, step: Reload) -> World:
    """The world after a reload; the same pool object is replaced wherever it is listed."""
    pool = world.pools[step.pool]
    if step.backend >= len(pool.backends):
        return world
    members = list(pool.backends)
    members[step.backend] = replace(members[step.backend], **{step.change: step.value})
    new = replace(pool, backends=tuple(members))
    services = tuple(
        replace(s, pools=tuple(new if p is pool or p == pool else p for p in s.pools))
        for s in world.services
    )
    return replace(world, services=services)


# ---- frames ----


def frontend_of(world: World, service: int, frontend: int) -> tuple[Net, str, int | None, str]:
    shown = world.services[1:]
    chosen = shown[service % len(shown)]
    where, port, protocol = chosen.frontends[frontend % len(chosen.frontends)]
    return NETS[6 if ":" in where else 4], where, port, protocol


def client_address(net: Net, number: int) -> str:
    found = getattr(net, CLIENTS[number])
    return found if isinstance(found, str) else str(found[0])


def towards_frame(world: World, step: Towards) -> bytes:
    net, where, port, protocol = frontend_of(world, step.service, step.frontend)
    dport = 1234 if port is None else port
    dport += step.astray
    source = client_address(net, step.client)
    return built(source, step.sport, where, dport, protocol, step.flags, step.shape)


def built(
    source: str, sport: int, target: str, dport: int, protocol: str, flags: str, shape: Shape
) -> bytes:
    """A frame of TCP or UDP in this shape."""
    payload = bytes(i * 7 & 0xFF for i in range(shape.payload))
    if protocol == "tcp":
        segment = frames.tcp(sport, dport, flags, payload, checksum=shape.checksum)
    else:
        segment = frames.udp(sport, dport, payload, checksum=shape.checksum)
    return shaped(source, target, segment, shape)


def shaped(source: str, target: str, segment: frames.Segment, shape: Shape) -> bytes:
    """Any segment in a frame of this shape."""
    pieces = {"whole": None, "first": (0, 24), "later": (24, 1 << 14)}
    packet = _ip(source, target, segment, shape)
    if piece := pieces[shape.piece]:
        packet = frames.cut(packet, *piece)
    return frames.eth(packet, tags=shape.tags) + bytes(shape.padding)


def _ip(source: str, target: str, segment: frames.Segment, shape: Shape) -> bytes:
    if ":" in target:
        headers = () if shape.piece != "whole" else _extensions(shape.options)
        return frames.ipv6(
            source,
            target,
            segment,
            hop_limit=shape.ttl,
            traffic_class=shape.tos,
            extensions=headers,
        )
    return frames.ipv4(
        source,
        target,
        segment,
        ttl=shape.ttl,
        tos=shape.tos,
        df=shape.df,
        options=b"\x01" * min(shape.options, 40),
    )


def _extensions(size: int) -> tuple[frames.Extension, ...]:
    choices = {
        0: (),
        8: (frames.hop_by_hop(),),
        16: (frames.destination_options(16), frames.fragment()),
        48: (frames.hop_by_hop(), *(frames.routing(),) * 5),
        56: (frames.hop_by_hop(), *(frames.destination_options(),) * 6),
    }
    return choices[size]


def ping_frame(world: World, step: Ping) -> bytes:
    net, where, _, _ = frontend_of(world, step.service, step.frontend)
    payload = bytes(step.shape.payload % 101)
    kind = 8 if net.version == 4 else 128
    segment = frames.icmp(kind, step.code, payload, rest=7 << 16 | 1, version=net.version)
    return shaped(net.client, where, segment, step.shape)


def mangled_frame(frame: bytes, step: Mangled) -> bytes:
    data = bytearray(frame)
    for field, by in step.lies:
        _lie(data, field, by)
    for at, value in step.changes:
        if at < len(data):
            data[at] = value
    return bytes(data[: step.keep]) if step.keep else bytes(data)


def _lie(data: bytearray, name: str, by: int) -> None:
    header, offset, size, unit = LIES[name]
    try:
        found = frames.headers(bytes(data))
    except (IndexError, struct.error):
        return
    at = offset + (found.ip_at if header == "ip" else found.l4_at)
    if at + size <= len(data):
        value = int.from_bytes(data[at : at + size], "big") + by * unit
        data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "big")
