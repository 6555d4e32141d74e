"""HTTP/1 as far as a verdict needs it: one request, and the answer to it. Follows no redirect.

Without a look at the body the verdict falls at the end of the headers. A body is read only to find something in it,
or to be able to ask again over the same connection; never beyond the window.
"""

import re
from dataclasses import dataclass
from functools import cache, lru_cache

from healthcheck.exchange import WINDOW, Reason, Result, excerpt, failed
from healthcheck.health import Outcome

Spans = tuple[tuple[int, int], ...]
Pairs = tuple[tuple[str, str], ...]

_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] ([1-5][0-9]{2})(?: [^\r\n]*)?\r?\n")
_LENGTH = re.compile(rb"\ncontent-length[ \t]*:[ \t]*([0-9]{1,9})[ \t]*\r?\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\ntransfer-encoding[ \t]*:[^\r\n]*chunked[ \t]*\r?\n", re.IGNORECASE)
_LAST_ONE = re.compile(rb"\nconnection[ \t]*:[^\r\n]*close|^HTTP/1\.0", re.IGNORECASE)
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?\r\n")
_PROTOCOL = b"HTTP/1."
_BODILESS = (204, 304)
_REMEMBERED = 256
_PASS = Outcome.PASS


@dataclass(frozen=True, slots=True)
class Expected:
    """What makes an answer a good one."""

    status: Spans = ((200, 399),)
    out: Spans = ()  # statuses by which a backend asks not to be used
    headers: Pairs = ()  # name, and what its value has to contain
    body: bytes = b""  # what the body has to contain


GOOD = Expected()


class Asking:
    """A request, and what makes its answer a good one. Called, it begins one exchange."""

    __slots__ = ("expected", "keep", "known", "request")

    def __init__(self, request: bytes, expected: Expected = GOOD, *, keep: bool = False) -> None:
        self.request = request
        self.expected = expected
        self.keep = keep
        # Good answers in one piece, by what they were: targets that are asked alike answer alike.
        self.known = _known(expected, keep, request.startswith(b"HEAD "))

    def __call__(self) -> "Http":
        return Http(self)


class Http:
    """One request and its answer."""

    __slots__ = ("_asking", "_body", "_head", "_reusable", "request")

    def __init__(self, asking: Asking) -> None:
        self.request = asking.request
        self._asking = asking
        self._reusable = False
        self._head = b""
        self._body: Body | None = None

    def receive(self, data: bytes) -> Result | None:
        if self._head or self._body:
            return self._receive(data)
        known = self._asking.known
        if (result := known.get(data)) is not None:
            self._reusable = self._asking.keep
            return result
        result = self._receive(data)
        if result and result.outcome is _PASS and self._reusable is self._asking.keep:
            if len(known) >= _REMEMBERED:
                known.clear()
            known[data] = result
        return result

    def _receive(self, data: bytes) -> Result | None:
        if self._body:
            return self._read(self._body, data)
        if not data:
            return failed(Reason.CLOSED_EARLY, self._progress())
        searched = max(len(self._head) - 3, 0)
        self._head = self._head + data if self._head else data
        if self._head[: len(_PROTOCOL)] != _PROTOCOL[: len(self._head)]:
            return failed(Reason.BAD_ANSWER, f"not HTTP/1: {excerpt(self._head)}")
        while end := _END_OF_HEAD.search(self._head, searched):
            if end.end() > WINDOW:
                break
            final = self._judge(end.end())
            if final is None or isinstance(final, Result):
                return final
            self._head, searched = self._head[end.end() :], 0  # the final answer is still to come
        if len(self._head) > WINDOW:
            return failed(Reason.TOO_LARGE, f"headers go on after {WINDOW} bytes")
        return None

    def overdue(self) -> Result:
        return failed(Reason.ANSWER_TIMEOUT, self._progress())

    def again(self) -> bool:
        if not self._reusable:
            return False
        self.request, self._head, self._body = self._asking.request, b"", None
        self._reusable = False
        return True

    def _progress(self) -> str:
        if self._body:
            return f"body incomplete after {len(self._body.raw)} bytes"
        if not self._head:
            return "no answer to the request"
        return f"headers incomplete after {len(self._head)} bytes"

    def _judge(self, end: int) -> "Result | bool | None":
        """On a complete head: a result, None while the body decides, True for an interim answer (1xx)."""
        text, expected = self._head[:end], self._asking.expected
        head = understood(text)
        if not head:
            return failed(Reason.BAD_ANSWER, f"no status line: {excerpt(self._head)}")
        status = head.status
        if not _within(status, expected.status):
            return True if status // 100 == 1 else self._wrong(status)
        if expected.headers and (missing := self._missing(text)):
            return failed(Reason.WRONG_HEADER, missing)
        if not (expected.body or self._asking.keep):
            return passed(status)
        bodiless = status in _BODILESS or self._asking.request.startswith(b"HEAD ")
        if not expected.body and (0 if bodiless else head.length) == len(self._head) - end:
            self._reusable = head.stays_open
            return passed(status)
        self._body = Body(head, b"", bodiless=bodiless)
        return self._read(self._body, self._head[end:], more=True)

    def _wrong(self, status: int) -> Result:
        if _within(status, self._asking.expected.out):
            return Result(
                Outcome.OUT, Reason.WRONG_STATUS, f"status {status}: wants to be left out"
            )
        expected = ranges(self._asking.expected.status)
        return failed(Reason.WRONG_STATUS, f"status {status}, expected {expected}")

    def _missing(self, head: bytes) -> str:
        fields = _fields(head)
        for name, part in self._asking.expected.headers:
            if not any(part in value for value in fields.get(name.lower(), ())):
                return f"{name} without {part!r}" if name.lower() in fields else f"no {name}"
        return ""

    def _read(self, body: "Body", data: bytes, *, more: bool = False) -> Result | None:
        ended = not data and not more
        body.raw += data
        text, complete = body.read()
        if text is None:
            return failed(Reason.BAD_ANSWER, f"chunks that are none: {excerpt(body.raw)}")
        found = self._asking.expected.body in text[:WINDOW]
        if found and (complete or not self._asking.keep or ended or len(body.raw) > WINDOW):
            self._reusable = self._asking.keep and complete and not ended and body.leaves_open()
            return passed(body.head.status)
        if complete or (ended and body.ends_with_connection()):
            return failed(Reason.WRONG_BODY, f"without {excerpt(self._asking.expected.body)}")
        if ended:
            return failed(Reason.CLOSED_EARLY, self._progress())
        if len(body.raw) > WINDOW:
            return failed(Reason.TOO_LARGE, f"expected words not in the first {WINDOW} bytes")
        return None


