"""Options of headers: kinds, lengths and values in a row, until they end or lie."""

from collections.abc import Callable, Iterator

from reconciler.packet.fields import Malformed, Option, Value

Reader = Callable[[int, bytes], Value]
SHORTEST = 2  # a kind and a length


def plain(_: int, data: bytes) -> Value:
    return data.hex()


def options(data: bytes, names: dict[int, str], value: Reader = plain) -> Iterator[Option]:
    """As IPv4 and TCP have them: 0 ends them, 1 is alone, a length counts itself."""
    at = 0
    while at < len(data):
        kind = data[at]
        if kind == 0:
            yield Option("end")
            return
        if kind == 1:
            yield Option("nop")
            at += 1
            continue
        size = data[at + 1] if at + 1 < len(data) else 0
        if size < SHORTEST or at + size > len(data):
            raise Malformed(f"option {kind} of {size} bytes, {len(data) - at} are left")
        yield Option(names.get(kind, str(kind)), value(kind, data[at + SHORTEST : at + size]))
        at += size


def options6(data: bytes, names: dict[int, str]) -> Iterator[Option]:
    """As IPv6 has them: 0 is alone, a length counts what follows it."""
    at = 0
    while at < len(data):
        kind = data[at]
        if kind == 0:
            yield Option("pad1")
            at += 1
            continue
        size = data[at + 1] if at + 1 < len(data) else 0
        start = at + SHORTEST
        if start + size > len(data):
            raise Malformed(f"option {kind} of {size} bytes, {max(0, len(data) - start)} are left")
        yield Option(names.get(kind, str(kind)), data[start : start + size].hex())
        at = start + size


def until_broken(found: Iterator[Option]) -> tuple[tuple[Option, ...], str]:
    """Those before one that lies, and what is wrong with that one."""
    kept: list[Option] = []
    try:
        kept.extend(found)
    except Malformed as error:
        return tuple(kept), str(error)
    return tuple(kept), ""
