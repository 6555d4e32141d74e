"""What one pool, or one part of a service, says in the maps; and all of them together. Pure.

Each piece follows from its few arguments alone, so that one backend's change makes
few of them anew, however many there are.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from bpf import abi
from reconciler import encode, ids, table
from reconciler.encode import FrontendKey
from reconciler.memo import Same
from reconciler.model import Address, AdminState, Backend, Forward, Pool, Port
from reconciler.parts import Part, PoolKey, backend_hash, members
from reconciler.table import Slots

# Plain integers: arithmetic of enums is slow, and there are many addresses.
SERVICE, TABLE_FIRST = int(abi.AddressKind.SERVICE), int(abi.AddressKind.TABLE_FIRST)
NAT_SOURCE, NAT_BACKEND = int(abi.AddressKind.NAT_SOURCE), int(abi.AddressKind.NAT_BACKEND)
K = TypeVar("K")
V = TypeVar("V")
BackendName = tuple[int, bytes, int]  # hashed name, address, port: another address, another id
FrontendName = tuple[bytes, int, int]  # address, port, protocol
Numbers = Mapping[tuple[str, str], int]  # (pool, backend) -> id
Candidates = frozenset[tuple[int, int]]  # (frontend, backend)


@dataclass(frozen=True, slots=True)
class NextHop:
    """How packets reach an address: out of which interface, and to which neighbour."""

    ifindex: int
    dmac: bytes
    smac: bytes
    mtu: int


@dataclass(frozen=True, slots=True)
class Table:
    """A pool's table before members have ids: what spares and digests are made from."""

    names: tuple[str, ...]
    slots: Slots


class Answer(NamedTuple):
    """Which frontends a reply from a backend's address may answer, and the entry that says so."""

    candidates: Candidates
    entry: abi.Reply


Answers = Mapping[FrontendKey, Answer]
Hops = tuple[NextHop | None, ...]


class Roll(NamedTuple):
    """A pool's backends in the order of their names, in which ids are given."""

    names: tuple[BackendName, ...]
    addresses: tuple[Address, ...]
    draining: tuple[Backend, ...]


def backend_name(pool: str, backend: Backend) -> BackendName:
    return backend_hash(pool, backend.name), backend.address.packed, backend.port


def frontend_name(address: Address, port: Port) -> FrontendName:
    return address.packed, port.number, port.proto


# ---- of a pool


def itself(pool: Pool) -> Pool:
    """Remembered, it is the same object as long as it says the same."""
    return pool


def roll(pool: Pool) -> Roll:
    backends = _in_order(pool)
    return Roll(
        tuple(backend_name(pool.name, backend) for backend in backends),
        tuple(backend.address for backend in backends),
        tuple(backend for backend in backends if backend.state is AdminState.DRAIN),
    )


def found(hops: Same[Mapping[Address, NextHop]], addresses: Sequence[Address]) -> Hops:
    return tuple(map(hops.value.get, addresses))


def numbered(pool: Pool, numbers: Sequence[int]) -> Numbers:
    names = ((pool.name, backend.name) for backend in _in_order(pool))
    return dict(zip(names, numbers, strict=True))


def backends(
    pool: Pool, numbers: Sequence[int], hops: Sequence[NextHop], ends: Mapping[str, int]
) -> dict[int, abi.Backend]:
    """`ends` has the deadline of each that drains."""
    return {
        ids.index(number): _backend(pool, backend, number, hop, ends.get(backend.name, 0))
        for backend, number, hop in zip(_in_order(pool), numbers, hops, strict=True)
    }


def filled(pool: Pool, key: PoolKey, size: int) -> Table:
    chosen = members(pool, key.family)
    if not chosen:
        return Table((), table.Slots("I"))
    names = tuple(backend.name for backend in chosen)
    weights = tuple(backend.weight for backend in chosen)
    return Table(names, table.fill(key.fill, size, names, weights))


def member_ids(made: Table, pool: str, numbers: Numbers) -> tuple[int, ...]:
    return tuple(numbers[pool, name] for name in made.names)


def slots(made: Table, numbers: Sequence[int]) -> Slots:
    return table.named(made.slots, numbers)


def pool_entry(number: int, size: int, name: int) -> abi.Pool:
    return abi.Pool(id=number, size=size, step=table.step(size), name=name)


def _backend(pool: Pool, backend: Backend, number: int, hop: NextHop, end: int) -> abi.Backend:
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
        until=end,
        name=backend_hash(pool.name, backend.name),
    )


def _in_order(pool: Pool) -> list[Backend]:
    return [backend for _, backend in sorted(pool.backends.items())]


# ---- of a part of a service


def frontend_names(part: Part) -> tuple[FrontendName, ...]:
    return tuple(frontend_name(address, port) for address, port in part.frontends)