@dataclass(frozen=True, slots=True)
class Head:
    """What a head says about itself and what follows it."""

    status: int
    length: int | None
    chunked: bool
    stays_open: bool


@lru_cache(maxsize=256)
def understood(text: bytes) -> Head | None:
    """None without a status line. Thousands of targets say the same within one second."""
    line = _STATUS_LINE.match(text)
    if not line:
        return None
    length, chunked = _LENGTH.search(text), bool(_CHUNKED.search(text))
    known = int(length[1]) if length and not chunked else None
    return Head(int(line[1]), known, chunked, stays_open=not _LAST_ONE.search(text))


class Body:
    """What follows a head, as it comes: by length, in chunks, or until the connection ends."""

    __slots__ = ("_bodiless", "head", "raw")

    def __init__(self, head: Head, raw: bytes, *, bodiless: bool) -> None:
        self._bodiless = bodiless
        self.head = head
        self.raw = raw

    def read(self) -> tuple[bytes | None, bool]:
        """What there is of it, and whether that is all; None: it contradicts itself."""
        if self._bodiless:
            return b"", True
        if self.head.chunked:
            return _joined(self.raw)
        if (length := self.head.length) is not None:
            return self.raw[:length], len(self.raw) >= length
        return self.raw, False

    def ends_with_connection(self) -> bool:
        return self.head.length is None and not self.head.chunked

    def leaves_open(self) -> bool:
        """Nothing is left over, and the server did not say that this was its last answer."""
        length = 0 if self._bodiless else self.head.length
        return self.head.stays_open and (length is None or len(self.raw) <= length)


def _joined(raw: bytes) -> tuple[bytes | None, bool]:
    """Chunks put together."""
    text, at = b"", 0
    while at < len(raw):
        size = _CHUNK.match(raw, at)
        if not size:
            whole_line = b"\n" in raw[at : at + 80] or len(raw) - at > 80  # noqa: PLR2004
            return (None, False) if whole_line else (text, False)
        start, length = size.end(), int(size[1], 16)
        if not length:
            return text, b"\r\n\r\n" in raw[start - 2 :]
        text += raw[start : start + length]
        if len(raw) >= start + length + 2 and raw[start + length : start + length + 2] != b"\r\n":
            return None, False
        at = start + length + 2
    return text, False


def _fields(head: bytes) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for line in head.decode("latin-1").splitlines()[1:]:
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip().lower(), []).append(value.strip())
    return fields


@cache
def _known(expected: Expected, keep: bool, head: bool) -> dict[bytes, Result]:  # noqa: ARG001 - what tells them apart
    return {}


@cache
def passed(status: int) -> Result:
    return Result(Outcome.PASS, Reason.ANSWERED, f"status {status}")


@lru_cache(maxsize=64)
def request(method: str, path: str, host: str, headers: Pairs = (), *, keep: bool = False) -> bytes:
    """Once per target: building it anew for each probe would cost as much as sending it."""
    plain = {
        "Host": host,
        "User-Agent": "evenkeel-healthcheck",
        "Accept": "*/*",
        "Connection": "keep-alive" if keep else "close",
    }
    given = dict(headers)
    ours = {name.lower() for name in given}
    fields = {name: text for name, text in plain.items() if name.lower() not in ours} | given
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {text}" for name, text in fields.items())]
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1")


@cache
def _within(status: int, spans: Spans) -> bool:
    return any(low <= status <= high for low, high in spans)


def ranges(spans: Spans) -> str:
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)
