"""From the configuration to what the maps should say. Pure: no clock, no I/O.

Ids are taken over from what the maps say now, or else are new; everything else
follows from the configuration, the node, and the next hops that were found.
Health has no say here: spare.py adds what depends on it.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from bpf import abi
from reconciler import drain, encode, ids, table
from reconciler.dataplane import State, Where
from reconciler.drain import Policies
from reconciler.encode import FrontendKey
from reconciler.entangle import Replaced, entangled
from reconciler.ids import NoRoom
from reconciler.model import Address, AdminState, Backend, Config, Forward, Node, Pool, Port
from reconciler.parts import (
    Part,
    PoolKey,
    backend_hash,
    members,
    part_hash,
    parts_of,
    pool_hash,
)
from reconciler.table import Slots

CLOSING = 10  # seconds that a closed flow is remembered
REST = 60  # seconds that a released fullnat port rests


@dataclass(frozen=True, slots=True)
class NextHop:
    """How packets reach an address: out of which interface, and to which neighbour."""

    ifindex: int
    dmac: bytes
    smac: bytes
    mtu: int


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the node's kernel says: not configured, not pinned."""

    hops: Mapping[Address, NextHop] = field(default_factory=dict)
    redirect_always: bool = False
    hop_epoch: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """A pool's table before members have ids: what spares and digests are made from."""

    names: tuple[str, ...]
    slots: Slots


@dataclass(frozen=True, slots=True)
class Desired:
    """The maps' content, and which name each id stands for."""

    state: State
    parts: Mapping[int, Part]  # by service id
    pools: Mapping[int, PoolKey]  # by pool id
    tables: Mapping[PoolKey, Table]
    backends: Mapping[tuple[str, str], int]  # (pool, backend) -> id
    drains: Policies


def compile_config(
    config: Config,
    node: Node,
    actual: State,
    around: Surroundings,
    room: Mapping[str, int],
    now: int = 0,
) -> Desired:
    """What the maps should say at tick `now`. NoRoom when they cannot hold it."""
    replaced = Replaced()
    while True:
        desired = _Compiler(config, node, actual, around, room, now, replaced).desired()
        more = entangled(desired.state, actual)
        if more == Replaced() or more | replaced == replaced:
            return desired
        replaced |= more


BackendName = tuple[int, bytes, int]  # hashed name, address, port: another address, another id
FrontendName = tuple[bytes, int, int]  # address, port, protocol


