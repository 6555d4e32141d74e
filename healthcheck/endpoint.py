"""Where to connect and from where, in the form that the kernel takes. Asks nobody for names."""

import errno
import os
import socket
import sys
from _socket import socket as Socket  # noqa: N812
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv6Address, ip_address
from pathlib import Path

_TCP_OPTIONS = 40  # bytes of a segment that they may take
_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


@dataclass(frozen=True, slots=True)
class Origin:
    """How a probe leaves this machine: empty and 0 mean as routing says."""

    source: str = ""
    interface: str = ""
    mark: int = 0
    segment: int = 0  # bytes that one TCP segment carries at most, either way


ANY = Origin()
UNMARKED = "marking packets needs CAP_NET_ADMIN (or CAP_NET_RAW, from Linux 5.17 on)"


@dataclass(frozen=True, slots=True)
class Endpoint:
    family: int
    sockaddr: tuple[str, int] | tuple[str, int, int, int]
    may_be_ourselves: bool  # a port of ours could connect to itself, where nothing listens
    origin: Origin = ANY
    plain: bool = True  # no option is set: any socket will do
    piece: int | None = None  # bytes to send in one go, so that each leaves in a packet of its own

    def prepare(self, sock: Socket) -> None:
        """OSError where this machine has no such address or interface, or does not let us."""
        if self.plain:
            return
        origin = self.origin
        if origin.interface:
            device = origin.interface.encode()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
            if len(self.sockaddr) == 4 and not self.sockaddr[3]:  # noqa: PLR2004 - IPv6
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        if origin.mark:
            _mark(sock, origin.mark)
        if origin.segment and sock.type == socket.SOCK_STREAM:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, origin.segment)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if origin.source:
            sock.bind((origin.source, 0))


def _mark(sock: Socket, mark: int) -> None:
    try:
        # As bytes: as a number it would have to be below 2^31.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark.to_bytes(4, sys.byteorder))
    except PermissionError:
        raise PermissionError(errno.EPERM, UNMARKED) from None


def endpoint(address: str, port: int, origin: Origin = ANY) -> Endpoint:
    parsed = ip_address(address)
    plain_text = address if address == str(parsed) else str(parsed)  # one string for both
    risky = port >= lowest_own_port()
    plain = origin == ANY
    piece = origin.segment - _TCP_OPTIONS if origin.segment else None
    if isinstance(parsed, IPv6Address):
        where = (plain_text, port, 0, _scope(origin.interface))
        return Endpoint(socket.AF_INET6, where, risky, origin, plain, piece)
    return Endpoint(socket.AF_INET, (plain_text, port), risky, origin, plain, piece)


def _scope(interface: str) -> int:
    """0: there is no such interface, or none is needed."""
    try:
        return socket.if_nametoindex(interface) if interface else 0
    except OSError:
        return 0


@cache
def lowest_own_port() -> int:
    try:
        return int(_PORTS.read_text("ascii").split()[0])
    except OSError:
        return 1  # not known: take every port for one
