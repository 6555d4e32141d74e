"""What the reconciler wants probed, as values. Reads a file; guesses nothing that the file does not say.

The file is written by a program for a program (schemas/targets.schema.json): whatever does not fit is refused
whole, and the message says where. Field names that are not known are refused too, because a check that is
half understood is a check that lies.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar

from healthcheck.exchange import HttpGet, get
from healthcheck.health import Thresholds
from healthcheck.probes import Probe, begin, endpoint

T = TypeVar("T")

FORMAT_MAJOR = 1


class TargetsError(Exception):
    """The file cannot be used: what, where and what to do."""


@dataclass(frozen=True, slots=True)
class Http:
    """What an http check asks for and takes for a good answer."""

    path: str = "/"
    host: str = ""  # empty: address and port
    expect: tuple[tuple[int, int], ...] = ((200, 399),)


@dataclass(frozen=True, slots=True)
class Check:
    """How to probe. Two checks are equal when they probe alike: what they are called does not matter."""

    name: str = field(compare=False)
    type: str
    every: float
    timeout: float
    thresholds: Thresholds
    http: Http = Http()


@dataclass(frozen=True, slots=True)
class Subject:
    """What is probed. Backends that share it are probed once."""

    address: str
    port: int
    check: Check

    def __str__(self) -> str:
        return (
            f"[{self.address}]:{self.port}"
            if ":" in self.address
            else f"{self.address}:{self.port}"
        )

    def identity(self) -> str:
        """The same in every process: when it is probed depends on it."""
        return f"{self} {self.check.type} {self.check.http.host} {self.check.http.path}"

    def probe(self) -> Probe:
        where = endpoint(self.address, self.port)
        if self.check.type == "tcp":
            return lambda: begin(where)
        http = self.check.http
        request = get(http.path, http.host or str(self))
        return lambda: begin(where, HttpGet(request, http.expect))


@dataclass(frozen=True, slots=True)
class Backend:
    id: int
    name: str  # pool/backend
    subject: Subject


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
    except (OSError, UnicodeDecodeError) as error:
        raise TargetsError(f"{path}: cannot read: {error}") from error
    try:
        return parse(json.loads(text))
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
        backends=tuple(
            _backend(entry, f"backends[{number}]")
            for number, entry in enumerate(top.take("backends", list))
        ),
    )
    top.nothing_left()
    seen = Counter(backend.id for backend in targets.backends)
    if twice := [id_ for id_, times in seen.items() if times > 1]:
        raise TargetsError(f"backends: id {twice[0]} occurs more than once")
    return targets


def _backend(entry: object, where: str) -> Backend:
    fields = _Fields(entry, where)
    backend = Backend(
        id=fields.take("id", int, lambda value: 0 < value < 1 << 32),
        name=fields.take("name", str, bool),
        subject=Subject(
            address=fields.take("address", str, _is_address),
            port=fields.take("port", int, lambda value: 0 < value < 1 << 16),
            check=_check(fields.take("check", dict), f"{where}.check"),
        ),
    )
    fields.nothing_left()
    return backend


def _check(entry: object, where: str) -> Check:
    fields = _Fields(entry, where)
    kind = fields.take("type", str, lambda value: value in {"tcp", "http"})
    http = _http(fields)
    check = Check(
        name=fields.take("name", str),
        type=kind,
        every=fields.take_seconds("every"),
        timeout=fields.take_seconds("timeout"),
        thresholds=Thresholds(
            rise=fields.take("rise", int, lambda value: value > 0),
            fall=fields.take("fall", int, lambda value: value > 0),
        ),
        http=http if kind == "http" else Http(),  # to a tcp check they mean nothing
    )
    fields.nothing_left()
    return check


def _http(fields: "_Fields") -> Http:
    plain = Http()
    return Http(
        path=fields.take_or("path", plain.path, str, _is_path),
        host=fields.take_or("host", plain.host, str, _sendable),
        expect=tuple(
            (low, high)
            for low, high in fields.take_or("expect", list(plain.expect), list, _are_ranges)
        ),
    )


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


def _are_ranges(value: list[object]) -> bool:
    return bool(value) and all(
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
        self._where = where

    def take(self, name: str, kind: type[T], fits: Callable[[T], bool] = lambda _: True) -> T:
        if name not in self._fields:
            raise TargetsError(f"{self._where}: {name} is missing")
        value = self._fields.pop(name)
        # bool is an int in Python, not in JSON.
        if not isinstance(value, kind) or isinstance(value, bool) or not fits(value):
            raise TargetsError(f"{self._where}: {name} cannot be {_shown(value)}")
        return value

    def take_or(
        self, name: str, default: T, kind: type[T], fits: Callable[[T], bool] = lambda _: True
    ) -> T:
        return self.take(name, kind, fits) if name in self._fields else default

    def take_seconds(self, name: str) -> float:
        if isinstance(self._fields.get(name), int):
            return float(self.take(name, int, lambda value: value > 0))
        return self.take(name, float, lambda value: 0 < value < float("inf"))

    def nothing_left(self) -> None:
        if self._fields:
            unknown = ", ".join(sorted(map(str, self._fields)))
            raise TargetsError(f"{self._where}: {unknown}: not known to this release")


def _shown(value: object) -> str:
    return json.dumps(value)[:60]