class _Compiler:
    """The steps in their order: names, ids, entries."""

    def __init__(
        self,
        config: Config,
        node: Node,
        actual: State,
        around: Surroundings,
        room: Mapping[str, int],
        now: int,
        replaced: Replaced,
    ) -> None:
        self._config, self._node, self._around = config, node, around
        self._actual, self._room, self._now = actual, room, now
        services = sorted(config.services.items())
        self._parts = [part for _, service in services for part in parts_of(service)]
        self._pool_keys = list(dict.fromkeys(key for part in self._parts for key in part.pools))
        self._pool_names = sorted({key.pool for key in self._pool_keys})
        self._service_ids = self._ids(
            "services",
            Where.SERVICES,
            map(part_hash, self._parts),
            by_name(actual.services),
            replaced.services,
        )
        self._pool_ids = self._ids(
            "pools",
            Where.POOLS,
            map(self._pool_hash, self._pool_keys),
            by_name(actual.pools),
            replaced.pools,
        )
        self._frontend_ids = self._ids(
            "frontends", Where.FRONTENDS, self._frontend_names(), known_frontends(actual)
        )
        known = known_backends(actual)
        self._flushed = self._due(known)
        self._backend_ids = self._ids(
            "backends", Where.BACKENDS, self._backend_names(), known, self._flushed
        )
        self._ids_by_pool = {
            name: {
                backend.name: self._backend_ids[backend_name(name, backend)]
                for backend in config.pools[name].backends.values()
            }
            for name in self._pool_names
        }

    def desired(self) -> Desired:
        tables = {key: self._table(key) for key in self._pool_keys}
        filled = {key: made for key, made in tables.items() if made.names}
        slots = {ids.index(self._pool_id(key)): self._slots(key, filled[key]) for key in filled}
        keys = self._frontend_keys()
        replies = self._replies()
        state = State(
            settings={0: self._settings()},
            backends=self._backends(),
            tables=slots,
            spares=slots,
            pools={ids.index(self._pool_id(key)): self._pool(key) for key in self._pool_keys},
            services=self._services(),
            frontends=self._frontends(),
            replies4={k: v for k, v in replies.items() if isinstance(k, abi.Frontend4Key)},
            replies6={k: v for k, v in replies.items() if isinstance(k, abi.Frontend6Key)},
            prefilter=self._prefilter(),
            frontends4={k: v for k, v in keys.items() if isinstance(k, abi.Frontend4Key)},
            frontends6={k: v for k, v in keys.items() if isinstance(k, abi.Frontend6Key)},
            free=self._actual.free,
        )
        self._check_room(state)
        return Desired(
            state=state,
            parts={self._service_id(part): part for part in self._parts},
            pools={self._pool_id(key): key for key in self._pool_keys},
            tables=filled,
            backends={
                (name, backend.name): self._backend_id(name, backend)
                for name in self._pool_names
                for backend in self._config.pools[name].backends.values()
            },
            drains=Policies(
                {self._pool_hash(key): self._config.pools[key.pool].drain for key in tables},
                self._config.drain,
            ),
        )

    # ---- names and ids ----

    def _ids(
        self,
        what: str,
        where: Where,
        wanted: Iterable[ids.Name],
        known: Mapping[ids.Name, int],
        replaced: Collection[object] = frozenset(),
    ) -> dict[ids.Name, int]:
        free = self._actual.free.get(where, {})
        taken = self._actual[where].keys()
        return ids.assign(what, wanted, known, free, self._room[what], replaced, taken)

    def _pool_hash(self, key: PoolKey) -> int:
        return pool_hash(key, self._node.table_size)

    def _service_id(self, part: Part) -> int:
        return self._service_ids[part_hash(part)]

    def _pool_id(self, key: PoolKey) -> int:
        return self._pool_ids[self._pool_hash(key)]

    def _backend_id(self, pool: str, backend: Backend) -> int:
        return self._ids_by_pool[pool][backend.name]

    def _backend_names(self) -> Iterator[BackendName]:
        for name in self._pool_names:
            for _, backend in sorted(self._config.pools[name].backends.items()):
                yield backend_name(name, backend)

    def _due(self, known: Mapping[BackendName, int]) -> set[BackendName]:
        """Those whose drain ends now: with another id, none of their flows means anything."""
        return {
            name
            for pool, backend in self._draining()
            if (number := known.get(name := backend_name(pool.name, backend)))
            and drain.is_due(self._until(pool, number), self._now)
        }

    def _draining(self) -> Iterator[tuple[Pool, Backend]]:
        for name in self._pool_names:
            pool = self._config.pools[name]
            for backend in pool.backends.values():
                if backend.state is AdminState.DRAIN:
                    yield pool, backend

    def _until(self, pool: Pool, number: int) -> int:
        """The deadline of a backend that drains."""
        before = drain.begun(self._entry(number))
        return drain.deadline(pool.drain, before, self._now)

    def _entry(self, number: int) -> abi.Backend | None:
        """What the maps say of a backend."""
        entry = self._actual.backends.get(ids.index(number))
        return entry if entry is not None and entry.id == number else None

    def _frontend_names(self) -> Iterator[FrontendName]:
        for part in self._parts:
            for address, port in part.frontends:
                yield frontend_name(address, port)

    # ---- entries ----

    def _table(self, key: PoolKey) -> Table:
        chosen = members(self._config.pools[key.pool], key.family)
        if not chosen:
            return Table((), table.Slots("I"))
        names = tuple(backend.name for backend in chosen)
        weights = tuple(backend.weight for backend in chosen)
        return Table(names, table.fill(key.fill, self._node.table_size, names, weights))

    def _slots(self, key: PoolKey, made: Table) -> Slots:
        pool = self._config.pools[key.pool]
        return table.named(
            made.slots, [self._backend_id(key.pool, pool.backends[name]) for name in made.names]
        )

    def _pool(self, key: PoolKey) -> abi.Pool:
        size = self._node.table_size
        return abi.Pool(
            id=self._pool_id(key), size=size, step=table.step(size), name=self._pool_hash(key)
        )

    def _backends(self) -> dict[int, abi.Backend]:
        entries = (
            self._backend(self._config.pools[name], backend)
            for name in self._pool_names
            for backend in self._config.pools[name].backends.values()
        )
        return {ids.index(entry.id): entry for entry in entries}

    def _backend(self, pool: Pool, backend: Backend) -> abi.Backend:
        number = self._backend_id(pool.name, backend)
        hop = self._hop(number, backend.address)
        return abi.Backend(
            id=number,
            ifindex=hop.ifindex,
            addr=encode.abi_address(backend.address),
            port=backend.port,
            mtu=hop.mtu,
            weight=backend.weight,
            family=backend.address.version,
            flags=encode.backend_flags(pool, backend),
            dmac=tuple(hop.dmac),
            smac=tuple(hop.smac),
            until=self._ends(pool, backend, number),
            name=backend_hash(pool.name, backend.name),
        )

    def _ends(self, pool: Pool, backend: Backend, number: int) -> int:
        if backend.state is not AdminState.DRAIN:
            return 0
        if backend_name(pool.name, backend) in self._flushed:
            return drain.OVER
        return self._until(pool, number)

    def _hop(self, number: int, address: Address) -> NextHop:
        """What was found; else what the maps have: silence of a neighbour proves nothing."""
        found = self._around.hops.get(address)
        if found:
            return found
        entry = self._entry(number)
        if entry is None:
            return NextHop(0, bytes(6), bytes(6), 0)
        return NextHop(entry.ifindex, bytes(entry.dmac), bytes(entry.smac), entry.mtu)

    def _services(self) -> dict[int, abi.Service]:
        entries = map(self._service, self._parts)
        return {ids.index(entry.id): entry for entry in entries}

    def _service(self, part: Part) -> abi.Service:
        service = part.service
        pools = [self._pool_id(key) for key in part.pools]
        return abi.Service(
            id=self._service_id(part),
            forward=encode.FORWARD[service.forward],
            balance=encode.BALANCE[service.balance.method],
            hash=encode.HASH[service.balance.hash],
            flags=encode.service_flags(service),
            gate=encode.per_tick(service.gate),
            tcp_idle=encode.ticks(service.tcp_idle),
            udp_idle=encode.ticks(service.udp_idle),
            pool_count=len(pools),
            pools=(*pools, *[0] * (abi.Limit.POOLS_PER_SERVICE - len(pools))),
            name=part_hash(part),
        )

    def _frontends(self) -> dict[int, abi.Frontend]:
        entries = (
            abi.Frontend(
                id=self._frontend_ids[frontend_name(address, port)],
                service=self._service_id(part),
                addr=encode.abi_address(address),
                port=port.number,
                proto=port.proto,
                family=address.version,
            )
            for part in self._parts
            for address, port in part.frontends
        )
        return {ids.index(entry.id): entry for entry in entries}

    def _frontend_keys(self) -> dict[FrontendKey, int]:
        """Frontends, and the markers that say what else an address is."""
        keys: dict[FrontendKey, int] = {}
        for part in self._parts:
            for address, port in part.frontends:
                keys[encode.key_of(address, 0, 0)] = abi.FrontendMark.MARK
                keys.setdefault(encode.key_of(address, 0, port.proto), abi.FrontendMark.MARK)
                if part.service.echo:
                    keys[encode.key_of(address, 0, encode.ICMP[address.version])] = (
                        abi.FrontendMark.ECHO
                    )
                number = self._frontend_ids[frontend_name(address, port)]
                keys[encode.key_of(address, port.number, port.proto)] = number
        return keys

    def _replies(self) -> dict[FrontendKey, abi.Reply]:
        """Which frontends a reply from a backend's address may answer."""
        found: dict[FrontendKey, set[tuple[int, int]]] = {}
        for part in self._parts:
            if part.service.forward is Forward.NAT and not part.service.direct:
                for address, port in part.frontends:
                    frontend = self._frontend_ids[frontend_name(address, port)]
                    for pool, backend in self._members(part):
                        answers = port.number and (backend.port or port.number)
                        key = encode.key_of(backend.address, answers, port.proto)
                        number = self._backend_id(pool, backend)
                        found.setdefault(key, set()).add((frontend, number))
        return {key: encode.reply(candidates) for key, candidates in found.items()}

    def _members(self, part: Part) -> Iterator[tuple[str, Backend]]:
        for key in part.pools:
            for backend in members(self._config.pools[key.pool], key.family):
                yield key.pool, backend

    def _prefilter(self) -> dict[int, int]:
        kinds: dict[int, int] = {}
        for address, kind in self._kinds():
            kinds[encode.bucket(address)] = kinds.get(encode.bucket(address), 0) | kind
        return kinds

    def _kinds(self) -> Iterator[tuple[Address, abi.AddressKind]]:
        for part in self._parts:
            service = part.service
            table_first = not service.flows and service.forward is not Forward.FULLNAT
            for address, _ in part.frontends:
                yield address, abi.AddressKind.SERVICE
                if table_first:
                    yield address, abi.AddressKind.TABLE_FIRST
            if service.forward is Forward.FULLNAT:
                yield self._node.nat_source[part.family], abi.AddressKind.NAT_SOURCE
            if service.forward is Forward.NAT:
                for key in part.pools:
                    for backend in self._config.pools[key.pool].backends.values():
                        yield backend.address, abi.AddressKind.NAT_BACKEND

    def _settings(self) -> abi.Settings:
        node, around = self._node, self._around
        flags = abi.SettingFlag.REDIRECT_ALWAYS if around.redirect_always else 0
        return abi.Settings(
            flags=flags,
            sample_mask=(node.latency_sample - 1) & 0xFFFFFFFF,
            hop_epoch=around.hop_epoch,
            closing=encode.ticks(CLOSING),
            rest=encode.ticks(REST),
            icmp_rate=encode.per_tick(node.icmp_rate),
            gue_port=node.gue_port,
            port_low=node.nat_ports[0],
            port_high=node.nat_ports[1],
            tunnel_source4=encode.abi_address(node.tunnel_source.get(4)),
            tunnel_source6=encode.abi_address(node.tunnel_source.get(6)),
            nat_source4=encode.abi_address(node.nat_source.get(4)),
            nat_source6=encode.abi_address(node.nat_source.get(6)),
        )

    def _check_room(self, state: State) -> None:
        """Before the first write: hash maps hold more than the entries with an id."""
        for where, what in (
            (Where.FRONTENDS4, "frontends"),
            (Where.FRONTENDS6, "frontends"),
            (Where.REPLIES4, "backends"),
            (Where.REPLIES6, "backends"),
        ):
            together = len(state[where].keys() | self._actual[where].keys())
            if together > self._room[what]:
                raise NoRoom(what, together, self._room[what])


def backend_name(pool: str, backend: Backend) -> BackendName:
    return backend_hash(pool, backend.name), backend.address.packed, backend.port


def frontend_name(address: Address, port: Port) -> FrontendName:
    return address.packed, port.number, port.proto


def by_name(entries: Mapping[int, abi.Service] | Mapping[int, abi.Pool]) -> dict[int, int]:
    return {entry.name: entry.id for entry in entries.values()}


def known_backends(actual: State) -> dict[BackendName, int]:
    return {
        (entry.name, encode.address_bytes(entry.addr, entry.family), entry.port): entry.id
        for entry in actual.backends.values()
    }


def known_frontends(actual: State) -> dict[FrontendName, int]:
    return {
        (encode.address_bytes(entry.addr, entry.family), entry.port, entry.proto): entry.id
        for entry in actual.frontends.values()
    }
