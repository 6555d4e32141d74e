"""A configuration of the data plane as readable values, and the map contents it means.

Pure data: only `apply` touches a kernel, and only the maps of the instance that it is given.

`World.raw()` is what the reference model and the kernel are both given:

    {"settings": {0: abi.Settings}, "prefilter": {bucket: kinds},
     "frontends4": {abi.Frontend4Key: id or mark}, "frontends6": {abi.Frontend6Key: id or mark},
     "frontends": {index: abi.Frontend}, "services": {index: abi.Service},
     "pools": {index: abi.Pool}, "tables": {pool index: array('I')},
     "spares": {pool index: array('I')}, "backends": {index: abi.Backend},
     "health": {index: abi.Health},
     "replies4": {abi.Frontend4Key: abi.Reply}, "replies6": {abi.Frontend6Key: abi.Reply}}

Every map is there, empty when the world says nothing. Ids depend on the order in the world alone:
the first backend, pool, service and frontend have index 1, pool after pool, service after service.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, TypeAlias

from bpf import abi
from tests.support import frames

Raw: TypeAlias = dict[str, dict[Any, Any]]

PROTOCOLS = {"tcp": frames.TCP, "udp": frames.UDP}
_WORD, _LONG = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF


class Health(StrEnum):
    UP = "up"
    DOWN = "down"
    UNKNOWN = "unknown"
    STALE = "stale"  # the entry carries another incarnation's id, and says up


@dataclass(frozen=True, slots=True)
class Backend:
    """A backend as its pool has it. `ifindex` None: the test bed's interface towards backends."""

    name: str
    address: str
    port: int = 0
    weight: int = 1
    mtu: int = 1500
    ifindex: int | None = None
    dmac: str = "02:00:00:00:0b:01"
    smac: str = "02:00:00:00:0b:00"
    flags: int = 0  # abi.BackendFlag
    health: Health = Health.UP
    ramp: int = 255
    incarnation: int = 1


@dataclass(frozen=True, slots=True)
class Pool:
    """`slots` names backends; "" is an empty slot, a number is an id as it stands.

    Without it slots go round in proportion to the weights. Spares likewise; without them the
    spare table has what a walk through the whole table finds, as the reconciler would write it.
    """

    name: str
    backends: tuple[Backend, ...]
    size: int = 61
    step: int = 17
    slots: tuple[str | int, ...] | None = None
    spares: tuple[str | int, ...] | None = None
    no_table: bool = False
    no_spares: bool = False
    incarnation: int = 1
    known_as: int | None = None  # incarnation in the service's list, when it is another


@dataclass(frozen=True, slots=True)
class Service:
    """A service and its frontends: (address, port or None for any, "tcp" or "udp")."""

    name: str
    frontends: tuple[tuple[str, int | None, str], ...]
    pools: tuple[Pool, ...]
    forward: abi.Forward = abi.Forward.NAT
    balance: abi.Balance = abi.Balance.HASH
    hash: abi.HashFields = abi.HashFields.FIVE_TUPLE
    flags: int = 0  # abi.ServiceFlag
    gate: int = 0
    tcp_idle: int = 300
    udp_idle: int = 60
    short_pools: tuple[int, ...] = ()
    echo: bool = False
    incarnation: int = 1


@dataclass(frozen=True, slots=True)
class Settings:
    flags: int = 0  # abi.SettingFlag
    sample_mask: int = _WORD
    hop_epoch: int = 5
    closing: int = 10
    rest: int = 56
    icmp_rate: int = 0
    gue_port: int = 6080
    port_low: int = 40000
    port_high: int = 49999
    tunnel_source4: str = "10.9.0.1"
    tunnel_source6: str = "fd00:9::1"
    nat_source4: str = "10.8.0.1"
    nat_source6: str = "fd00:8::1"


