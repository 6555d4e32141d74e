"""Where a client's first packet goes, worked out from the maps' content alone. Pure.

A second account of docs/packet-path.md sections 2 and 4, for where no program may
be loaded. Knows no flows and no ramp, and takes the hash's slot where the program
would draw one.
"""

from collections.abc import Mapping

from bpf import abi
from reconciler import encode, ids
from reconciler.dataplane import State
from reconciler.encode import FrontendKey
from reconciler.model import Packet
from reconciler.spare import is_usable

LONG = (1 << 64) - 1
START, MIX, LAST = 0x6576656E6B65656C, 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93
Health = Mapping[int, abi.Health]


def service_of(state: State, packet: Packet) -> abi.Service | None:
    """Whose packet it is: an exact port's, else any port's."""
    for port in (packet.dport, 0):
        number = _frontend(state, encode.key_of(packet.destination, port, packet.proto))
        frontend = state.frontends.get(ids.index(number))
        if frontend is not None and frontend.id == number:
            return state.services.get(ids.index(frontend.service))
    return None


def backend_of(
    state: State, health: Health, service: abi.Service, packet: Packet
) -> abi.Backend | None:
    """The first pool that is not short and has a usable one; else the first pool whole."""
    drawn = tuple_hash(packet, abi.HashFields(service.hash))
    pools = list(service.pools[: service.pool_count])
    for i, number in enumerate(pools):
        if not service.short_pools >> i & 1 and (found := _walk(state, number, drawn, health)):
            return found
    if service.flags & abi.ServiceFlag.FAIL_CLOSED:
        return None
    return _walk(state, pools[0], drawn, None)


def tuple_hash(packet: Packet, fields: abi.HashFields) -> int:
    source, target = packet.source.packed, packet.destination.packed
    ports = _swapped(packet.sport) | _swapped(packet.dport) << 16 | packet.proto << 32
    if fields != abi.HashFields.FIVE_TUPLE:
        target = bytes(len(target))
        ports = 0 if fields == abi.HashFields.SOURCE else ports & ~0xFFFF
    data, mixed = source + target, START
    for at in range(0, len(data), 8):
        mixed = _mix(mixed, int.from_bytes(data[at : at + 8], "little"))
    last = _mix(mixed, ports) * LAST & LONG
    return last ^ last >> 32


def _mix(mixed: int, word: int) -> int:
    product = (mixed ^ word) * MIX & LONG
    return product ^ product >> 32


def _swapped(port: int) -> int:
    return port >> 8 | (port & 0xFF) << 8


def _frontend(state: State, key: FrontendKey) -> int:
    if isinstance(key, abi.Frontend4Key):
        return state.frontends4.get(key, 0)
    return state.frontends6.get(key, 0)


def _walk(state: State, number: int, drawn: int, health: Health | None) -> abi.Backend | None:
    """With health None every backend counts that is not forced down."""
    at = ids.index(number)
    pool, table = state.pools.get(at), state.tables.get(at)
    if pool is None or pool.id != number or table is None:
        return None
    first = (drawn >> 32) * pool.size >> 32
    slots = ((first + step * pool.step) % pool.size for step in range(abi.Limit.WALK_STEPS + 1))
    tried = [*(table[slot] for slot in slots), state.spares[at][first]]
    return next((found for each in tried if (found := _usable(state, each, health))), None)


def _usable(state: State, number: int, health: Health | None) -> abi.Backend | None:
    entry = state.backends.get(ids.index(number))
    if entry is None or entry.id != number:
        return None
    if health is None:
        return None if entry.flags & abi.BackendFlag.FORCED_DOWN else entry
    return entry if is_usable(entry, health.get(ids.index(number))) else None
