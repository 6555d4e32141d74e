"""What is said over a connection, and what the answer means. Knows no socket and no time.

An exchange gets bytes and returns a result as soon as there is one. It reads no further than the verdict needs:
a body is never waited for, and headers have a budget.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from healthcheck.health import Outcome

HEAD_LIMIT = 16384  # bytes; more than any server's own limit on what it accepts

_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] ([1-5][0-9]{2})(?: [^\r\n]*)?\r?\n")
_PROTOCOL = b"HTTP/1."


class Reason(StrEnum):
    """One word for how a probe ended. Operators alert on them: only append."""

    CONNECTED = "connected"
    ANSWERED = "answered"
    REFUSED = "refused"  # nobody listens
    UNREACHABLE = "unreachable"  # the network said so, or nobody answers for the address
    CONNECT_TIMEOUT = "connect-timeout"
    RESET = "reset"  # by the other side, after it was connected
    CLOSED_EARLY = "closed-early"
    ANSWER_TIMEOUT = "answer-timeout"
    WRONG_STATUS = "wrong-status"
    BAD_ANSWER = "bad-answer"  # not the protocol that was asked for
    OWN_TROUBLE = "own-trouble"  # we could not probe


@dataclass(frozen=True, slots=True)
class Result:
    outcome: Outcome
    reason: Reason
    detail: str = ""


def failed(reason: Reason, detail: str) -> Result:
    return Result(Outcome.FAIL, reason, detail)


class Exchange(Protocol):
    """What follows a connection. One exchange serves one probe."""

    request: bytes

    def receive(self, data: bytes) -> Result | None:
        """The result, if it is known now. Empty `data`: the other side will send no more; that is a result."""

    def progress(self) -> str:
        """How far it has come, for whoever runs out of patience."""


class HttpGet:
    """A status in the expected ranges, once the headers are complete. Redirects are answers, not followed."""

    __slots__ = ("_expect", "_head", "request")

    def __init__(self, request: bytes, expect: tuple[tuple[int, int], ...]) -> None:
        self.request = request
        self._expect = expect
        self._head = b""

    def receive(self, data: bytes) -> Result | None:
        if not data:
            return failed(Reason.CLOSED_EARLY, self.progress())
        searched = max(len(self._head) - 3, 0)
        self._head += data
        if self._head[: len(_PROTOCOL)] != _PROTOCOL[: len(self._head)]:
            return failed(Reason.BAD_ANSWER, f"not HTTP/1: {_excerpt(self._head)}")
        while end := _END_OF_HEAD.search(self._head, searched):
            if result := self._judge():
                return result
            self._head, searched = self._head[end.end() :], 0  # the final answer is still to come
        if len(self._head) > HEAD_LIMIT:
            return failed(Reason.BAD_ANSWER, f"headers go on after {HEAD_LIMIT} bytes")
        return None

    def progress(self) -> str:
        if not self._head:
            return "no answer to the request"
        return f"headers incomplete after {len(self._head)} bytes"

    def _judge(self) -> Result | None:
        """The verdict on a complete head; none for an interim answer (1xx)."""
        line = _STATUS_LINE.match(self._head)
        if not line:
            return failed(Reason.BAD_ANSWER, f"no status line: {_excerpt(self._head)}")
        status = int(line[1])
        if any(low <= status <= high for low, high in self._expect):
            return Result(Outcome.PASS, Reason.ANSWERED, f"status {status}")
        if status // 100 == 1:
            return None
        return failed(Reason.WRONG_STATUS, f"status {status}, expected {ranges(self._expect)}")


def get(path: str, host: str) -> bytes:
    """The request, once per target: building it anew for each probe would cost as much as sending it."""
    lines = (
        f"GET {path} HTTP/1.1",
        f"Host: {host}",
        "User-Agent: evenkeel-healthcheck",
        "Accept: */*",
        "Connection: close",
    )
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii")


def ranges(expect: tuple[tuple[int, int], ...]) -> str:
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in expect)


def _excerpt(data: bytes) -> str:
    """The beginning of somebody else's bytes, safe to print."""
    return ascii(data[:40])[1:]
