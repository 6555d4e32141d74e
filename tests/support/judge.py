"""Where a packet may go, by the maps alone: docs/packet-path.md sections 2 and 4, in plain Python."""

import ipaddress
from collections.abc import Mapping

from bpf import abi
from reconciler import encode
from reconciler.dataplane import State
from reconciler.encode import FrontendKey

Health = Mapping[int, abi.Health]
# Plain integers: this is asked very often, and arithmetic of enums is slow.
FORCED_UP, FORCED_DOWN = int(abi.BackendFlag.FORCED_UP), int(abi.BackendFlag.FORCED_DOWN)
ASSUME_UP = int(abi.BackendFlag.ASSUME_UP)
SERVICE = int(abi.AddressKind.SERVICE)
FAIL_CLOSED = int(abi.ServiceFlag.FAIL_CLOSED)
INDEX = int(abi.IdLayout.INDEX_MASK)
WALK = range(int(abi.Limit.WALK_STEPS) + 1)
Place = tuple[str, bytes, int]  # how, where, which port
PASSED: Place = ("passed", b"", 0)
DROPPED: Place = ("dropped", b"", 0)


class Dangling(AssertionError):
    """Something points at something that is not there."""


def packets(*states: State) -> set[FrontendKey]:
    """One packet for each way in which any of the states tells packets apart."""
    keys = {key for state in states for key in (*state.frontends4, *state.frontends6)}
    return {key for key in keys if key.proto in (6, 17)} | {_other_port(key) for key in keys}


def _other_port(key: FrontendKey) -> FrontendKey:
    copy = type(key).from_bytes(bytes(key))
    copy.port, copy.proto = 9999, 6
    return copy


def service_of(state: State, packet: FrontendKey) -> abi.Service | None:
    keys = state.frontends4 if isinstance(packet, abi.Frontend4Key) else state.frontends6
    if not state.prefilter.get(_bucket(packet), 0) & SERVICE:
        return None
    any_port = type(packet).from_bytes(bytes(packet))
    any_port.port = 0
    number = keys.get(packet) or keys.get(any_port, 0)
    if number == 0:
        return None
    frontend = state.frontends.get(number & INDEX)
    if frontend is None or frontend.id != number:
        raise Dangling(f"{packet} names frontend {number:#x}")
    service = state.services.get(frontend.service & INDEX)
    if service is None or service.id != frontend.service:
        raise Dangling(f"frontend {number:#x} names service {frontend.service:#x}")
    return service


def _bucket(packet: FrontendKey) -> int:
    packed = packet.addr.to_bytes(4) if isinstance(packet, abi.Frontend4Key) else bytes(packet.addr)
    return encode.bucket(ipaddress.ip_address(packed))


def route(state: State, packet: FrontendKey, draw: int, health: Health) -> Place:
    """What the program does with a packet whose hash falls on the `draw`th slot."""
    service = service_of(state, packet)
    if service is None:
        return PASSED
    pools = list(service.pools[: service.pool_count])
    for i, number in enumerate(pools):
        if not service.short_pools >> i & 1:
            found = _walk(state, number, draw, health)
            if found:
                return _place(service, found)
    if service.flags & FAIL_CLOSED:
        return DROPPED
    whole = _walk(state, pools[0], draw, None)
    return _place(service, whole) if whole else DROPPED


def everywhere(state: State, packet: FrontendKey, health: Health) -> set[Place]:
    """Every place that the state may send such packets to."""
    service = service_of(state, packet)
    if service is None:
        return {PASSED}
    reached = {
        _place(service, state.backends[number & INDEX])
        for pool in service.pools[: service.pool_count]
        for number in state.tables.get(pool & INDEX, ())
    }
    size = max((pool.size for pool in state.pools.values()), default=1)
    return reached | {route(state, packet, draw, health) for draw in range(size)}


def _place(service: abi.Service, backend: abi.Backend) -> Place:
    return abi.Forward(service.forward).name, bytes(backend.addr), backend.port


def _walk(state: State, number: int, draw: int, health: Health | None) -> abi.Backend | None:
    """With health None every backend counts that is not forced down."""
    at = number & INDEX
    pool, table = state.pools.get(at), state.tables.get(at)
    if pool is None or pool.id != number:
        raise Dangling(f"a service names pool {number:#x}")
    if table is None:
        return None
    first = slot = draw % pool.size
    for _ in WALK:
        backend = _present(state, table[slot])
        if _usable(backend, health):
            return backend
        slot = (slot + pool.step) % pool.size
    spare = _present(state, state.spares[at][first])
    return spare if _usable(spare, health) else None


def _present(state: State, number: int) -> abi.Backend:
    backend = state.backends.get(number & INDEX)
    if backend is None or backend.id != number:
        raise Dangling(f"a slot names backend {number:#x}")
    return backend


def _usable(backend: abi.Backend, health: Health | None) -> bool:
    if backend.flags & FORCED_DOWN:
        return False
    if health is None or backend.flags & FORCED_UP:
        return True
    entry = health.get(backend.id & INDEX)
    if entry is None or entry.id != backend.id or entry.state == abi.HealthState.UNKNOWN:
        return bool(backend.flags & ASSUME_UP)
    return entry.state == abi.HealthState.UP
