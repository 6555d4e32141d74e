"""What is sent, as a value: one template, and how flows differ from it. Sends nothing."""

import ctypes
import struct
from ctypes import c_uint32, c_uint64
from dataclasses import dataclass
from ipaddress import IPv4Address

from tests.support.frames import eth, ipv4, tcp, udp

LENGTH = 60
FIRST_PORT = 1024  # as in rate.bpf.c
SOURCE = (
    "10.9.0.0"  # the first of a stream's source addresses: routed to nobody, answered by nobody
)
IP, L4 = 14, 34
CHECK = {"udp": L4 + 6, "tcp": L4 + 16}


class Raw(ctypes.Structure):
    """struct stream."""

    _fields_ = (
        ("frame", ctypes.c_uint8 * LENGTH),
        ("flows", c_uint32),
        ("state", c_uint32),
        ("saddr", c_uint32),
        ("dport", c_uint32),
        ("dports", c_uint32),
        ("ip_sum", c_uint32),
        ("l4_sum", c_uint32),
        ("l4_check", c_uint32),
        ("ifindex", c_uint32),
        ("padding", c_uint32 * 8),
    )


@dataclass(frozen=True, slots=True)
class Stream:
    """Frames of 60 bytes, without the four of Ethernet's checksum, of so many flows."""

    protocol: str  # udp; tcp: bare SYNs
    flows: int

    def __str__(self) -> str:
        return f"{'TCP SYN' if self.protocol == 'tcp' else 'UDP'}, {self.flows:,} flows"


@dataclass(frozen=True, slots=True)
class Towards:
    """Where a stream goes: the address that it names, and the interface that it comes in by."""

    address: str
    mac: bytes
    port: int = 80
    ports: int = 4  # so many in a row, a power of two


def template(stream: Stream, towards: Towards) -> bytes:
    """The frame of the first flow."""
    segment = (
        udp(FIRST_PORT, towards.port, bytes(18))
        if stream.protocol == "udp"
        else tcp(FIRST_PORT, towards.port, "S", ack=0)
    )
    whole = eth(ipv4(SOURCE, towards.address, segment), dst=towards.mac.hex(":"))
    return whole.ljust(LENGTH, b"\0")


def raw(stream: Stream, towards: Towards, ifindex: int, start: int) -> Raw:
    """As the generator takes it; `start` is where in the sequence of flows it begins."""
    frame = template(stream, towards)
    check = CHECK[stream.protocol]
    return Raw(
        frame=(ctypes.c_uint8 * LENGTH).from_buffer_copy(frame),
        flows=stream.flows,
        state=start & 0xFFFFFFFF,
        saddr=int(IPv4Address(SOURCE)),
        dport=towards.port,
        dports=towards.ports,
        ip_sum=words(blanked(frame, (24, 2), (26, 4))[IP:L4]),
        l4_sum=words(covered(blanked(frame, (26, 4), (L4, 4), (check, 2)))),
        l4_check=check,
        ifindex=ifindex,
    )


def covered(frame: bytes) -> bytes:
    """What the checksum of the segment is over: some of the IP header, and all of the segment."""
    length = struct.unpack_from("!H", frame, 16)[0] - 20
    return frame[26:34] + struct.pack("!BBH", 0, frame[23], length) + frame[L4 : L4 + length]


def blanked(frame: bytes, *parts: tuple[int, int]) -> bytes:
    """Without what differs from flow to flow."""
    blank = bytearray(frame)
    for at, size in parts:
        blank[at : at + size] = bytes(size)
    return bytes(blank)


def words(data: bytes) -> int:
    """16-bit words as they lie in memory, added up."""
    return sum(struct.unpack(f"={len(data) // 2}H", data))


class Arrived(ctypes.Structure):
    """struct arrived."""

    packets: list[int]
    kept: list[int]
    _fields_ = (("packets", c_uint64 * 3), ("kept", ctypes.c_uint8 * 80))


class NextHop(ctypes.Structure):
    """struct next_hop."""

    _fields_ = (("macs", ctypes.c_uint8 * 12), ("ifindex", c_uint32))
