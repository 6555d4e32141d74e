"""What the program remembers that could matter to a packet: which entries of the flow maps. Pure.

Whoever asks brings the reading. A shadow that is given these entries knows of this packet what
the live program knows.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bpf import abi
from reconciler import choice, encode, ids
from reconciler.dataplane import State
from reconciler.model import Address, Packet

FlowKey = abi.Flow4Key | abi.Flow6Key
Return = abi.Return4 | abi.Return6
Reader = Callable[[str, Any], Any]  # the map's name and a key: the entry, or None
IPV4 = 4


@dataclass(frozen=True, slots=True)
class Memory:
    """Entries by map and key."""

    entries: Mapping[str, Mapping[Any, Any]] = field(default_factory=dict)

    def get(self, name: str, key: Any) -> Any:  # noqa: ANN401 -- an entry of any map
        return self.entries.get(name, {}).get(key)


@dataclass(frozen=True, slots=True)
class Ends:
    """Two ends of a conversation, as whoever sends sees them."""

    source: Address
    sport: int
    target: Address
    dport: int
    proto: int

    @classmethod
    def of(cls, packet: Packet) -> "Ends":
        return cls(packet.source, packet.sport, packet.destination, packet.dport, packet.proto)

    @property
    def version(self) -> int:
        return self.source.version

    def key(self, side: abi.Side = abi.Side.CLIENT) -> FlowKey:
        rest = {"sport": self.sport, "dport": self.dport, "proto": self.proto, "side": side}
        if self.version == IPV4:
            return abi.Flow4Key(saddr=int(self.source), daddr=int(self.target), **rest)
        source, target = encode.abi_address(self.source), encode.abi_address(self.target)
        return abi.Flow6Key(saddr=source, daddr=target, **rest)


def ends_of(key: FlowKey) -> Ends:
    """The conversation that an entry of a flow map is about."""
    if isinstance(key, abi.Flow4Key):
        source, target = (encode.address(_four(part), 4) for part in (key.saddr, key.daddr))
    else:
        source, target = (encode.address(part, 6) for part in (key.saddr, key.daddr))
    return Ends(source, key.sport, target, key.dport, key.proto)


def _four(number: int) -> abi.Address:
    return abi.Address(v4=number)


def gather(read: Reader, state: State, packet: Packet) -> Memory:
    found: dict[str, dict[Any, Any]] = {}

    def want(name: str, key: Any) -> Any:  # noqa: ANN401
        entry = read(name, key)
        if entry is not None:
            found.setdefault(name, {})[key] = entry
        return entry

    ends = Ends.of(packet)
    _client(want, state, ends)
    for entry in _replies(want, ends):
        _client(want, state, ends_of(entry.client))
        want("hops", entry.flow.hop)
    if service := choice.service_of(state, packet):
        want("service_state", ids.index(service.id))
        for reply in _possible_replies(state, service, packet):
            list(_replies(want, reply))
    return Memory(found)


def _client(want: Reader, state: State, ends: Ends) -> None:
    """A client's own entries, and those for replies to them."""
    version = ends.version
    flow = want(f"flows{version}", ends.key())
    opening = want(f"opening{version}", ends.key())
    for known in (flow, opening.flow if opening is not None else None):
        reply = reply_of(state, ends, known) if known is not None else None
        if reply is not None:
            list(_replies(want, reply))


def _replies(want: Reader, ends: Ends) -> Iterator[Return]:
    for name, key in reply_places(ends):
        if entry := want(name, key):
            yield entry


def reply_places(ends: Ends) -> tuple[tuple[str, FlowKey], tuple[str, FlowKey]]:
    """Where an entry for replies may be, in the order in which the program looks."""
    return (
        (f"returns{ends.version}", ends.key()),
        (f"opening{ends.version}", ends.key(abi.Side.BACKEND)),
    )


# ---- tuples of replies


def reply_of(state: State, client: Ends, flow: abi.Flow) -> Ends | None:
    """Of a flow that is known, if what it names is there."""
    backend = state.backends.get(ids.index(flow.backend))
    found = choice.standing(state, flow.frontend)
    if backend is None or backend.id != flow.backend or found is None:
        return None
    return reply_to(state, client, found, backend, flow.hop)


def reply_to(
    state: State,
    client: Ends,
    found: tuple[abi.Frontend, abi.Service],
    backend: abi.Backend,
    own_port: int,
) -> Ends:
    """Of the flow that this client has, or would have, with the backend."""
    frontend, service = found
    port = backend.port if backend.port and frontend.port else client.dport
    source = encode.address(backend.addr, backend.family)
    if service.forward == abi.Forward.FULLNAT:
        return Ends(source, port, nat_source(state, client.version), own_port, client.proto)
    return Ends(source, port, client.source, client.sport, client.proto)


def nat_source(state: State, version: int) -> Address:
    settings = state.settings.get(0, abi.Settings())
    own = settings.nat_source4 if version == IPV4 else settings.nat_source6
    return encode.address(own, version)


def own_ports(state: State, packet: Packet) -> Iterator[int]:
    """fullnat: the source ports that are tried, in their order."""
    settings = state.settings.get(0, abi.Settings())
    size = settings.port_high - settings.port_low + 1
    if size <= 0:
        return
    hashed = choice.tuple_hash(packet, abi.HashFields.FIVE_TUPLE) & 0xFFFFFFFF
    for i in range(abi.Limit.PORT_TRIES):
        yield settings.port_low + (hashed + i) % size


def _possible_replies(state: State, service: abi.Service, packet: Packet) -> Iterable[Ends]:
    found = choice.frontend_of(state, packet)
    if found is None or service.forward not in (abi.Forward.NAT, abi.Forward.FULLNAT):
        return
    ports = list(own_ports(state, packet)) if service.forward == abi.Forward.FULLNAT else [0]
    for number in sorted(members(state, service)):
        backend = state.backends.get(ids.index(number))
        if backend is not None and backend.family == packet.source.version:
            for port in ports:
                yield reply_to(state, Ends.of(packet), found, backend, port)


def members(state: State, service: abi.Service) -> set[int]:
    """Every id in its pools' tables."""
    indexes = [ids.index(number) for number in service.pools[: service.pool_count]]
    tables = [state.tables.get(at, ()) for at in indexes]
    return {number for table in tables for number in table}
