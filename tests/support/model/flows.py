"""What is remembered of a packet, by docs/packet-path.md §3, §5 and §6: flows, half-open flows,
and the entries that replies find. Chooses no backend and writes no byte of a frame.
"""

from dataclasses import dataclass, replace

from bpf.abi import BackendFlag, Balance, FlowState, Forward, Limit
from tests.support.model import hashing
from tests.support.model.config import STATELESS, Backend, Config, Frontend, Service
from tests.support.model.parse import ADDRESS_SIZE, FIN, RST, TCP, Packet, Tuple
from tests.support.model.state import Flow, Gate, Memory, Return

FLOWS, OPENING = "flows", "opening"  # by the client's tuple
RETURNS, ANSWERING = "returns", "answering"  # by the backend's: `answering` while half open


class Stale(Exception):
    """The entry counts as not there: its place for replies is another client's."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where a flow's packets belong."""

    service: Service
    frontend: Frontend
    backend: Backend


def age(flow: Flow, now: int) -> int:
    """In ticks, signed: another CPU may be ahead."""
    return ((now - flow.seen + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)


def can_do_without(service: Service) -> bool:
    """Whether every node, and every packet, finds the backend by the hash alone."""
    return service.balance == Balance.HASH and service.forward in STATELESS


def needs_opening(service: Service) -> bool:
    return service.keeps_flows and not can_do_without(service)


def reply_tuple(config: Config, route: Route, client: Tuple, port: int) -> Tuple:
    """The tuple of the backend's packets; `port` is fullnat's own."""
    keeps_port = not route.backend.port or not route.frontend.port
    sport = client.dport if keeps_port else route.backend.port
    target, dport = client.source, client.sport
    if route.service.forward == Forward.FULLNAT:
        target, dport = config.nat_source(client.family), port
    return Tuple(route.backend.address, target, sport, dport, client.protocol)


class Flows:
    """The flow maps, as one packet at one time sees and changes them."""

    def __init__(self, config: Config, memory: Memory, now: int) -> None:
        self._config = config
        self._memory = memory
        self._now = now

    def _age(self, flow: Flow) -> int:
        return age(flow, self._now)

    # ---- the client's side ----

    def route(self, flow: Flow) -> Route | None:
        """What a flow names, if all of it is still there."""
        frontend = self._config.frontend(flow.frontend)
        backend = self._config.backend(flow.backend)
        if frontend is None or backend is None:
            return None
        return Route(self._config.service_of(frontend), frontend, backend)

    def find(self, store: str, client: Tuple, *, syn: bool = False) -> tuple[Flow, Route] | None:
        """The entry of a tuple, if it may be used for such a packet."""
        flow = self._memory.flow(store, client)
        route = self.route(flow) if flow else None
        if flow is None or route is None or self._idle(flow, route, client):
            return None
        if self._left_down(route, syn=syn) or (syn and not self._takes_syn(flow, route)):
            return None
        return flow, route

    def _idle(self, flow: Flow, route: Route, client: Tuple) -> bool:
        limit = route.service.idle(client.protocol)
        if flow.closed:
            limit = self._config.settings.closing
        return self._age(flow) > limit

    def _left_down(self, route: Route, *, syn: bool) -> bool:
        keeps = route.service.keeps_down and not syn
        return self._config.down_for_flows(route.backend) and not keeps

    def _takes_syn(self, flow: Flow, route: Route) -> bool:
        return not flow.closed and not route.backend.flags & BackendFlag.NO_NEW

    def forget(self, store: str, client: Tuple) -> None:
        """Delete an entry of the client's side, and no longer count it."""
        flow = self._memory.flow(store, client)
        if flow is None:
            return
        self._memory.delete(store, client)
        if not flow.closed:
            self._memory.more_live(flow.backend, -1)

    # ---- the backend's side ----

    def _yields(self, entry: Return) -> bool:
        """Whether anyone may overwrite an entry for replies."""
        if self._config.frontend(entry.flow.frontend) is None:
            return True
        if self._config.backend(entry.flow.backend) is None:
            return True
        return entry.flow.closed and self._age(entry.flow) > self._config.settings.rest

    def taken(self, reply: Tuple, client: Tuple) -> bool:
        """Whether another client's replies come on this tuple."""
        entries = (self._memory.answer(store, reply) for store in (RETURNS, ANSWERING))
        return any(e is not None and e.client != client and not self._yields(e) for e in entries)

    def answer(self, reply: Tuple, forward: Forward) -> tuple[str, Return] | None:
        """The entry that a reply finds, and where it is."""
        for store in (RETURNS, ANSWERING):
            entry = self._memory.answer(store, reply)
            frontend = self._config.frontend(entry.flow.frontend) if entry else None
            if entry and frontend and self._config.service_of(frontend).forward == forward:
                return store, entry
        return None

    def _write_answer(self, store: str, reply: Tuple, entry: Return) -> None:
        """Only one of the two maps may speak for a reply: `returns` would be read first."""
        self._memory.delete(RETURNS if store == ANSWERING else ANSWERING, reply)
        self._memory.put(store, reply, entry)

    # ---- new flows ----

    def pass_gate(self, service: Service) -> bool:
        """Whether the service may have one more new flow in this tick; counts it if so."""
        if not service.gate:
            return True
        gate: Gate = self._memory.get("gate", service.id) or Gate()
        taken = gate.taken if gate.tick == self._now else 0
        if taken >= service.gate:
            return False
        self._memory.put("gate", service.id, Gate(self._now, taken + 1))
        return True

    def free_port(self, route: Route, client: Tuple) -> int | None:
        """The source port of a new fullnat flow."""
        low, high = self._config.settings.port_low, self._config.settings.port_high
        size = high - low + 1
        start = (hashing.tuple_hash(client) & 0xFFFFFFFF) % size
        for k in range(Limit.PORT_TRIES):
            port = low + (start + k) % size
            if not self.taken(reply_tuple(self._config, route, client, port), client):
                return port
        return None

    def learn(self, store: str, route: Route, client: Tuple, port: int = 0) -> None:
        """Write a new flow, half open or not, and where it translates the entry for replies."""
        flow = Flow(route.backend.id, route.frontend.id, self._now, port)
        self._memory.put(store, client, flow)
        if route.service.translates:
            reply = reply_tuple(self._config, route, client, port)
            entry = Return(client, replace(flow, port=0))
            self._write_answer(ANSWERING if store == OPENING else RETURNS, reply, entry)
        self._memory.more_live(route.backend.id, 1)
        self._memory.count("service_counts", route.service.id, flows=1)
        self._memory.count("backend_counts", route.backend.id, flows=1)

    # ---- packets of known flows ----

    def refresh(self, flow: Flow, route: Route, packet: Packet) -> None:
        """A packet of a known flow was seen; Stale when replies could no longer come back."""
        client = packet.tuple
        new = flow.at(self._now).marked(_marks(packet, "client"), route.service)
        if route.service.translates:
            self._assert(flow, new, route, client)
        self._replace(FLOWS, client, flow, new)

    def _assert(self, flow: Flow, new: Flow, route: Route, client: Tuple) -> None:
        reply = reply_tuple(self._config, route, client, flow.port)
        entry = self._memory.answer(RETURNS, reply)
        ours = entry is not None and entry.client == client
        if flow.seen != self._now:
            if self.taken(reply, client):
                raise Stale
            if entry is None or not ours:
                fresh = Return(client, replace(new, port=0))
                self._write_answer(RETURNS, reply, fresh)
                return
        if entry is not None and ours:
            marked = entry.flow.marked(new.state, route.service)
            seen = self._now if flow.seen != self._now else marked.seen
            self._memory.put(RETURNS, reply, Return(client, marked.at(seen)))

    def _replace(self, store: str, client: Tuple, old: Flow, new: Flow) -> None:
        if new != old:
            self._memory.put(store, client, new)
        if new.closed and not old.closed:
            self._memory.more_live(old.backend, -1)

    # ---- packets of half-open flows ----

    def open(self, flow: Flow, route: Route, packet: Packet) -> None:
        """A packet of a half-open flow; Stale as above."""
        client = packet.tuple
        reply = reply_tuple(self._config, route, client, flow.port)
        if packet.ack:
            self._promote(flow, route, client, reply)
        elif packet.flags & RST:
            self.forget(OPENING, client)
            self._drop_answering(reply, client)
        else:
            new = flow.at(self._now).marked(_marks(packet, "client"), route.service)
            self._replace(OPENING, client, flow, new)
            self._mark_answering(reply, client, new, route.service)

    def _promote(self, flow: Flow, route: Route, client: Tuple, reply: Tuple) -> None:
        if route.service.translates:
            if self.taken(reply, client):
                raise Stale
            half = self._memory.answer(ANSWERING, reply)
            answer = half.flow if half and half.client == client else replace(flow, port=0)
            self._drop_answering(reply, client)
            self._write_answer(RETURNS, reply, Return(client, answer.at(self._now)))
        self._memory.delete(OPENING, client)
        self._memory.put(FLOWS, client, flow.at(self._now))

    def _drop_answering(self, reply: Tuple, client: Tuple) -> None:
        entry = self._memory.answer(ANSWERING, reply)
        if entry is not None and entry.client == client:
            self._memory.delete(ANSWERING, reply)

    def _mark_answering(self, reply: Tuple, client: Tuple, new: Flow, service: Service) -> None:
        entry = self._memory.answer(ANSWERING, reply)
        if service.translates and entry is not None and entry.client == client:
            marked = entry.flow.marked(new.state, service)
            self._memory.put(ANSWERING, reply, Return(client, marked))

    # ---- replies ----

    def answered(self, store: str, entry: Return, packet: Packet) -> None:
        """A reply was sent on: both sides have seen it."""
        frontend = self._config.frontend(entry.flow.frontend)
        assert frontend is not None, "answer() has checked it"
        service, marks = self._config.service_of(frontend), _marks(packet, "backend")
        marked = entry.flow.at(self._now).marked(marks, service)
        self._memory.put(store, packet.tuple, Return(entry.client, marked))
        for side in (FLOWS, OPENING):
            flow = self._memory.flow(side, entry.client)
            if flow and flow.backend == entry.flow.backend:
                new = flow.at(self._now).marked(marks, service)
                self._replace(side, entry.client, flow, new)
                return

    def remembers(self, client: Tuple) -> bool:
        return any(self._memory.flow(store, client) for store in (FLOWS, OPENING))


def _marks(packet: Packet, side: str) -> int:
    if packet.tuple.protocol != TCP:
        return 0
    fin = FlowState.CLIENT_FIN if side == "client" else FlowState.BACKEND_FIN
    marks = fin if packet.flags & FIN else FlowState(0)
    return int(marks | (FlowState.RESET if packet.flags & RST else FlowState(0)))


def is_zero(address: bytes) -> bool:
    return address == bytes(ADDRESS_SIZE[4 if len(address) == 4 else 6])
