"""A DNS question, and whether the answer is the expected one (RFC 1035). Resolves nothing for anybody else."""

import struct
from ipaddress import ip_address
from itertools import count

from healthcheck.exchange import Reason, Result, failed
from healthcheck.health import Outcome

RECORDS = {
    "A": 1,
    "NS": 2,
    "CNAME": 5,
    "SOA": 6,
    "PTR": 12,
    "MX": 15,
    "TXT": 16,
    "AAAA": 28,
    "SRV": 33,
}
ADDRESSES = {"A": 4, "AAAA": 6}

_HEADER = struct.Struct("!HHHHHH")
_RECORD = struct.Struct("!HHIH")
_ANSWER, _WANTED, _CODE = 0x8000, 0x0100, 0x000F
_CODES = {1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}
_POINTER = 0xC0
_numbers = count(1)


def question(name: str, record: str) -> bytes:
    labels = [label.encode("ascii") for label in name.rstrip(".").split(".") if label]
    encoded = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    return encoded + struct.pack("!HH", RECORDS[record], 1)


class Dns:
    """A question and its answer. Datagrams that are no answer to it are passed over."""

    __slots__ = ("_expected", "_number", "_question", "_record", "request")

    def __init__(self, question_: bytes, record: str, expected: str = "") -> None:
        self._number = next(_numbers) & 0xFFFF
        self._question = question_
        self._record = RECORDS[record]
        self._expected = ip_address(expected).packed if expected else b""
        self.request = _HEADER.pack(self._number, _WANTED, 1, 0, 0, 0) + question_

    def receive(self, data: bytes) -> Result | None:
        if len(data) < _HEADER.size:
            return failed(Reason.BAD_ANSWER, f"{len(data)} bytes are no DNS message")
        number, flags, questions, answers, _, _ = _HEADER.unpack_from(data)
        if number != self._number or not flags & _ANSWER:
            return None  # somebody's, not ours
        if code := flags & _CODE:
            return failed(Reason.WRONG_ANSWER, _CODES.get(code, f"code {code}"))
        try:
            found = self._found(data, questions, answers)
        except (IndexError, struct.error):
            return failed(Reason.BAD_ANSWER, "the message ends inside a record")
        return self._judge(found)

    def overdue(self) -> Result:
        return failed(Reason.ANSWER_TIMEOUT, "no answer to the question")

    def again(self) -> bool:
        return False

    def _judge(self, found: list[bytes]) -> Result:
        if not found:
            return failed(Reason.WRONG_ANSWER, "no record of that kind")
        if self._expected and self._expected not in found:
            wanted = ip_address(self._expected)
            return failed(Reason.WRONG_ANSWER, f"{wanted} is not among {len(found)} addresses")
        return Result(Outcome.PASS, Reason.ANSWERED, f"{len(found)} records")

    def _found(self, data: bytes, questions: int, answers: int) -> list[bytes]:
        at = _HEADER.size
        for _ in range(questions):
            at = _after_name(data, at) + 4
        found = []
        for _ in range(answers):
            at = _after_name(data, at)
            kind, _, _, length = _RECORD.unpack_from(data, at)
            at += _RECORD.size + length
            if at > len(data):
                raise IndexError
            if kind == self._record:
                found.append(data[at - length : at])
        return found


def _after_name(data: bytes, at: int) -> int:
    while length := data[at]:
        if length & _POINTER:
            return at + 2
        at += length + 1
    return at + 1
