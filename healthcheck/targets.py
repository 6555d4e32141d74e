"""What the reconciler wants probed, as values. Reads a file; guesses nothing that the file does not say.

The file is written by a program for a program (schemas/targets.schema.json): whatever does not fit is refused
whole, and the message says where. Field names that are not known are refused too, because a check that is
half understood is a check that lies.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

from bpf.errors import plainly
from healthcheck.definition import (
    BY_THE_SYSTEM,
    NO_LINE,
    PLAIN_HTTP,
    ROOT,
    Check,
    Http,
    Line,
    Pacing,
    Question,
    Secure,
    Subject,
    Way,
)
from healthcheck.dns import ADDRESSES, RECORDS
from healthcheck.endpoint import Origin
from healthcheck.health import Thresholds
from healthcheck.schedule import JITTER
from healthcheck.tls import Trust
from healthcheck.web import Expected, Spans

T = TypeVar("T")

NOT_THERE = "not there; the reconciler publishes it when it runs"
FORMAT_MAJOR = 1
KINDS = {"tcp", "http", "https", "udp", "dns", "icmp"}


class TargetsError(Exception):
    """The file cannot be used: what, where and what to do."""


@dataclass(frozen=True, slots=True)
class Backend:
    id: int
    name: str  # pool/backend
    subject: Subject
    assumed_up: bool = False  # used until its first result

    @property
    def pool(self) -> str:
        return self.name.rpartition("/")[0]


@dataclass(frozen=True, slots=True)
class Targets:
    instance: str
    health_map: Path
    backends: tuple[Backend, ...]


Signature = tuple[int, int, int]


def signature(path: Path) -> Signature | None:
    """Changes whenever another file is renamed to this path; None if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def read(path: Path) -> Targets:
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise TargetsError(f"{path}: {NOT_THERE}") from None
    except OSError as error:
        raise TargetsError(plainly(error)) from error
    except UnicodeDecodeError as error:
        raise TargetsError(f"{path}: not JSON: byte {error.start} is no text") from error
    try:
        return parse(json.loads(text, object_hook=_Shared().one))
    except json.JSONDecodeError as error:
        raise TargetsError(f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from error
    except TargetsError as error:
        raise TargetsError(f"{path}: {error}") from error


def parse(document: object) -> Targets:
    top = _Fields(document, "the document")
    version = top.take("format_version", str)
    if version.partition(".")[0] != str(FORMAT_MAJOR):
        raise TargetsError(
            f"format_version is {version}; this program reads {FORMAT_MAJOR}.x: "
            "run the reconciler and healthcheck of one release"
        )
    targets = Targets(
        instance=top.take("instance", str),
        health_map=Path(top.take("health_map", str)),
        backends=_backends(top.take("backends", list)),
    )
    top.nothing_left()
    seen = Counter(backend.id for backend in targets.backends)
    if twice := [id_ for id_, times in seen.items() if times > 1]:
        raise TargetsError(f"backends: id {twice[0]} occurs more than once")
    return targets


class _Shared:
    """Thousands of backends have a handful of checks: equal ones become one as they are read."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[str, Any]] = {}
        self._ports: dict[int, int] = {}

    def one(self, read: dict[str, Any]) -> dict[str, Any]:
        if "every" in read:
            return self._seen.setdefault(repr(read), read)
        if isinstance(port := read.get("port"), int):  # one number object for all of them
            read["port"] = self._ports.setdefault(port, port)
        return read


def _backends(entries: list[object]) -> tuple[Backend, ...]:
    checks: dict[int, Check] = {}

    def check(entry: object, where: str) -> Check:
        if id(entry) not in checks:
            checks[id(entry)] = _check(entry, where)
        return checks[id(entry)]

    return tuple(_backend(entry, f"backends[{n}]", check) for n, entry in enumerate(entries))


def _backend(entry: object, where: str, check: Callable[[object, str], Check]) -> Backend:
    fields = _Fields(entry, where)
    backend = Backend(
        id=fields.take("id", int, lambda value: 0 < value < 1 << 32),
        name=fields.take("name", str, bool),
        subject=Subject(
            address=fields.take("address", str, _is_address),
            port=fields.take("port", int, lambda value: 0 <= value < 1 << 16),
            check=check(fields.take("check", dict), f"{where}.check"),
            via=_ways(fields.take_or("via", [], list), f"{where}.via"),
        ),
        assumed_up=fields.flag("assumed_up", default=False),
    )
    if not backend.subject.port and backend.subject.check.type != "icmp":
        raise TargetsError(f"{where}: port cannot be 0")
    fields.nothing_left()
    return backend


def _ways(entries: list[object], where: str) -> tuple[Way, ...]:
    return tuple(_way(_Fields(entry, f"{where}[{n}]")) for n, entry in enumerate(entries))


def _way(fields: "_Fields") -> Way:
    way = Way(
        service=fields.take("service", str),
        address=fields.take("address", str, _is_address),
        port=fields.take("port", int, lambda value: 0 < value < 1 << 16),
        mark=fields.take("mark", int, lambda value: 0 <= value < 1 << 32),
    )
    fields.nothing_left()
    return way


def _check(entry: object, where: str) -> Check:
    fields = _Fields(entry, where)
    kind = fields.take("type", str, KINDS.__contains__)
    http, line, question, secure = _http(fields), _line(fields), _question(fields), _secure(fields)
    check = Check(
        name=fields.take("name", str),
        type=kind,
        pacing=_pacing(fields),
        timeout=fields.take_seconds("timeout"),
        thresholds=Thresholds(
            rise=fields.take("rise", int, lambda value: value > 0),
            fall=fields.take("fall", int, lambda value: value > 0),
            settle=fields.take_or("settle", 0, int, lambda value: value >= 0),
        ),
        ramp=fields.take_seconds("slow_start", 0.0),
        origin=_origin(fields),
        # What a check does not use makes no difference to it.
        http=http if kind in {"http", "https"} else PLAIN_HTTP,
        line=line if kind in {"tcp", "udp"} else NO_LINE,
        question=question if kind == "dns" else ROOT,
        secure=secure if kind == "https" else BY_THE_SYSTEM,
    )
    fields.nothing_left()
    return check


def _pacing(fields: "_Fields") -> Pacing:
    every = fields.take_seconds("every")
    return Pacing(
        every,
        fast=fields.take_seconds("fast", every),
        slow=fields.take_seconds("slow", every),
        jitter=fields.take_or("jitter", JITTER, float, lambda value: 0 <= value <= 0.5),  # noqa: PLR2004 - beats never change places
    )


def _origin(fields: "_Fields") -> Origin:
    plain = Origin()
    return Origin(
        source=fields.take_or("source", plain.source, str, _is_address),
        interface=fields.take_or("interface", plain.interface, str, _is_interface),
        mark=fields.take_or("fwmark", plain.mark, int, lambda value: 0 < value < 1 << 32),
    )


def _http(fields: "_Fields") -> Http:
    plain = Http()
    return Http(
        method=fields.take_or("method", plain.method, str, _is_token),
        path=fields.take_or("path", plain.path, str, _is_path),
        host=fields.take_or("host", plain.host, str, _sendable),
        headers=fields.pairs("headers"),
        expected=Expected(
            status=fields.spans("expect", plain.expected.status),
            out=fields.spans("down_at_once", ()),
            headers=fields.pairs("expect_headers"),
            body=fields.bytes("expect_body"),
        ),
        keep_alive=fields.flag("keep_alive", default=False),
    )


def _line(fields: "_Fields") -> Line:
    return Line(send=fields.bytes("send"), receive=fields.bytes("receive"))


def _question(fields: "_Fields") -> Question:
    plain = Question()
    question = Question(
        name=fields.take_or("query", plain.name, str, _is_domain),
        record=fields.take_or("record", plain.record, str, RECORDS.__contains__),
        answer=fields.take_or("answer", plain.answer, str, _is_address),
    )
    if question.answer and ADDRESSES.get(question.record) != ip_address(question.answer).version:
        raise TargetsError(f"{fields.where}: answer is no address of an {question.record} record")
    return question


def _secure(fields: "_Fields") -> Secure:
    plain = Secure()
    return Secure(
        name=fields.take_or("server_name", plain.name, str, _sendable),
        trust=Trust(
            verify=fields.flag("verify", default=True),
            ca=fields.take_or("ca", "", str, lambda value: value.startswith("/")),
            alpn=fields.names("alpn"),
        ),
        warning=fields.take_seconds("expiry_warning", plain.warning),
    )


def _is_interface(value: str) -> bool:
    return 0 < len(value.encode()) < 16 and _sendable(value) and "/" not in value  # noqa: PLR2004 - IFNAMSIZ


def _is_domain(value: str) -> bool:
    labels = value.rstrip(".").split(".")
    return value == "." or (_sendable(value) and all(0 < len(label) < 64 for label in labels))  # noqa: PLR2004 - RFC 1035


def _is_latin(value: str) -> bool:
    return all(ord(character) <= 0xFF for character in value)  # noqa: PLR2004


def _is_token(value: str) -> bool:
    return value.isascii() and value.replace("-", "").isalnum()


def _are_names(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(name, str) and _sendable(name) for name in value)


def _is_path(value: str) -> bool:
    return value.startswith("/") and _sendable(value)


def _is_address(value: str) -> bool:
    try:
        ip_address(value)
    except ValueError:
        return False
    return "%" not in value  # a zone means something on one node only


def _sendable(value: str) -> bool:
    """Goes into a request line or header as it is: nothing that could end it."""
    return value.isascii() and value.isprintable() and " " not in value


def _are_ranges(value: list[Any]) -> bool:
    return bool(value) and _may_be_ranges(value)


def _may_be_ranges(value: list[Any]) -> bool:
    return all(
        isinstance(pair, list)
        and [type(bound) for bound in pair] == [int, int]
        and 100 <= pair[0] <= pair[1] <= 599  # noqa: PLR2004 - what a status can be
        for pair in value
    )


class _Fields:
    """The fields of one object, each taken once; what is left over nobody understood."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise TargetsError(f"{where}: expected an object, found {_shown(value)}")
        self._fields = dict(value)
        self.where = where

    def take(self, name: str, kind: type[T], fits: Callable[[T], bool] = lambda _: True) -> T:
        if name not in self._fields:
            raise TargetsError(f"{self.where}: {name} is missing")
        value = self._fields.pop(name)
        # bool is an int in Python, not in JSON.
        if not isinstance(value, kind) or isinstance(value, bool) or not fits(value):
            raise TargetsError(f"{self.where}: {name} cannot be {_shown(value)}")
        return value

    def take_or(
        self, name: str, default: T, kind: type[T], fits: Callable[[T], bool] = lambda _: True
    ) -> T:
        return self.take(name, kind, fits) if name in self._fields else default

    def take_seconds(self, name: str, default: float | None = None) -> float:
        if default is not None and name not in self._fields:
            return default
        if isinstance(self._fields.get(name), int):
            return float(self.take(name, int, lambda value: value > 0))
        return self.take(name, float, lambda value: 0 < value < float("inf"))

    def flag(self, name: str, *, default: bool) -> bool:
        value = self._fields.pop(name, default)
        if not isinstance(value, bool):
            raise TargetsError(f"{self.where}: {name} cannot be {_shown(value)}")
        return value

    def bytes(self, name: str) -> bytes:
        """One byte a character: what is above U+00FF is none."""
        return self.take_or(name, "", str, _is_latin).encode("latin-1")

    def names(self, name: str) -> tuple[str, ...]:
        listed: list[str] = self.take_or(name, [], list, _are_names)
        return tuple(listed)

    def spans(self, name: str, default: Spans) -> Spans:
        listed = self.take_or(
            name, [list(span) for span in default], list, _are_ranges if default else _may_be_ranges
        )
        return tuple((low, high) for low, high in listed)

    def pairs(self, name: str) -> tuple[tuple[str, str], ...]:
        """Header fields: nothing in them that could end one."""
        fields = self.take_or(name, {}, dict)
        for field, text in fields.items():
            if not (
                _is_token(field) and isinstance(text, str) and text.isprintable() and text.isascii()
            ):
                raise TargetsError(f"{self.where}: {name} cannot have {_shown({field: text})}")
        return tuple(fields.items())

    def nothing_left(self) -> None:
        if self._fields:
            unknown = ", ".join(sorted(map(str, self._fields)))
            raise TargetsError(f"{self.where}: {unknown}: not known to this release")


def _shown(value: object) -> str:
    return json.dumps(value)[:60]
