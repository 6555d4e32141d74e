"""The types of an object file, read from its .BTF section.

Only what a data layout needs: integers, arrays, structures, unions, typedefs
and enumerations. It does not relocate, resolve forwards or look at functions.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

ELF_MAGIC = b"\x7fELF"
BTF_MAGIC = 0xEB9F


class Kind(IntEnum):
    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


# Bytes behind the common header: a fixed part, and one per member.
TRAILER = {
    Kind.INT: (4, 0),
    Kind.ARRAY: (12, 0),
    Kind.STRUCT: (0, 12),
    Kind.UNION: (0, 12),
    Kind.ENUM: (0, 8),
    Kind.FUNC_PROTO: (0, 8),
    Kind.VAR: (4, 0),
    Kind.DATASEC: (0, 12),
    Kind.DECL_TAG: (4, 0),
    Kind.ENUM64: (0, 12),
}
SIGNED = 1 << 24  # of an integer's encoding


class NotBtf(ValueError):
    """The file holds no types that can be read."""


@dataclass(frozen=True, slots=True)
class Member:
    name: str
    type: int
    bits_offset: int


@dataclass(frozen=True, slots=True)
class Type:
    """`size` is bytes, elements or, for what refers, nothing; `type` what it refers to."""

    kind: Kind
    name: str = ""
    size: int = 0
    type: int = 0
    signed: bool = False
    members: tuple[Member, ...] = ()
    values: tuple[tuple[str, int], ...] = ()


VOID = Type(Kind.VOID)


@dataclass(frozen=True, slots=True)
class Btf:
    types: tuple[Type, ...]
    _named: dict[tuple[Kind, str], Type] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._named.update({(t.kind, t.name): t for t in self.types if t.name})

    def named(self, kind: Kind, name: str) -> Type | None:
        return self._named.get((kind, name))


def read(path: Path) -> Btf:
    """The types of an object; NotBtf says why there are none."""
    try:
        return parse(section(path.read_bytes(), ".BTF"))
    except (NotBtf, struct.error, IndexError) as error:
        raise NotBtf(f"{path}: {error}; compile it with clang -target bpf -g") from error


def section(elf: bytes, name: str) -> bytes:
    """One section of a 64-bit ELF file."""
    for found, content in sections(elf):
        if found == name:
            return content
    raise NotBtf(f"no section {name}")


def sections(elf: bytes) -> Iterator[tuple[str, bytes]]:
    """All of them, by name, in the order of the file."""
    if elf[:5] != ELF_MAGIC + b"\x02":
        raise NotBtf("no 64-bit ELF file")
    order = "<" if elf[5] == 1 else ">"
    (table,) = struct.unpack_from(order + "Q", elf, 40)
    size, count, names = struct.unpack_from(order + "HHH", elf, 58)
    headers = [struct.unpack_from(order + "II8x8xQQ", elf, table + i * size) for i in range(count)]
    strings = headers[names][2]
    for name_offset, _, offset, length in headers:
        yield text(elf, strings + name_offset), elf[offset : offset + length]


def text(data: bytes, offset: int) -> str:
    return data[offset : data.index(b"\0", offset)].decode()


def parse(data: bytes) -> Btf:
    """All types of a .BTF section, in order: an id is an index."""
    order = "<" if data[:2] == BTF_MAGIC.to_bytes(2, "little") else ">"
    magic, header, start, length, strings, _ = struct.unpack_from(order + "HxxIIIII", data)
    if magic != BTF_MAGIC:
        raise NotBtf("no BTF")
    types = data[header + start : header + start + length]
    return Btf((VOID, *_types(types, data[header + strings :], order)))


def _types(data: bytes, strings: bytes, order: str) -> Iterator[Type]:
    offset = 0
    while offset < len(data):
        name, info, last = struct.unpack_from(order + "III", data, offset)
        kind, count = Kind(info >> 24 & 31), info & 0xFFFF
        fixed, each = TRAILER.get(kind, (0, 0))
        end = offset + 12 + fixed + each * count
        trailer = data[offset + 12 : end]
        yield _type(kind, text(strings, name), last, _Reader(trailer, strings, order))
        offset = end


@dataclass(frozen=True, slots=True)
class _Reader:
    """What follows a type's common header."""

    trailer: bytes
    strings: bytes
    order: str

    def words(self, size: int) -> Iterator[tuple[int, ...]]:
        return struct.iter_unpack(f"{self.order}{size}I", self.trailer)

    def members(self) -> tuple[Member, ...]:
        return tuple(
            Member(text(self.strings, name), kind, offset & 0xFFFFFF)
            for name, kind, offset in self.words(3)
        )

    def values(self) -> tuple[tuple[str, int], ...]:
        return tuple((text(self.strings, name), value) for name, value in self.words(2))


def _type(kind: Kind, name: str, last: int, rest: _Reader) -> Type:
    match kind:
        case Kind.INT:
            ((encoding,),) = rest.words(1)
            return Type(kind, name, size=last, signed=bool(encoding & SIGNED))
        case Kind.ARRAY:
            ((element, _, count),) = rest.words(3)
            return Type(kind, name, size=count, type=element)
        case Kind.STRUCT | Kind.UNION:
            return Type(kind, name, size=last, members=rest.members())
        case Kind.ENUM:
            return Type(kind, name, size=last, values=rest.values())
        case _:
            return Type(kind, name, type=last)