@dataclass(frozen=True)
class World:
    services: tuple[Service, ...] = ()
    settings: Settings = field(default_factory=Settings)
    backend_ifindex: int = 20  # the bed's interface towards backends

    @cached_property
    def pools(self) -> tuple[Pool, ...]:
        """Each pool once, however many services list it."""
        return tuple(dict.fromkeys(pool for service in self.services for pool in service.pools))

    @cached_property
    def ids(self) -> dict[str, int]:
        """Ids by name: "pool", "pool/backend", "service", "service/0" (its first frontend)."""
        out: dict[str, int] = {}
        backends = [(pool, backend) for pool in self.pools for backend in pool.backends]
        for index, (pool, backend) in enumerate(backends, 1):
            out[f"{pool.name}/{backend.name}"] = make_id(index, backend.incarnation)
        for index, pool in enumerate(self.pools, 1):
            out[pool.name] = make_id(index, pool.incarnation)
        for index, service in enumerate(self.services, 1):
            out[service.name] = make_id(index, service.incarnation)
        names = [f"{s.name}/{i}" for s in self.services for i, _ in enumerate(s.frontends)]
        for index, name in enumerate(names, 1):
            out[name] = make_id(index, 1)
        return out

    def id(self, name: str) -> int:
        return self.ids[name]

    def index(self, name: str) -> int:
        return index_of(self.ids[name])

    def raw(self) -> Raw:
        """The contents of all configuration maps: a new dictionary each time."""
        return {
            "settings": {0: self._settings()},
            "prefilter": self._prefilter(),
            "frontends4": dict(self._frontend_entries(4)),
            "frontends6": dict(self._frontend_entries(6)),
            "frontends": {index_of(f.id): f for f in self._frontends()},
            "services": {self.index(s.name): self._service(s) for s in self.services},
            "pools": {self.index(p.name): self._pool(p) for p in self.pools},
            "tables": {self.index(p.name): self._table(p) for p in self.pools if not p.no_table},
            "spares": {self.index(p.name): self._spares(p) for p in self.pools if not p.no_spares},
            "backends": {index_of(b.id): b for b in self._backends()},
            "health": dict(self._health()),
            "replies4": self._replies(4),
            "replies6": self._replies(6),
        }

    # ---- map by map ----

    def _settings(self) -> abi.Settings:
        s = self.settings
        return abi.Settings(
            flags=s.flags,
            sample_mask=s.sample_mask,
            hop_epoch=s.hop_epoch,
            closing=s.closing,
            rest=s.rest,
            icmp_rate=s.icmp_rate,
            gue_port=s.gue_port,
            port_low=s.port_low,
            port_high=s.port_high,
            tunnel_source4=address(s.tunnel_source4),
            tunnel_source6=address(s.tunnel_source6),
            nat_source4=address(s.nat_source4),
            nat_source6=address(s.nat_source6),
        )

    def _prefilter(self) -> dict[int, int]:
        out: dict[int, int] = {}
        for where, kind in self._kinds():
            bucket = prefilter_bucket(where)
            out[bucket] = out.get(bucket, 0) | kind
        return out

    def _kinds(self) -> Iterator[tuple[str, int]]:
        for service in self.services:
            rewriting = service.forward in (abi.Forward.NAT, abi.Forward.FULLNAT)
            table_first = service.flags & abi.ServiceFlag.FLOWS_OFF
            for where, _, _ in service.frontends:
                yield where, abi.AddressKind.SERVICE
                if table_first and service.forward != abi.Forward.FULLNAT:
                    yield where, abi.AddressKind.TABLE_FIRST
            for pool in service.pools if rewriting else ():
                for backend in pool.backends:
                    yield backend.address, abi.AddressKind.NAT_BACKEND
            if service.forward == abi.Forward.FULLNAT:
                for own in filter(None, (self.settings.nat_source4, self.settings.nat_source6)):
                    yield own, abi.AddressKind.NAT_SOURCE

    def _frontends(self) -> Iterator[abi.Frontend]:
        for service in self.services:
            for number, (where, port, protocol) in enumerate(service.frontends):
                yield abi.Frontend(
                    id=self.id(f"{service.name}/{number}"),
                    service=self.id(service.name),
                    addr=address(where),
                    port=port or 0,
                    proto=PROTOCOLS[protocol],
                    family=family(where),
                )

    def _frontend_entries(self, version: int) -> Iterator[tuple[Any, int]]:
        """Marks first: an any-port frontend takes the place of its protocol's mark."""
        icmp = frames.ICMP if version == 4 else frames.ICMPV6
        mine = [s for s in self.services if any(family(f[0]) == version for f in s.frontends)]
        for service in mine:
            for where, _, protocol in service.frontends:
                if family(where) == version:
                    yield frontend_key(where, 0, 0), abi.FrontendMark.MARK
                    yield frontend_key(where, 0, PROTOCOLS[protocol]), abi.FrontendMark.MARK
                    if service.echo:
                        yield frontend_key(where, 0, icmp), abi.FrontendMark.ECHO
        for service in mine:
            for number, (where, port, protocol) in enumerate(service.frontends):
                if family(where) == version:
                    key = frontend_key(where, port or 0, PROTOCOLS[protocol])
                    yield key, self.id(f"{service.name}/{number}")

    def _service(self, service: Service) -> abi.Service:
        listed = [
            make_id(self.index(pool.name), pool.known_as or pool.incarnation)
            for pool in service.pools
        ]
        return abi.Service(
            id=self.id(service.name),
            forward=service.forward,
            balance=service.balance,
            hash=service.hash,
            flags=service.flags,
            gate=service.gate,
            tcp_idle=service.tcp_idle,
            udp_idle=service.udp_idle,
            pool_count=len(listed),
            short_pools=sum(1 << index for index in service.short_pools),
            pools=listed + [0] * (abi.Limit.POOLS_PER_SERVICE - len(listed)),
        )

    def _pool(self, pool: Pool) -> abi.Pool:
        return abi.Pool(id=self.id(pool.name), size=pool.size, step=pool.step)

    def _named(self, pool: Pool, slots: tuple[str | int, ...]) -> array[int]:
        known = {b.name: self.id(f"{pool.name}/{b.name}") for b in pool.backends} | {"": 0}
        return array("I", [known[s] if isinstance(s, str) else s for s in slots])

    def _table(self, pool: Pool) -> array[int]:
        if pool.slots is not None:
            assert len(pool.slots) == pool.size, f"{pool.name}: slots do not fill the table"
            return self._named(pool, pool.slots)
        return self._named(pool, fill(pool))

    def _spares(self, pool: Pool) -> array[int]:
        if pool.spares is not None:
            return self._named(pool, pool.spares)
        table = array("I", [0] * pool.size) if pool.no_table else self._table(pool)
        able = {self.id(f"{pool.name}/{b.name}") for b in pool.backends if usable(b)}
        walks = (
            (table[(slot + k * pool.step) % pool.size] for k in range(pool.size))
            for slot in range(pool.size)
        )
        return array("I", [next((found for found in walk if found in able), 0) for walk in walks])

    def _backends(self) -> Iterator[abi.Backend]:
        for pool in self.pools:
            for b in pool.backends:
                yield abi.Backend(
                    id=self.id(f"{pool.name}/{b.name}"),
                    ifindex=self.backend_ifindex if b.ifindex is None else b.ifindex,
                    addr=address(b.address),
                    port=b.port,
                    mtu=b.mtu,
                    weight=b.weight,
                    family=family(b.address),
                    flags=b.flags,
                    dmac=frames.mac(b.dmac),
                    smac=frames.mac(b.smac),
                )

    def _health(self) -> Iterator[tuple[int, abi.Health]]:
        for pool in self.pools:
            for b in pool.backends:
                own = self.id(f"{pool.name}/{b.name}")
                other = make_id(index_of(own), b.incarnation + 1)
                state = {Health.UP: 1, Health.DOWN: 2, Health.STALE: 1, Health.UNKNOWN: 0}[b.health]
                said = other if b.health is Health.STALE else own
                yield index_of(own), abi.Health(id=said, state=state, ramp=b.ramp)

    def _replies(self, version: int) -> dict[Any, Any]:
        """Who may have sent to a backend's address; those of DIRECT services too."""
        found: dict[Any, list[tuple[int, int]]] = {}
        nats = [s for s in self.services if s.forward == abi.Forward.NAT]
        for service in nats:
            for number, (where, port, protocol) in enumerate(service.frontends):
                if family(where) != version:
                    continue
                for pool in service.pools:
                    for b in (b for b in pool.backends if family(b.address) == version):
                        key = frontend_key(
                            b.address, (b.port or port) if port else 0, PROTOCOLS[protocol]
                        )
                        pair = (
                            self.id(f"{service.name}/{number}"),
                            self.id(f"{pool.name}/{b.name}"),
                        )
                        found.setdefault(key, []).append(pair)
        return {key: _reply(pairs) for key, pairs in found.items()}


