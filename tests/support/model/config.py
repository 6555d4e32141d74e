"""The maps that the daemons write, as plain values: addresses are bytes, ids are ints.

Reads them the way docs/packet-path.md says: an entry that does not repeat the whole id is absent.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bpf.abi import AddressKind, BackendFlag, Forward, HealthState, IdLayout, ServiceFlag, Settings
from tests.support.model import hashing
from tests.support.model.parse import ADDRESS_SIZE, Tuple

Raw = Mapping[str, Mapping[Any, Any]]

TUNNELS = (Forward.IPIP, Forward.GUE)
STATELESS = (Forward.DSR, Forward.IPIP, Forward.GUE)  # replies do not pass here


def index(id: int) -> int:
    return id & IdLayout.INDEX_MASK


@dataclass(frozen=True, slots=True)
class Frontend:
    id: int
    service: int
    address: bytes
    port: int


@dataclass(frozen=True, slots=True)
class Service:
    id: int
    forward: int
    balance: int
    hash: int
    flags: int
    gate: int
    tcp_idle: int
    udp_idle: int
    short_pools: int
    pools: tuple[int, ...]

    @property
    def keeps_flows(self) -> bool:
        return self.forward == Forward.FULLNAT or not self.flags & ServiceFlag.FLOWS_OFF

    @property
    def direct(self) -> bool:
        return bool(self.flags & ServiceFlag.DIRECT)

    @property
    def keeps_down(self) -> bool:
        return bool(self.flags & ServiceFlag.KEEP_DOWN)

    @property
    def translates(self) -> bool:
        """Nat or fullnat: replies come back through here and need entries."""
        return self.forward not in STATELESS

    def idle(self, protocol: int) -> int:
        return self.tcp_idle if protocol == 6 else self.udp_idle


@dataclass(frozen=True, slots=True)
class Pool:
    id: int
    size: int
    step: int
    table: tuple[int, ...]
    spare: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Backend:
    id: int
    ifindex: int
    address: bytes
    port: int
    mtu: int
    weight: int
    flags: int
    dmac: bytes
    smac: bytes

    @property
    def family(self) -> int:
        return 4 if len(self.address) == 4 else 6


@dataclass(frozen=True, slots=True)
class Replies:
    """Which (frontend, backend) a reply from one address and port can belong to."""

    count: int
    candidates: tuple[tuple[int, int], ...]


class Config:
    """What one packet, or many, are judged by. Never changes."""

    def __init__(self, raw: Raw) -> None:
        self._raw = raw
        self._kinds = raw.get("prefilter", {})
        self.settings: Settings = raw["settings"][0]
        self._frontend_keys = {
            (_key_address(key.addr), key.port, key.proto): int(value)
            for name in ("frontends4", "frontends6")
            for key, value in raw.get(name, {}).items()
        }
        self._replies = {
            (_key_address(key.addr), key.port, key.proto): _replies(value)
            for name in ("replies4", "replies6")
            for key, value in raw.get(name, {}).items()
        }
        self._frontends = {at: _frontend(x) for at, x in raw.get("frontends", {}).items()}
        self._services = {at: _service(x) for at, x in raw.get("services", {}).items()}
        self._backends = {at: _backend(x) for at, x in raw.get("backends", {}).items()}
        self._pools = {at: _pool(raw, at, x) for at, x in raw.get("pools", {}).items()}

    def kinds(self, address: bytes) -> int:
        return int(self._kinds.get(hashing.bucket(address), 0))

    def mark(self, address: bytes, port: int, protocol: int) -> int | None:
        """What the frontend map says about a key, believed or not."""
        return self._frontend_keys.get((address, port, protocol))

    def lookup(self, address: bytes, port: int, protocol: int) -> Frontend | None:
        """The frontend that an exact key leads to."""
        id = self.mark(address, port, protocol)
        return self.frontend(id) if id else None

    def frontend(self, id: int) -> Frontend | None:
        """The frontend of an id, if it and its service are there."""
        found = self._frontends.get(index(id))
        if found is None or not id or found.id != id or self.service(found.service) is None:
            return None
        return found

    def service(self, id: int) -> Service | None:
        found = self._services.get(index(id))
        return found if id and found is not None and found.id == id else None

    def service_of(self, frontend: Frontend) -> Service:
        found = self.service(frontend.service)
        assert found is not None, "frontend() has checked it"
        return found

    def pool(self, id: int) -> Pool | None:
        found = self._pools.get(index(id))
        return found if id and found is not None and found.id == id and found.table else None

    def backend(self, id: int) -> Backend | None:
        found = self._backends.get(index(id))
        return found if id and found is not None and found.id == id else None

    def health(self, backend: Backend) -> tuple[int, int]:
        """(state, ramp); of another incarnation: unknown."""
        entry = self._raw.get("health", {}).get(index(backend.id))
        if entry is None or entry.id != backend.id:
            return HealthState.UNKNOWN, 0
        return entry.state, entry.ramp

    def down_for_flows(self, backend: Backend) -> bool:
        if backend.flags & BackendFlag.FORCED_DOWN:
            return True
        if backend.flags & BackendFlag.FORCED_UP:
            return False
        return self.health(backend)[0] == HealthState.DOWN

    def replies(self, address: bytes, port: int, protocol: int) -> Replies | None:
        return self._replies.get((address, port, protocol))

    def nat_source(self, family: int) -> bytes:
        settings = self.settings
        return _address(settings.nat_source4 if family == 4 else settings.nat_source6, family)

    def tunnel_source(self, family: int) -> bytes:
        settings = self.settings
        return _address(settings.tunnel_source4 if family == 4 else settings.tunnel_source6, family)

    def is_nat_source(self, about: Tuple) -> bool:
        """Whether a packet is to one of fullnat's own ports."""
        return (
            bool(self.kinds(about.destination) & AddressKind.NAT_SOURCE)
            and about.destination == self.nat_source(about.family)
            and self.settings.port_low <= about.dport <= self.settings.port_high
        )


def _address(union: Any, family: int) -> bytes:
    return bytes(union)[: ADDRESS_SIZE[family]]


def _key_address(addr: Any) -> bytes:
    return addr.to_bytes(4, "big") if isinstance(addr, int) else bytes(addr)


def _frontend(x: Any) -> Frontend:
    return Frontend(x.id, x.service, _address(x.addr, x.family or 4), x.port)


def _service(x: Any) -> Service:
    return Service(
        x.id,
        x.forward,
        x.balance,
        x.hash,
        x.flags,
        x.gate,
        x.tcp_idle,
        x.udp_idle,
        x.short_pools,
        tuple(x.pools)[: x.pool_count],
    )


def _backend(x: Any) -> Backend:
    address = _address(x.addr, x.family or 4)
    return Backend(
        x.id, x.ifindex, address, x.port, x.mtu, x.weight, x.flags, bytes(x.dmac), bytes(x.smac)
    )


def _pool(raw: Raw, at: int, x: Any) -> Pool:
    table = tuple(raw.get("tables", {}).get(at, ()))
    return Pool(x.id, x.size, x.step, table, tuple(raw.get("spares", {}).get(at, ())))


def _replies(x: Any) -> Replies:
    return Replies(x.count, tuple((one.frontend, one.backend) for one in x.candidate)[: x.count])
