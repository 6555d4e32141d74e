"""Where to connect and from where, in the form that the kernel takes. Asks nobody for names."""

import errno
import os
import socket
from _socket import socket as Socket  # noqa: N812
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv6Address, ip_address
from pathlib import Path

_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


@dataclass(frozen=True, slots=True)
class Origin:
    """How a probe leaves this machine: empty and 0 mean as routing says."""

    source: str = ""
    interface: str = ""
    mark: int = 0


ANY = Origin()


@dataclass(frozen=True, slots=True)
class Endpoint:
    family: int
    sockaddr: tuple[str, int] | tuple[str, int, int, int]
    may_be_ourselves: bool  # a port of ours could connect to itself, where nothing listens
    origin: Origin = ANY
    plain: bool = True  # no option is set: any socket will do

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
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, origin.mark)
        if origin.source:
            sock.bind((origin.source, 0))


def endpoint(address: str, port: int, origin: Origin = ANY) -> Endpoint:
    parsed = ip_address(address)
    plain_text = address if address == str(parsed) else str(parsed)  # one string for both
    risky = port >= lowest_own_port()
    plain = origin == ANY
    if isinstance(parsed, IPv6Address):
        where = (plain_text, port, 0, _scope(origin.interface))
        return Endpoint(socket.AF_INET6, where, risky, origin, plain)
    return Endpoint(socket.AF_INET, (plain_text, port), risky, origin, plain)


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
