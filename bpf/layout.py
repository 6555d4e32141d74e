"""What the structures of `bpf.abi` have in common: values, not views.

Two structures are equal when their bytes are, as the kernel compares keys.
Nothing here knows a field, an offset or a number: these are generated.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any, Self

be16 = ctypes.c_uint16.__ctype_be__  # type: ignore[attr-defined]
be32 = ctypes.c_uint32.__ctype_be__  # type: ignore[attr-defined]

IPV4_BYTES, IPV6_BYTES, MAC_BYTES = 4, 16, 6
LONG = 64

if TYPE_CHECKING:

    class Numbers:
        """An array field to a type checker: reads as an array, takes any integers."""

        def __get__(self, owner: object, kind: type) -> ctypes.Array[Any]: ...
        def __set__(self, owner: object, value: Iterable[int]) -> None: ...


class _Value:
    """Equality, hash and repr over the bytes; arrays take bytes and lists too."""

    __slots__ = ()

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Self:
        if len(data) != ctypes.sizeof(cls):  # type: ignore[arg-type]
            size = ctypes.sizeof(cls)  # type: ignore[arg-type]
            raise ValueError(f"{cls.__name__} is {size} bytes, not {len(data)}")
        return cls.from_buffer_copy(data)  # type: ignore[attr-defined, no-any-return]

    def __setattr__(self, name: str, value: Any) -> None:  # noqa: ANN401 -- whatever the field takes
        object.__setattr__(self, name, self._fitting(name, value))

    def _fitting(self, name: str, value: Any) -> Any:  # noqa: ANN401
        """Arrays of integers take tuples only, and arrays of char bytes only: ctypes' rules."""
        if isinstance(value, int | ctypes.Array):
            return value
        if isinstance(value, bytes) and isinstance(getattr(self, name), bytes):
            return value
        return tuple(value) if isinstance(value, Iterable) else value

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return bytes(self) == bytes(other)  # type: ignore[call-overload, no-any-return]

    def __hash__(self) -> int:
        return hash(bytes(self))  # type: ignore[call-overload]


class Record(_Value, ctypes.Structure):
    """A C structure."""

    def __repr__(self) -> str:
        fields = [(name, getattr(self, name)) for name, *_ in self._fields_]
        types = {name: kind for name, kind, *_ in self._fields_}
        said = ", ".join(
            f"{name}={_readable(types[name], value)}"
            for name, value in fields
            if not name.startswith("zero")
        )
        return f"{type(self).__name__}({said})"


class Either(_Value, ctypes.Union):
    """A C union. All its members start at the same byte."""

    def __repr__(self) -> str:
        data = bytes(self)
        if len(data) == IPV6_BYTES:
            return f"{type(self).__name__}({_address(data)})"
        return f"{type(self).__name__}({data.hex()})"


def _address(data: bytes) -> str:
    if any(data[IPV4_BYTES:]) or not any(data):
        return str(IPv6Address(data))
    return str(IPv4Address(data[:IPV4_BYTES]))


def _readable(kind: Any, value: Any) -> str:  # noqa: ANN401 -- whatever the field holds
    if kind is be32:
        return str(IPv4Address(value))
    if not isinstance(value, ctypes.Array):
        return repr(value)
    if kind._type_ is not ctypes.c_uint8:  # ctypes' own way to ask
        return repr(list(value)) if len(value) <= LONG else f"<{len(value)} entries>"
    return _octets(bytes(value))


def _octets(data: bytes) -> str:
    if len(data) == MAC_BYTES:
        return data.hex(":")
    if len(data) == IPV6_BYTES:
        return str(IPv6Address(data))
    return data.hex() if len(data) <= LONG else f"<{len(data)} bytes>"