def _reply(pairs: list[tuple[int, int]]) -> abi.Reply:
    reply = abi.Reply(count=len(pairs))
    for index, (frontend, backend) in enumerate(pairs[: abi.Limit.REPLY_CANDIDATES]):
        reply.candidate[index] = abi.ReplyCandidate(frontend=frontend, backend=backend)
    return reply


# ---- ids, addresses, keys ----


def make_id(index: int, incarnation: int) -> int:
    return index | incarnation << abi.IdLayout.INDEX_BITS


def index_of(whole: int) -> int:
    return whole & abi.IdLayout.INDEX_MASK


def family(text: str) -> int:
    return 6 if ":" in text else 4


def address(text: str) -> abi.Address:
    """An abi address; empty text is all zeros."""
    packed = ip_address(text).packed if text else b""
    return abi.Address.from_bytes(packed.ljust(16, b"\0"))


def frontend_key(where: str, port: int, protocol: int) -> abi.Frontend4Key | abi.Frontend6Key:
    if family(where) == 4:
        return abi.Frontend4Key(addr=int(IPv4Address(where)), port=port, proto=protocol)
    return abi.Frontend6Key(addr=IPv6Address(where).packed, port=port, proto=protocol)


def flow_key(
    src: str, sport: int, dst: str, dport: int, protocol: int, side: int = 0
) -> abi.Flow4Key | abi.Flow6Key:
    if family(dst) == 4:
        return abi.Flow4Key(
            saddr=int(IPv4Address(src)),
            daddr=int(IPv4Address(dst)),
            sport=sport,
            dport=dport,
            proto=protocol,
            side=side,
        )
    return abi.Flow6Key(
        saddr=address(src), daddr=address(dst), sport=sport, dport=dport, proto=protocol, side=side
    )


