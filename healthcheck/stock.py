"""Sockets that have been used and can be used again: a third of what a check costs is making and closing one.

A connected socket that is told to connect to no family at all (connect(2), AF_UNSPEC) resets its connection
and is as new, still in the epoll set. Whatever goes wrong on the way, the socket is closed instead.
"""

import ctypes
import socket
import struct
from _socket import socket as Socket  # noqa: N812

LIMIT = 4096

_NOWHERE = struct.pack("H14x", socket.AF_UNSPEC)
_libc = ctypes.CDLL(None, use_errno=False)
_connect = _libc.connect
_connect.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)


class Stock:
    """Without `keep`, nothing is kept and every probe makes its own socket."""

    __slots__ = ("_by_family", "_keep")

    def __init__(self, *, keep: bool = True) -> None:
        self._keep = keep
        self._by_family: dict[int, list[Socket]] = {socket.AF_INET: [], socket.AF_INET6: []}

    def of(self, family: int) -> list[Socket]:
        """What there is to take from, last in, first out."""
        return self._by_family[family]

    def put(self, sock: Socket) -> None:
        kept = self._by_family[sock.family]
        if not self._keep or len(kept) >= LIMIT or _connect(sock.fileno(), _NOWHERE, 16):
            sock.close()
        else:
            kept.append(sock)

    def close(self) -> None:
        for kept in self._by_family.values():
            while kept:
                kept.pop().close()
