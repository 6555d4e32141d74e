"""What a decoded packet consists of, and the bytes that a header is read from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Value = int | str | tuple[int, ...]


class Malformed(Exception):
    """Bytes that cannot be what their place says, and why."""


class Cut(Exception):
    """The capture holds less of the packet than there was."""


@dataclass(frozen=True, slots=True)
class Option:
    """One of a header's options, by name where it has one."""

    name: str
    value: Value = ""

    def __str__(self) -> str:
        said = self.value
        text = ",".join(map(str, said)) if isinstance(said, tuple) else str(said)
        return f"{self.name} {text}" if text else self.name


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a header; the note is what the number means, or how its check went."""

    name: str
    value: Value | tuple[Option, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Layer:
    name: str
    at: int
    length: int
    fields: tuple[Field, ...]
    quoted: bool = False  # by an ICMP error

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 -- whatever the field holds
        return next(field.value for field in self.fields if field.name == name)

    def note(self, name: str) -> str:
        return next(field.note for field in self.fields if field.name == name)

    def document(self) -> Mapping[str, Any]:
        return {
            "layer": self.name,
            "at": self.at,
            "length": self.length,
            "quoted": self.quoted,
            "fields": {field.name: _plain(field.value) for field in self.fields},
            "notes": {field.name: field.note for field in self.fields if field.note},
        }


def _plain(value: Value | tuple[Option, ...]) -> Any:  # noqa: ANN401
    if not isinstance(value, tuple):
        return value
    return [
        {"name": one.name, "value": _plain(one.value)} if isinstance(one, Option) else one
        for one in value
    ]


@dataclass(frozen=True, slots=True)
class Carrier:
    """The IP header that carries a segment: what its checksum covers, and what of it is here."""

    source: bytes
    target: bytes
    protocol: int
    first_fragment: bool = False
    later_fragment: bool = False

    @property
    def fragment(self) -> bool:
        return self.first_fragment or self.later_fragment


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes from `at` to `end`, as lengths in headers say. A capture, or an error's quote, may hold fewer."""

    frame: bytes
    at: int
    end: int
    quoted: bool = False

    def take(self, count: int, what: str) -> bytes:
        """The first so many."""
        if self.at + count > self.end:
            have = max(0, self.end - self.at)
            if self.quoted:
                raise Cut(f"the quote ends within {what}")
            raise Malformed(f"{what} needs {count} bytes, there are {have}")
        if self.at + count > len(self.frame):
            raise Cut(f"the capture ends within {what}")
        return self.frame[self.at : self.at + count]

    def whole(self) -> bytes | None:
        """All of it; None: not all of it is here."""
        return self.frame[self.at : self.end] if self.end <= len(self.frame) else None

    def after(self, count: int) -> "Span":
        return Span(self.frame, self.at + count, self.end, self.quoted)

    def up_to(self, length: int) -> "Span":
        """Only so many bytes of it."""
        return Span(self.frame, self.at, self.at + length, self.quoted)

    @property
    def length(self) -> int:
        return self.end - self.at


@dataclass(frozen=True, slots=True)
class Next:
    """What comes behind a header: a kind of layer, its bytes, and who carries it."""

    kind: str
    span: Span
    carrier: Carrier | None = None


@dataclass(frozen=True, slots=True)
class Read:
    """A header, what is behind it, and what is wrong with it."""

    layer: Layer
    next: Next | None = None
    problem: str = ""
    cut: bool = False  # it is not wrong, it is not all here


def layer(name: str, span: Span, length: int, *fields: Field) -> Layer:
    return Layer(name, span.at, length, fields, span.quoted)