# ---- slots ----


def fill(pool: Pool) -> tuple[str, ...]:
    """Each backend as often as its weight says, in turn (smooth weighted round-robin)."""
    if not pool.backends:
        return ("",) * pool.size
    credit = dict.fromkeys((b.name for b in pool.backends), 0)
    weights = {b.name: b.weight for b in pool.backends}
    slots = []
    for _ in range(pool.size):
        for name, weight in weights.items():
            credit[name] += weight
        best = max(credit, key=lambda name: credit[name])
        credit[best] -= sum(weights.values())
        slots.append(best)
    return tuple(slots)


def usable(backend: Backend) -> bool:
    """Whether new packets may go there at all, the ramp aside."""
    if backend.flags & abi.BackendFlag.FORCED_DOWN:
        return False
    if backend.flags & abi.BackendFlag.FORCED_UP or backend.health is Health.UP:
        return True
    return backend.health is not Health.DOWN and bool(backend.flags & abi.BackendFlag.ASSUME_UP)


# ---- the hashes of the specification, §4 ----


def prefilter_bucket(where: str) -> int:
    """Which byte of the prefilter speaks for an address."""
    packed = ip_address(where).packed
    if len(packed) == 4:
        return (int.from_bytes(packed, "little") * 0x9E3779B1 & _WORD) >> 16
    a, b = int.from_bytes(packed[:8], "little"), int.from_bytes(packed[8:], "little")
    product = ((a * 0x9E3779B97F4A7C15 & _LONG) ^ b) * 0x9E3779B97F4A7C15
    return (product & _LONG) >> 48


def _mix(h: int, word: int) -> int:
    x = (h ^ word) * 0x9E3779B97F4A7C15 & _LONG
    return x ^ x >> 32


def tuple_hash(
    src: str,
    sport: int,
    dst: str,
    dport: int,
    protocol: int,
    fields: abi.HashFields = abi.HashFields.FIVE_TUPLE,
) -> int:
    """The hash of a tuple: what a first slot and fullnat's and gue's ports come from."""
    source, target = ip_address(src).packed, ip_address(dst).packed
    ports = _swapped(sport) | _swapped(dport) << 16 | protocol << 32
    if fields != abi.HashFields.FIVE_TUPLE:
        target = bytes(len(target))
        ports = 0 if fields == abi.HashFields.SOURCE else ports & ~0xFFFF
    data, h = source + target, 0x6576656E6B65656C
    for at in range(0, len(data), 8):
        h = _mix(h, int.from_bytes(data[at : at + 8], "little"))
    h = _mix(h, ports)
    x = h * 0xD6E8FEB86659FD93 & _LONG
    return x ^ x >> 32


def _swapped(port: int) -> int:
    return port >> 8 | (port & 0xFF) << 8


def slot_of(hashed: int, size: int) -> int:
    return (hashed >> 32) * size >> 32


def ramp_byte(slot: int) -> int:
    """A slot is handed to a starting backend once its ramp has reached this."""
    return (slot * 0x9E3779B1 & _WORD) >> 24


# ---- into the kernel ----


def apply(raw: Raw, instance: Any) -> None:
    """Make the configuration maps of an instance say `raw` and nothing else, with few writes."""
    for name, wanted in raw.items():
        target = getattr(instance.maps, name)
        if name == "prefilter":
            _apply_prefilter(target, wanted)
        elif name in ("tables", "spares"):
            _apply_tables(target, wanted)
        else:
            _apply_map(target, wanted)


def _apply_prefilter(target: Any, wanted: dict[int, int]) -> None:
    kinds = bytearray(abi.Limit.PREFILTER_SIZE)
    for bucket, kind in wanted.items():
        kinds[bucket] = kind
    target.view()[: len(kinds)] = bytes(kinds)


def _apply_tables(target: Any, wanted: dict[int, array[int]]) -> None:
    for index in set(target.indexes()) - wanted.keys():
        target.delete(index)
    for index, slots in wanted.items():
        target.put(index, slots)


def _apply_map(target: Any, wanted: dict[Any, Any]) -> None:
    actual = dict(target.items())
    gone = actual.keys() - wanted.keys()
    if target.array:
        target.put_many((key, type(actual[key])()) for key in gone)
    else:
        target.delete_many(gone)
    target.put_many((k, v) for k, v in wanted.items() if actual.get(k) != v)
