"""Where a client's first packet goes, worked out from the maps' content alone. Pure.

A second account of docs/packet-path.md sections 2 and 4, for where no program may
be loaded, and for whoever wants to know the way to a choice. Knows no flows, and
takes the hash's slot where the program would draw one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

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
    found = frontend_of(state, packet)
    return found[1] if found is not None else None


def frontend_of(state: State, packet: Packet) -> tuple[abi.Frontend, abi.Service] | None:
    for port in (packet.dport, 0):
        number = _frontend(state, encode.key_of(packet.destination, port, packet.proto))
        if found := standing(state, number):
            return found
    return None


def standing(state: State, number: int) -> tuple[abi.Frontend, abi.Service] | None:
    """The frontend of that id and its service, if both are there."""
    frontend = state.frontends.get(ids.index(number))
    if frontend is None or frontend.id != number or not number:
        return None
    service = state.services.get(ids.index(frontend.service))
    if service is None or service.id != frontend.service or not service.id:
        return None
    return frontend, service


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


@dataclass(frozen=True, slots=True)
class Visit:
    """A slot that a walk looked at, and why its backend was passed over; empty: it was taken."""

    slot: int
    backend: int  # id
    why: str
    spare: bool = False


def _walk(state: State, number: int, drawn: int, health: Health | None) -> abi.Backend | None:
    """With health None every backend counts that is not forced down."""
    pool = pool_of(state, number)
    if pool is None:
        return None
    *_, last = visits(state, pool, first_slot(pool, drawn), health)
    return state.backends[ids.index(last.backend)] if not last.why else None


def pool_of(state: State, number: int) -> abi.Pool | None:
    """A pool that can be walked."""
    pool = state.pools.get(ids.index(number))
    known = pool is not None and pool.id == number and number and pool.size
    return pool if known and ids.index(number) in state.tables else None


def first_slot(pool: abi.Pool, drawn: int) -> int:
    return int((drawn >> 32) * pool.size >> 32)


def visits(state: State, pool: abi.Pool, first: int, health: Health | None) -> Iterator[Visit]:
    """The walk from a slot, until it finds a backend that can be used or ends."""
    at = ids.index(pool.id)
    for step in range(abi.Limit.WALK_STEPS + 1):
        slot = (first + step * pool.step) % pool.size
        why = unusable(state, state.tables[at][slot], health, slot)
        yield Visit(slot, state.tables[at][slot], why)
        if not why:
            return
    if at in state.spares:
        number = state.spares[at][first]
        yield Visit(first, number, unusable(state, number, health), spare=True)


def unusable(state: State, number: int, health: Health | None, slot: int | None = None) -> str:
    """Why a new packet may not go there; empty: it may. Without a slot the ramp is ignored."""
    entry = state.backends.get(ids.index(number))
    if entry is None or entry.id != number or not number:
        return "there is none"
    if entry.flags & abi.BackendFlag.FORCED_DOWN:
        return "forced down"
    if health is None or entry.flags & abi.BackendFlag.FORCED_UP:
        return ""
    found = health.get(ids.index(number))
    if not is_usable(entry, found):
        known = found is not None and found.id == number and found.state
        return "its checks fail" if known else "its checks have said nothing yet"
    if found is None or found.id != number or found.state != abi.HealthState.UP:
        return ""
    ramping = slot is not None and slot_hash(slot) > found.ramp
    return f"it is warming up, {found.ramp + 1} of 256 slots so far" if ramping else ""


def slot_hash(slot: int) -> int:
    return (slot * encode.GOLDEN4 & 0xFFFFFFFF) >> 24
