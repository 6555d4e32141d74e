"""Whether the link that packets to a target leave by is up: asked of the kernel, and only after a failure.

Silence behind a dead link of ours says nothing about a backend. What cannot be found out counts as up: then the
failure stands, as it would without this.
"""

import contextlib
import socket
import struct
import time
from collections.abc import Iterator

from healthcheck.endpoint import Endpoint

BRIEF = 0.05  # seconds that a link is taken to be as it was: thousands of probes fail together when one is lost
_PATIENCE = 0.2  # seconds for the kernel to answer, which it does while it is asked

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, destination bits, source bits, ..., flags
_LINK = struct.Struct("=BxHiII")  # family, type, index, flags, change
_ATTRIBUTE = struct.Struct("=HH")
_NUMBER = struct.Struct("=I")
_REQUEST = 1
_NEW_LINK, _GET_LINK, _NEW_ROUTE, _GET_ROUTE = 16, 18, 24, 26
_TO, _FROM, _OUT, _MARK = 1, 2, 4, 16  # RTA_*
_UP, _LOWER_UP = 1, 1 << 16  # IFF_*: by the operator, and carrier


def lost(where: Endpoint) -> str:
    """What is wrong with the link towards a target; empty: nothing that is known."""
    with contextlib.suppress(OSError, struct.error):
        index = _way_out(where)
        return _link(index) if index else ""
    return ""


_known: dict[int, tuple[float, str]] = {}  # by index: when it was looked at, and what was wrong


def _link(index: int) -> str:
    now = time.monotonic()
    at, wrong = _known.get(index, (now - 2 * BRIEF, ""))
    if now - at > BRIEF:
        wrong = _look(index)
        _known[index] = now, wrong
    return wrong


def _look(index: int) -> str:
    answer = _ask(_GET_LINK, _NEW_LINK, _LINK.pack(0, 0, index, 0, 0))
    if answer is None:
        return ""
    *_, flags, _ = _LINK.unpack_from(answer)
    if flags & _UP and flags & _LOWER_UP:
        return ""
    return f"{socket.if_indextoname(index)} {'has no carrier' if flags & _UP else 'is down'}"


def _way_out(where: Endpoint) -> int:
    """The index of the interface that routing chooses; 0: not known."""
    to = _packed(where.family, where.sockaddr[0])
    body = _attribute(_TO, to)
    origin, bits = where.origin, 0
    if origin.source:
        source = _packed(where.family, origin.source)
        body += _attribute(_FROM, source)
        bits = 8 * len(source)
    if origin.interface:
        body += _attribute(_OUT, _NUMBER.pack(socket.if_nametoindex(origin.interface)))
    if origin.mark:
        body += _attribute(_MARK, _NUMBER.pack(origin.mark))
    route = _ROUTE.pack(where.family, 8 * len(to), bits, 0, 0, 0, 0, 0, 0)
    answer = _ask(_GET_ROUTE, _NEW_ROUTE, route + body)
    if answer is None:
        return 0
    found = dict(_attributes(answer[_ROUTE.size :]))
    return int(_NUMBER.unpack(found[_OUT])[0]) if _OUT in found else 0


def _ask(kind: int, wanted: int, body: bytes) -> bytes | None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.settimeout(_PATIENCE)
        sock.sendto(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST, 1, 0) + body, (0, 0))
        answer = sock.recv(1 << 16)
    length, found, *_ = _HEADER.unpack_from(answer)
    return answer[_HEADER.size : length] if found == wanted else None


def _packed(family: int, address: str) -> bytes:
    return socket.inet_pton(family, address.partition("%")[0])


def _attribute(kind: int, value: bytes) -> bytes:
    return (
        _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value
    )  # all of them are whole words


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            return
        yield kind, data[_ATTRIBUTE.size : length]
        data = data[length + 3 & ~3 :]
