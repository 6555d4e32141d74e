"""From the configuration to what the maps should say. Pure: no clock, no I/O.

Ids are taken over from what the maps say now, or else are new; everything else
follows from the configuration, the node, and the next hops that were found.
Health has no say here: spare.py adds what depends on it.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from bpf import abi
from reconciler import drain, encode, ids, pieces
from reconciler.dataplane import State, Where
from reconciler.drain import Policies
from reconciler.entangle import Replaced, entangled
from reconciler.ids import NoRoom
from reconciler.memo import Memo, Same
from reconciler.model import Address, Config, Forward, Node, Service
from reconciler.parts import Part, PoolKey, part_hash, parts_of, pool_hash
from reconciler.pieces import BackendName, FrontendName, NextHop, Numbers, Table
from reconciler.probing import probes
from reconciler.ways import Name

CLOSING = 10  # seconds that a closed flow is remembered
REST = 60  # seconds that a released fullnat port rests
NO_HOP = NextHop(0, bytes(6), bytes(6), 0)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the node's kernel says: not configured, not pinned."""

    hops: Mapping[Address, NextHop] = field(default_factory=dict)
    redirect_always: bool = False
    hop_epoch: int = 0


@dataclass(frozen=True, slots=True)
class Desired:
    """The maps' content, and which name each id stands for."""

    state: State
    parts: Mapping[int, Part]  # by service id
    pools: Mapping[int, PoolKey]  # by pool id
    tables: Mapping[PoolKey, Table]
    members: Mapping[PoolKey, tuple[int, ...]]  # ids of those that a table names, in its order
    backends: Mapping[tuple[str, str], int]  # (pool, backend) -> id
    drains: Policies
    marks: Mapping[Name, int] = field(default_factory=dict)  # of probes


def _as_it_is(desired: Desired) -> Desired:
    return desired


def compile_config(
    config: Config,
    node: Node,
    actual: State,
    around: Surroundings,
    room: Mapping[str, int],
    now: int = 0,
    memo: Memo | None = None,
    forced: Callable[[Desired], Desired] = _as_it_is,
) -> Desired:
    """What the maps should say at tick `now`. NoRoom when they cannot hold it.

    With the memo of the last time, what follows from what has not changed is not made anew.
    `forced` adds what operators force: whether anyone is left to choose depends on it.
    """
    memo = memo or Memo()
    replaced = Replaced()
    while True:
        compiler = _Compiler(config, node, actual, around, room, now, replaced, memo)
        desired = forced(compiler.desired())
        more = entangled(desired.state, actual)
        if more == Replaced() or more | replaced == replaced:
            return desired
        replaced |= more


