"""What is said to a backend, and what the answer means. Knows no socket and no time.

An exchange gets bytes and returns a result as soon as there is one. It reads no further than the verdict needs,
and everything that it keeps has a budget.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from healthcheck.health import Outcome

WINDOW = 16384  # bytes of an answer that are looked at; more than any server's own limit on a request's head


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
    WRONG_HEADER = "wrong-header"
    WRONG_BODY = "wrong-body"
    WRONG_ANSWER = "wrong-answer"  # the right protocol, other words than expected
    TOO_LARGE = "too-large"  # no verdict within the bytes that are looked at
    TLS_TIMEOUT = "tls-timeout"
    TLS_PROTOCOL = "tls-protocol"  # no handshake that both sides understand
    TLS_EXPIRED = "tls-expired"  # or not valid yet
    TLS_UNTRUSTED = "tls-untrusted"
    TLS_NAME = "tls-name"  # a certificate for somebody else
    TLS_ALPN = "tls-alpn"  # none of the offered protocols was agreed on


@dataclass(frozen=True, slots=True)
class Result:
    outcome: Outcome
    reason: Reason
    detail: str = ""
    valid_until: float | None = None  # of the certificate that was shown, seconds since the epoch


def failed(reason: Reason, detail: str) -> Result:
    return Result(Outcome.FAIL, reason, detail)


class Exchange(Protocol):
    """What follows a connection. One exchange serves one probe, unless it can be asked again."""

    request: bytes  # to be sent; whoever sends takes it away

    def receive(self, data: bytes) -> Result | None:
        """The result, if it is known now. Empty `data`: the other side will send no more; that is a result."""

    def overdue(self) -> Result:
        """What it means that there is no result by now."""

    def again(self) -> bool:
        """After a pass: be as new, to be asked once more over this connection; False where that cannot be."""


class Words:
    """Bytes to send, bytes to find in what comes back: for protocols of a greeting and a line or two."""

    __slots__ = ("_expected", "_heard", "request")

    def __init__(self, send: bytes, expected: bytes) -> None:
        self.request = send
        self._expected = expected
        self._heard = b""

    def receive(self, data: bytes) -> Result | None:
        if not data:
            reason = Reason.WRONG_ANSWER if self._heard else Reason.CLOSED_EARLY
            return failed(reason, self._progress())
        self._heard += data
        if self._expected in self._heard[:WINDOW]:
            return Result(Outcome.PASS, Reason.ANSWERED)
        if len(self._heard) >= WINDOW:
            return failed(Reason.TOO_LARGE, f"not in the first {WINDOW} bytes")
        return None

    def overdue(self) -> Result:
        reason = Reason.WRONG_ANSWER if self._heard else Reason.ANSWER_TIMEOUT
        return failed(reason, self._progress())

    def again(self) -> bool:
        return False

    def _progress(self) -> str:
        return f"expected words not in {excerpt(self._heard)}" if self._heard else "no answer"


def excerpt(data: bytes) -> str:
    """The beginning of somebody else's bytes, safe to print."""
    return ascii(data[:40])[1:]
