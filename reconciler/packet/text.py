"""A decoded packet for people."""

from collections.abc import Iterator

from reconciler.packet.decode import Decoded
from reconciler.packet.fields import Field, Layer

HEXADECIMAL = ("checksum", "flags", "type", "protocol-type")
ETHER = ("ethernet", "vlan")


def lines(decoded: Decoded) -> Iterator[str]:
    """A line a layer, and one for what is wrong."""
    for one in decoded.layers:
        name = f"{'quoted ' * one.quoted}{one.name}"
        yield f"{name:12} {', '.join(_field(one, field) for field in one.fields)}"
    if decoded.problem:
        yield f"{'cut' if decoded.cut else 'malformed':12} {decoded.problem}"


def _field(one: Layer, field: Field) -> str:
    value: object = field.value
    if isinstance(value, int) and _in_hex(one, field):
        value = f"0x{value:04x}"
    elif isinstance(value, tuple):
        value = " ".join(f"<{option}>" for option in value) or "none"
    note = f" ({field.note})" if field.note else ""
    return f"{field.name} {value}{note}"


def _in_hex(one: Layer, field: Field) -> bool:
    if field.name == "type":
        return one.name in ETHER
    return field.name in HEXADECIMAL