class _Compiler:
    """The steps in their order: names, ids, pieces, and all of them together."""

    def __init__(
        self,
        config: Config,
        node: Node,
        actual: State,
        around: Surroundings,
        room: Mapping[str, int],
        now: int,
        replaced: Replaced,
        memo: Memo,
    ) -> None:
        self._config, self._node, self._around = config, node, around
        self._actual, self._room, self._now = actual, room, now
        self._memo, self._of, self._hops = memo, memo.of, Same(around.hops)
        services = sorted(config.services.items())
        self._parts = list(
            chain.from_iterable(self._of(_parts, name, service) for name, service in services)
        )
        self._pool_keys = list(dict.fromkeys(key for part in self._parts for key in part.pools))
        self._pool_names = sorted({key.pool for key in self._pool_keys})
        self._pools = {
            name: self._of(pieces.itself, name, config.pools[name]) for name in self._pool_names
        }
        self._part_hashes = [part_hash(part) for part in self._parts]
        self._pool_hashes = {key: pool_hash(key, node.table_size) for key in self._pool_keys}
        self._probes = self._of(probes, "", config, node, actual.probes)
        self._identify(replaced)

    # ---- names and ids ----

    def _identify(self, replaced: Replaced) -> None:
        actual, of = self._actual, self._of
        self._service_ids = self._ids(
            Where.SERVICES,
            self._part_hashes,
            of(by_name, Where.SERVICES, actual.services),
            replaced.services,
        )
        self._pool_ids = self._ids(
            Where.POOLS,
            self._pool_hashes.values(),
            of(by_name, Where.POOLS, actual.pools),
            replaced.pools,
        )
        self._frontend_names = [of(pieces.frontend_names, _name(p), p) for p in self._parts]
        self._frontend_ids = self._ids(
            Where.FRONTENDS,
            chain.from_iterable(self._frontend_names),
            of(_frontends_known, "", actual.frontends),
        )
        known = of(_named, "", Same(self._memo.each(_named_backend, "", actual.backends)))
        self._rolls = {name: of(pieces.roll, name, pool) for name, pool in self._pools.items()}
        self._flushed = self._due(known)
        names = chain.from_iterable(roll.names for roll in self._rolls.values())
        self._backend_ids = self._ids(Where.BACKENDS, names, known, self._flushed)
        self._numbers = {
            name: tuple(map(self._backend_ids.__getitem__, roll.names))
            for name, roll in self._rolls.items()
        }

    def _ids(
        self,
        where: Where,
        wanted: Iterable[ids.Name],
        known: Mapping[ids.Name, int],
        replaced: Collection[object] = frozenset(),
    ) -> dict[ids.Name, int]:
        what, free = where.value, self._actual.free.get(where, {})
        taken = self._actual[where].keys()
        return ids.assign(what, wanted, known, free, self._room[what], replaced, taken)

    def _due(self, known: Mapping[BackendName, int]) -> set[BackendName]:
        """Those whose drain ends now: with another id, none of their flows means anything."""
        return {
            name
            for pool, roll in self._rolls.items()
            for backend in roll.draining
            if (number := known.get(name := pieces.backend_name(pool, backend)))
            and drain.is_due(self._until(pool, number), self._now)
        }

    def _until(self, pool: str, number: int) -> int:
        """The deadline of a backend that drains."""
        before = drain.begun(self._entry(number))
        return drain.deadline(self._pools[pool].drain, before, self._now)

    def _entry(self, number: int) -> abi.Backend | None:
        """What the maps say of a backend."""
        entry = self._actual.backends.get(ids.index(number))
        return entry if entry is not None and entry.id == number else None

    # ---- entries ----

    def desired(self) -> Desired:
        of, pools = self._of, self._pools
        numbers = {
            name: of(pieces.numbered, name, pool, self._numbers[name])
            for name, pool in pools.items()
        }
        tables = {
            key: of(pieces.filled, key, pools[key.pool], key, self._node.table_size)
            for key in self._pool_keys
        }
        filled = {key: made for key, made in tables.items() if made.names}
        members = {
            key: of(pieces.member_ids, key, made, key.pool, numbers[key.pool])
            for key, made in filled.items()
        }
        state = self._state(numbers, filled, members)
        self._check_room(state)
        return Desired(
            state=state,
            parts=dict(
                zip(map(self._service_ids.__getitem__, self._part_hashes), self._parts, strict=True)
            ),
            pools={self._pool_id(key): key for key in self._pool_keys},
            tables=filled,
            members=members,
            backends=of(pieces.joined, "numbers", *numbers.values()),
            drains=Policies(
                {name: pools[key.pool].drain for key, name in self._pool_hashes.items()},
                self._config.drain,
            ),
            marks=self._probes.marks,
        )

    def _state(
        self,
        numbers: Mapping[str, Numbers],
        filled: Mapping[PoolKey, Table],
        members: Mapping[PoolKey, tuple[int, ...]],
    ) -> State:
        of = self._of
        slots = {
            ids.index(self._pool_id(key)): of(pieces.slots, key, made, members[key])
            for key, made in filled.items()
        }
        keys = self._keys()
        answers = self._answers(numbers)
        return State(
            settings={0: self._settings()},
            probes=self._probes.entries,
            backends=of(pieces.joined, Where.BACKENDS, *map(self._backends, self._pool_names)),
            tables=slots,
            spares=slots,
            pools={ids.index(self._pool_id(key)): self._pool(key) for key in self._pool_keys},
            services={
                ids.index(self._service_ids[name]): self._service(part, name)
                for part, name in zip(self._parts, self._part_hashes, strict=True)
            },
            frontends=of(pieces.joined, Where.FRONTENDS, *self._each_frontends()),
            replies4=of(pieces.replies, Where.REPLIES4, abi.Frontend4Key, answers),
            replies6=of(pieces.replies, Where.REPLIES6, abi.Frontend6Key, answers),
            prefilter=self._prefilter(),
            frontends4=of(pieces.of_family, Where.FRONTENDS4, abi.Frontend4Key, keys),
            frontends6=of(pieces.of_family, Where.FRONTENDS6, abi.Frontend6Key, keys),
            free=self._actual.free,
        )

    def _pool_id(self, key: PoolKey) -> int:
        return self._pool_ids[self._pool_hashes[key]]

    def _pool(self, key: PoolKey) -> abi.Pool:
        number, name = self._pool_id(key), self._pool_hashes[key]
        return self._of(pieces.pool_entry, key, number, self._node.table_size, name)

    def _backends(self, name: str) -> dict[int, abi.Backend]:
        numbers, roll = self._numbers[name], self._rolls[name]
        found = self._of(pieces.found, name, self._hops, roll.addresses)
        hops = found if all(found) else tuple(map(self._known_hop, numbers, found))
        pool, ends = self._pools[name], self._ends(name)
        return self._of(pieces.backends, name, pool, numbers, hops, ends)

    def _known_hop(self, number: int, found: NextHop | None) -> NextHop:
        """What was found; else what the maps have: silence of a neighbour proves nothing."""
        entry = None if found else self._entry(number)
        if entry is None:
            return found or NO_HOP
        return NextHop(entry.ifindex, bytes(entry.dmac), bytes(entry.smac), entry.mtu)

    def _ends(self, pool: str) -> dict[str, int]:
        """Deadlines of those that drain."""
        ends = {}
        for backend in self._rolls[pool].draining:
            name = pieces.backend_name(pool, backend)
            until = self._until(pool, self._backend_ids[name])
            ends[backend.name] = drain.OVER if name in self._flushed else until
        return ends

    def _service(self, part: Part, name: int) -> abi.Service:
        pools = tuple(map(self._pool_id, part.pools))
        return self._of(pieces.service, _name(part), part, self._service_ids[name], name, pools)

    def _each_frontends(self) -> Iterable[dict[int, abi.Frontend]]:
        for part, name, numbers in self._with_frontends():
            number = self._service_ids[name]
            yield self._of(pieces.frontends, _name(part), part, number, numbers)

    def _with_frontends(self) -> Iterable[tuple[Part, int, tuple[int, ...]]]:
        """Each part with its hashed name and the ids of its frontends."""
        get = self._frontend_ids.__getitem__
        numbers = (tuple(map(get, names)) for names in self._frontend_names)
        return zip(self._parts, self._part_hashes, numbers, strict=True)

    def _keys(self) -> dict[encode.FrontendKey, int]:
        """Frontends, and the markers that say what else an address is."""
        of = self._of
        marks = [of(pieces.marks, _name(part), part) for part in self._parts]
        exact = [
            of(pieces.keys, _name(part), part, numbers)
            for part, _, numbers in self._with_frontends()
        ]
        return of(pieces.joined, "keys", *marks, *exact)

    def _answers(self, numbers: Mapping[str, Numbers]) -> pieces.Answers:
        each = []
        for part, _, frontends in self._with_frontends():
            pools = tuple(self._pools[key.pool] for key in part.pools)
            known = tuple(numbers[key.pool] for key in part.pools)
            each.append(self._of(pieces.answers, _name(part), part, frontends, pools, known))
        return self._of(pieces.all_answers, "", *each)

    def _prefilter(self) -> dict[int, int]:
        each = []
        for part in self._parts:
            pools = tuple(self._pools[key.pool] for key in part.pools)
            fullnat = part.service.forward is Forward.FULLNAT
            source = self._node.nat_source[part.family] if fullnat else None
            each.append(self._of(pieces.kinds, _name(part), part, pools, source))
        return self._of(pieces.all_kinds, "", *each)

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
            desired, present = state[where], self._actual[where]
            if len(desired) + len(present) <= self._room[what]:
                continue
            if (needed := _together(desired, present)) > self._room[what]:
                lacking = desired.keys() - present.keys()
                raise NoRoom(what, needed, self._room[what], lacking)