def service(part: Part, number: int, name: int, pools: Sequence[int]) -> abi.Service:
    said = part.service
    return abi.Service(
        id=number,
        forward=encode.FORWARD[said.forward],
        balance=encode.BALANCE[said.balance.method],
        hash=encode.HASH[said.balance.hash],
        flags=encode.service_flags(said),
        gate=encode.per_tick(said.gate),
        tcp_idle=encode.ticks(said.tcp_idle),
        udp_idle=encode.ticks(said.udp_idle),
        pool_count=len(pools),
        pools=(*pools, *[0] * (abi.Limit.POOLS_PER_SERVICE - len(pools))),
        name=name,
    )


def frontends(part: Part, number: int, numbers: Sequence[int]) -> dict[int, abi.Frontend]:
    return {
        ids.index(frontend): abi.Frontend(
            id=frontend,
            service=number,
            addr=encode.abi_address(address),
            port=port.number,
            proto=port.proto,
            family=address.version,
        )
        for (address, port), frontend in zip(part.frontends, numbers, strict=True)
    }


def marks(part: Part) -> dict[FrontendKey, int]:
    """What else an address is: keys that say so, unless a frontend has them."""
    found: dict[FrontendKey, int] = {}
    for address, port in part.frontends:
        found[encode.key_of(address, 0, 0)] = abi.FrontendMark.MARK
        found[encode.key_of(address, 0, port.proto)] = abi.FrontendMark.MARK
        if part.service.echo:
            found[encode.key_of(address, 0, encode.ICMP[address.version])] = abi.FrontendMark.ECHO
    return found


def keys(part: Part, numbers: Sequence[int]) -> dict[FrontendKey, int]:
    return {
        encode.key_of(address, port.number, port.proto): number
        for (address, port), number in zip(part.frontends, numbers, strict=True)
    }


def answers(
    part: Part, frontends: Sequence[int], pools: Sequence[Pool], numbers: Sequence[Numbers]
) -> Answers:
    if part.service.forward is not Forward.NAT or part.service.direct:
        return {}
    found: dict[FrontendKey, set[tuple[int, int]]] = {}
    for (_, port), frontend in zip(part.frontends, frontends, strict=True):
        for pool, known in zip(pools, numbers, strict=True):
            for backend in members(pool, part.family):
                answers = port.number and (backend.port or port.number)
                key = encode.key_of(backend.address, answers, port.proto)
                found.setdefault(key, set()).add((frontend, known[pool.name, backend.name]))
    return {key: _answer(frozenset(some)) for key, some in found.items()}


def _answer(candidates: Candidates) -> Answer:
    return Answer(candidates, encode.reply(candidates))


def kinds(part: Part, pools: Sequence[Pool], nat_source: Address | None) -> dict[int, int]:
    """The prefilter's buckets."""
    return _together(
        (encode.bucket(address), kind) for address, kind in _kinds(part, pools, nat_source)
    )


def _kinds(
    part: Part, pools: Sequence[Pool], nat_source: Address | None
) -> Iterator[tuple[Address, int]]:
    said = part.service
    table_first = not said.flows and said.forward is not Forward.FULLNAT
    for address, _ in part.frontends:
        yield address, SERVICE
        if table_first:
            yield address, TABLE_FIRST
    if said.forward is Forward.FULLNAT and nat_source is not None:
        yield nat_source, NAT_SOURCE
    if said.forward is Forward.NAT:
        for pool in pools:
            for backend in pool.backends.values():
                yield backend.address, NAT_BACKEND


# ---- of all together


def joined(*pieces: Mapping[K, V]) -> dict[K, V]:
    """Of two pieces that have the same key, the later one counts."""
    whole: dict[K, V] = {}
    for piece in pieces:
        whole.update(piece)
    return whole


def all_kinds(*pieces: Mapping[int, int]) -> dict[int, int]:
    return _together(item for piece in pieces for item in piece.items())


def _together(found: Iterator[tuple[int, int]]) -> dict[int, int]:
    whole: dict[int, int] = {}
    for at, kind in found:
        whole[at] = whole.get(at, 0) | kind
    return whole


def all_answers(*pieces: Answers) -> Answers:
    """Parts that share backends add theirs."""
    whole = joined(*pieces)
    if len(whole) == sum(map(len, pieces)):
        return whole
    found: dict[FrontendKey, Answer] = {}
    for piece in pieces:
        for key, one in piece.items():
            before = found.get(key)
            found[key] = one if before is None else _answer(before.candidates | one.candidates)
    return found


def replies(kind: type[K], whole: Answers) -> dict[K, abi.Reply]:
    return {key: answer.entry for key, answer in whole.items() if isinstance(key, kind)}


def of_family(kind: type[K], whole: Mapping[FrontendKey, V]) -> dict[K, V]:
    return {key: value for key, value in whole.items() if isinstance(key, kind)}
