"""ICMP echo: the message and whether a datagram is its reply (RFC 792, RFC 4443). Knows no socket."""

import struct
from itertools import count

from healthcheck.exchange import Reason, Result, failed
from healthcheck.health import Outcome

_HEADER = struct.Struct("!BBHHH")
_REQUEST = {4: 8, 6: 128}
_REPLY = {4: 0, 6: 129}
_IPV4 = 4
_numbers = count(1)
ANSWERED = Result(Outcome.PASS, Reason.ANSWERED)


class Echo:
    """One request. Replies to others, and our own requests where they loop back, are passed over."""

    __slots__ = ("_token", "_version", "request")

    def __init__(self, version: int) -> None:
        number = next(_numbers)
        self._version = version
        self._token = b"evenkeel" + struct.pack("!Q", number)
        plain = _HEADER.pack(_REQUEST[version], 0, 0, 0, number & 0xFFFF) + self._token
        check = checksum(plain) if version == _IPV4 else 0  # the kernel's business over IPv6
        self.request = plain[:2] + struct.pack("!H", check) + plain[4:]

    def receive(self, data: bytes) -> Result | None:
        message = data[(data[0] & 15) * 4 :] if self._has_header(data) else data
        if len(message) < _HEADER.size or message[0] != _REPLY[self._version]:
            return None
        return ANSWERED if message[_HEADER.size :] == self._token else None

    def overdue(self) -> Result:
        return failed(Reason.ANSWER_TIMEOUT, "no echo")

    def again(self) -> bool:
        return False

    def _has_header(self, data: bytes) -> bool:
        """A raw IPv4 socket shows it, a ping socket does not; no echo message begins like one."""
        return self._version == _IPV4 and bool(data) and data[0] >> 4 == _IPV4


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