def _together(desired: Mapping[Any, Any], actual: Mapping[Any, Any]) -> int:
    """How many keys there are in both."""
    if desired == actual:
        return len(desired)
    return len(actual) + sum(key not in actual for key in desired)


def _parts(service: Service) -> tuple[Part, ...]:
    return tuple(parts_of(service))


def _name(part: Part) -> tuple[str, int]:
    return part.service.name, part.family


def known_backends(actual: State) -> dict[BackendName, int]:
    return dict(map(_named_backend, actual.backends.values()))


def known_frontends(actual: State) -> dict[FrontendName, int]:
    return _frontends_known(actual.frontends)


def by_name(entries: Mapping[int, abi.Service] | Mapping[int, abi.Pool]) -> dict[int, int]:
    return {entry.name: entry.id for entry in entries.values()}


def _named(entries: Same[Mapping[int, tuple[BackendName, int]]]) -> dict[BackendName, int]:
    return dict(entries.value.values())


def _named_backend(entry: abi.Backend) -> tuple[BackendName, int]:
    return (entry.name, encode.address_bytes(entry.addr, entry.family), entry.port), entry.id


def _frontends_known(entries: Mapping[int, abi.Frontend]) -> dict[FrontendName, int]:
    return {
        (encode.address_bytes(entry.addr, entry.family), entry.port, entry.proto): entry.id
        for entry in entries.values()
    }
