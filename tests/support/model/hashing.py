"""The hashes of docs/packet-path.md §4, from that page alone. Shares no line with the program's.

Words are little endian, taken from the bytes as they are on the wire.
"""

from tests.support.model.parse import Tuple

SEED = 0x6576656E6B65656C
SPREAD = 0x9E3779B97F4A7C15
FINISH = 0xD6E8FEB86659FD93
SPREAD32 = 0x9E3779B1

FIVE_TUPLE, SOURCE, SOURCE_PORT = 1, 2, 3

_MASK64 = (1 << 64) - 1
_MASK32 = (1 << 32) - 1


def tuple_hash(packet: Tuple, fields: int = FIVE_TUPLE) -> int:
    """64 bits from the fields of a tuple that a service hashes."""
    source, destination = packet.source, packet.destination
    if fields != FIVE_TUPLE:
        destination = bytes(len(destination))
    h = SEED
    for word in _address_words(source, destination):
        h = _mix(h, word)
    return _fold(_mix(h, _ports(packet, fields)) * FINISH & _MASK64)


def _address_words(source: bytes, destination: bytes) -> list[int]:
    both = source + destination
    return [_little(both[at : at + 8]) for at in range(0, len(both), 8)]


def _ports(packet: Tuple, fields: int) -> int:
    if fields == SOURCE:
        return 0
    sport = 0 if fields == SOURCE_PORT else packet.sport
    return _swap16(sport) | _swap16(packet.dport) << 16 | packet.protocol << 32


def _mix(h: int, word: int) -> int:
    return _fold((h ^ word) * SPREAD & _MASK64)


def _fold(x: int) -> int:
    return x ^ (x >> 32)


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _swap16(port: int) -> int:
    return int.from_bytes(port.to_bytes(2, "big"), "little")


def slot(h: int, size: int) -> int:
    """The first slot of a hash in a table of `size`."""
    return ((h >> 32) * size) >> 32


def slot_hash(slot: int) -> int:
    """What a backend's ramp is compared with: 0 to 255."""
    return (slot * SPREAD32 & _MASK32) >> 24


def bucket(address: bytes) -> int:
    """Where the prefilter keeps the kinds of an address."""
    if len(address) == 4:
        return (_little(address) * SPREAD32 & _MASK32) >> 16
    a, b = _little(address[:8]), _little(address[8:])
    return (((a * SPREAD & _MASK64) ^ b) * SPREAD & _MASK64) >> 48
