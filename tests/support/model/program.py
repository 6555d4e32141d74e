"""One packet, top to bottom, as docs/packet-path.md says: the order of decisions, and nothing else.

Nothing here waits, draws a number or changes what it was given. Where the program may draw, or
may be over a rate that cannot be seen from outside, there are several outcomes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from bpf.abi import AddressKind, Forward, FrontendMark, Limit, SettingFlag, Verdict
from tests.support.model import icmp, parse, rewrite
from tests.support.model.choice import Chooser, Draws, Start, by_cursor, draws_needed
from tests.support.model.config import TUNNELS, Backend, Config, Frontend, Raw, Service
from tests.support.model.flows import (
    FLOWS,
    OPENING,
    Flows,
    Route,
    Stale,
    can_do_without,
    is_zero,
    needs_opening,
    reply_tuple,
)
from tests.support.model.parse import FIN, RST, SYN, TCP, UDP, Packet, Stop, Tuple
from tests.support.model.rewrite import Draft
from tests.support.model.state import (
    Action,
    Counts,
    Flow,
    Memory,
    Outcome,
    Return,
    State,
    applied,
)

PASSED = (Verdict.NOT_OURS, Verdict.TRUNCATED, Verdict.RETURN_PASSED)
OVERHEAD = {Forward.IPIP: {4: 20, 6: 40}, Forward.GUE: {4: 28, 6: 48}}


@dataclass(frozen=True, slots=True)
class Way:
    """What the routing table says: a next hop, or why there is none."""

    ifindex: int = 0
    mtu: int = 0
    dmac: bytes = b""
    smac: bytes = b""
    local: bool = False  # not forwarded: an address of this machine
    neighbour: bool = True  # False: there is a route, but no neighbour yet

    @property
    def found(self) -> bool:
        return self.ifindex != 0


class Fib(Protocol):
    def __call__(self, family: int, source: bytes, destination: bytes, ifindex: int) -> Way: ...


@dataclass(frozen=True, slots=True)
class Situation:
    """What a packet meets besides the maps."""

    ifindex: int
    now: int
    fib: Fib
    draws: Draws = (0, 0)
    limited: bool = False  # over the rate of ICMP errors


class Model:
    """The program with its maps. A value: `after` gives the model that has seen the packet."""

    def __init__(self, raw: Raw, state: State | None = None, config: Config | None = None) -> None:
        self.raw = raw
        self.config = config or Config(raw)
        self.state: State = state or {}

    def outcomes(self, frame: bytes, *, ifindex: int, now: int, fib: Fib) -> list[Outcome]:
        """Everything that may happen to a frame."""
        first = Judgement(self.config, self.state, frame, Situation(ifindex, now, fib))
        found = [first.outcome()]
        for draws in first.other_draws():
            other = Situation(ifindex, now, fib, draws)
            found.append(Judgement(self.config, self.state, frame, other).outcome())
        if self.config.settings.icmp_rate and found[0].verdict == Verdict.TOO_BIG_ANSWERED:
            over = Situation(ifindex, now, fib, limited=True)
            found.append(Judgement(self.config, self.state, frame, over).outcome())
        return list(dict.fromkeys(found))

    def packet(self, frame: bytes, *, ifindex: int, now: int, fib: Fib) -> Outcome:
        """What happens to a frame, where only one thing can."""
        (only,) = self.outcomes(frame, ifindex=ifindex, now=now, fib=fib)
        return only

    def after(self, outcome: Outcome) -> "Model":
        return Model(self.raw, applied(self.state, outcome.changes), self.config)

    def configured(self, raw: Raw) -> "Model":
        """The same memory under another configuration."""
        return Model(raw, self.state)

    def store(self, name: str) -> Mapping[object, object]:
        return {key: value for (store, key), value in self.state.items() if store == name}


class Judgement:
    """One frame in one situation."""

    def __init__(self, config: Config, state: State, frame: bytes, situation: Situation) -> None:
        self._config = config
        self._frame = frame
        self._situation = situation
        self._memory = Memory(state)
        self._flows = Flows(config, self._memory, situation.now)
        self._chooser = Chooser(config, self._memory.live)
        self._drew: tuple[Service, int] | None = None

    def outcome(self) -> Outcome:
        try:
            return self._judge()
        except Stop as stop:
            return self._end(stop.verdict)

    def other_draws(self) -> list[Draws]:
        """Draws that may have led elsewhere."""
        if self._drew is None:
            return []
        # Live counts as they were: what was learnt since changes them.
        return list(self._chooser.distinct_draws(*self._drew))

    # ---- §1 and §2: whose is it ----

    def _judge(self) -> Outcome:
        head = parse.head(self._frame)
        to, by = self._config.kinds(head.destination), self._config.kinds(head.source)
        icmp_or_service = head.protocol in (parse.ICMP, parse.ICMPV6) or to & _TO
        if not icmp_or_service and not by & AddressKind.NAT_BACKEND:
            raise Stop(Verdict.NOT_OURS)
        try:
            packet = parse.packet(self._frame, head)
        except Stop as stop:
            raise Stop(self._believed(stop.verdict, head)) from None
        if to & AddressKind.SERVICE and (done := self._to_service(packet, to)):
            return done
        return self._from_backend(packet) or self._end(Verdict.NOT_OURS)

    def _believed(self, verdict: Verdict, head: parse.Head) -> Verdict:
        """A malformed packet is dropped only for an address and protocol of ours."""
        protocol = {Verdict.BAD_TCP: TCP, Verdict.BAD_UDP: UDP}.get(verdict, 0)
        if not self._config.kinds(head.destination) & AddressKind.SERVICE:
            return Verdict.NOT_OURS
        if self._config.mark(head.destination, 0, protocol) is None:
            return Verdict.NOT_OURS
        return verdict

    def _to_service(self, packet: Packet, kinds: int) -> Outcome | None:
        if packet.tuple.protocol in (TCP, UDP):
            return self._to_frontend(packet, table_first=bool(kinds & AddressKind.TABLE_FIRST))
        if packet.quote:
            return self._error_to_frontend(packet)
        return self._echo(packet)

    def _from_backend(self, packet: Packet) -> Outcome | None:
        if packet.quote:
            return self._error_from_backend(packet)
        if packet.tuple.protocol in (TCP, UDP):
            return self._reply(packet)
        return None

    def _echo(self, packet: Packet) -> Outcome | None:
        family, protocol = packet.family, packet.tuple.protocol
        wanted = packet.kind == parse.ECHO_REQUEST[family] and packet.code == 0
        mark = self._config.mark(packet.tuple.destination, 0, protocol)
        if not wanted or mark != FrontendMark.ECHO:
            return None
        return self._back(Verdict.ECHO_ANSWERED, rewrite.echo_reply(packet))

    # ---- §3: towards a backend ----

    def _lookup(self, client: Tuple, *, fragment: bool = False) -> Frontend | None:
        address, protocol = client.destination, client.protocol
        exact = None if fragment else self._config.lookup(address, client.dport, protocol)
        return exact or self._config.lookup(address, 0, protocol)

    def _to_frontend(self, packet: Packet, *, table_first: bool) -> Outcome | None:
        client = packet.tuple
        frontend = self._lookup(client, fragment=packet.fragment)
        if table_first and (not frontend or not self._config.service_of(frontend).keeps_flows):
            return self._new(packet, frontend) if frontend else self._unknown_port(packet)
        if found := self._remembered(FLOWS, packet):
            done = self._known(packet, *found)
            if done:
                return done
        if frontend is None:
            return self._unknown_port(packet)
        whole_tcp = client.protocol == TCP and not packet.fragment
        if whole_tcp and needs_opening(self._config.service_of(frontend)):
            if found := self._remembered(OPENING, packet):
                done = self._half_open(packet, *found)
                if done:
                    return done
        return self._new(packet, frontend)

    def _unknown_port(self, packet: Packet) -> Outcome | None:
        client = packet.tuple
        if (
            packet.fragment
            and self._config.mark(client.destination, 0, client.protocol) is not None
        ):
            return self._end(Verdict.FRAGMENT)
        return None

    def _remembered(self, store: str, packet: Packet) -> tuple[Flow, Route] | None:
        found = self._flows.find(store, packet.tuple, syn=packet.syn)
        if not found:
            self._flows.forget(store, packet.tuple)
        return found

    def _known(self, packet: Packet, flow: Flow, route: Route) -> Outcome | None:
        if stop := self._obstacle(packet, route):
            return stop
        try:
            self._flows.refresh(flow, route, packet)
        except Stale:
            self._flows.forget(FLOWS, packet.tuple)
            return None
        return self._forward(packet, route, flow.port)

    def _half_open(self, packet: Packet, flow: Flow, route: Route) -> Outcome | None:
        if stop := self._obstacle(packet, route):
            return stop
        try:
            self._flows.open(flow, route, packet)
        except Stale:
            self._flows.forget(OPENING, packet.tuple)
            return None
        return self._forward(packet, route, flow.port)

    def _new(self, packet: Packet, frontend: Frontend) -> Outcome:
        service = self._config.service_of(frontend)
        if packet.fragment and service.forward == Forward.FULLNAT:
            return self._end(Verdict.FRAGMENT)
        start = self._start(service, packet)
        store = self._where_to_learn(service, packet)
        gated = False
        for retry in range(Limit.RETURN_TRIES + 1):
            backend = self._chooser.choose(service, start, retry)
            if backend is None:
                return self._end(Verdict.NO_BACKEND)
            route = Route(service, frontend, backend)
            if stop := self._obstacle(packet, route):
                return stop
            if store is None:
                return self._unlearnt(packet, route)
            if not gated and not self._flows.pass_gate(service):
                return self._over_gate(packet, route)
            gated = True
            if service.forward == Forward.FULLNAT:
                return self._learn_fullnat(packet, route, store)
            if not self._return_taken(route, packet.tuple):
                self._flows.learn(store, route, packet.tuple)
                return self._forward(packet, route, 0)
        return self._end(Verdict.RETURN_TAKEN)

    def _start(self, service: Service, packet: Packet) -> Start:
        client, syn = packet.tuple, packet.syn
        if needed := draws_needed(service, client, syn=syn):
            self._drew = (service, needed)
            return Start.drawn(self._situation.draws[:needed])
        if by_cursor(service, client, syn=syn):
            cursor = int(self._memory.get("cursor", service.id) or 0)
            self._memory.put("cursor", service.id, (cursor + 1) & 0xFFFFFFFF)
            return Start.cursor(cursor)
        return Start.hashed(service, client)

    def _where_to_learn(self, service: Service, packet: Packet) -> str | None:
        if not service.keeps_flows:
            return None
        if packet.tuple.protocol != TCP or packet.fragment or packet.ack:
            return FLOWS
        return OPENING if packet.syn and needs_opening(service) else None

    def _unlearnt(self, packet: Packet, route: Route) -> Outcome:
        if route.service.forward == Forward.FULLNAT:
            return self._end(Verdict.NO_FLOW)
        return self._forward(packet, route, 0)

    def _over_gate(self, packet: Packet, route: Route) -> Outcome:
        if can_do_without(route.service):
            return self._forward(packet, route, 0)
        return self._end(Verdict.GATED)

    def _return_taken(self, route: Route, client: Tuple) -> bool:
        if not route.service.translates:
            return False
        return self._flows.taken(reply_tuple(self._config, route, client, 0), client)

    def _learn_fullnat(self, packet: Packet, route: Route, store: str) -> Outcome:
        port = self._flows.free_port(route, packet.tuple)
        if port is None:
            return self._end(Verdict.PORTS_TAKEN)
        self._flows.learn(store, route, packet.tuple, port)
        return self._forward(packet, route, port)

    # ---- §3: can it be sent; §10: too big ----

    def _obstacle(self, packet: Packet, route: Route) -> Outcome | None:
        service, backend = route.service, route.backend
        if packet.fragment and service.forward == Forward.FULLNAT:
            return self._end(Verdict.FRAGMENT)
        if not self._fits_mode(packet.family, service, backend):
            return self._end(Verdict.MISCONFIGURED)
        if not backend.ifindex:
            return self._end(Verdict.NO_NEXT_HOP)
        if service.forward != Forward.DSR and packet.ttl <= 1:
            return self._end(Verdict.TTL_EXPIRED)
        overhead = OVERHEAD.get(Forward(service.forward), {}).get(backend.family, 0)
        if packet.length + overhead > backend.mtu:
            return self._too_big(packet, backend.mtu - overhead)
        return None

    def _fits_mode(self, family: int, service: Service, backend: Backend) -> bool:
        if service.forward in TUNNELS:
            return not is_zero(self._config.tunnel_source(backend.family))
        if service.forward == Forward.DSR:
            return True
        if service.forward == Forward.FULLNAT and is_zero(self._config.nat_source(family)):
            return False
        return backend.family == family

    def _too_big(self, packet: Packet, mtu: int) -> Outcome:
        tellable = rewrite.dont_fragment(packet) and rewrite.can_quote(packet)
        if packet.quote or not tellable:
            return self._end(Verdict.TOO_BIG)
        if self._situation.limited:
            return self._end(Verdict.TOO_BIG_LIMITED)
        return self._back(Verdict.TOO_BIG_ANSWERED, rewrite.too_big(packet, mtu))

    # ---- §11: sending ----

    def _forward(self, packet: Packet, route: Route, port: int) -> Outcome:
        draft = Draft.of(packet)
        if route.service.translates:
            self._translate(draft, packet, route, port)
        return self._send(Verdict.FORWARDED, packet, draft, packet.tuple, route)

    def _translate(self, draft: Draft, packet: Packet, route: Route, port: int) -> None:
        draft.destination(route.backend.address, _backend_port(route))
        if route.service.forward == Forward.FULLNAT:
            draft.source(self._config.nat_source(packet.family), port)

    def _send(
        self, verdict: Verdict, packet: Packet, draft: Draft, client: Tuple, route: Route
    ) -> Outcome:
        """Route, tunnel, address and count a packet for a backend."""
        service, backend = route.service, route.backend
        if service.forward != Forward.DSR:
            draft.hop()
        draft.finish()
        draft.macs(backend.dmac, backend.smac)
        exact = True
        if service.forward in TUNNELS:
            exact = self._tunnel(draft, packet, client, route)
        self._count("packets", service.id, backend.id)
        return self._out(verdict, draft.frame(), backend.ifindex, exact=exact)

    def _tunnel(self, draft: Draft, packet: Packet, client: Tuple, route: Route) -> bool:
        backend = route.backend
        source = self._config.tunnel_source(backend.family)
        udp = None
        if route.service.forward == Forward.GUE:
            port = self._config.settings.gue_port
            udp = rewrite.gue_header(draft, packet, client, backend, source, port)
        rewrite.encapsulated(draft, backend, source, udp)
        return udp is None or backend.family == 4 or not rewrite.trusts_l4(packet)

    # ---- §7: replies ----

    def _reply(self, packet: Packet) -> Outcome | None:
        reply = packet.tuple
        if not packet.fragment and self._config.is_nat_source(reply):
            if found := self._flows.answer(reply, Forward.FULLNAT):
                return self._return(packet, *found)
            return self._end(Verdict.UNKNOWN_PORT)
        if not self._config.kinds(reply.source) & AddressKind.NAT_BACKEND:
            return None
        if found := self._flows.answer(reply, Forward.NAT):
            return self._return(packet, *found)
        return self._derived(packet)

    def _return(self, packet: Packet, store: str, entry: Return) -> Outcome:
        return self._towards_client(
            packet,
            _translated_reply(packet, entry.client, self._service_of(entry)),
            entry,
            Verdict.RETURNED,
            lambda: self._flows.answered(store, entry, packet),
        )

    def _service_of(self, entry: Return) -> Service:
        frontend = self._config.frontend(entry.flow.frontend)
        assert frontend is not None, "answer() has checked it"
        return self._config.service_of(frontend)

    def _derived(self, packet: Packet) -> Outcome | None:
        matches = self._matches(packet)
        if len(matches) != 1:
            return None
        client, route = matches[0]
        if self._way(client.destination, client.source).local:
            return None
        flow = Flow(route.backend.id, route.frontend.id, self._situation.now)
        return self._towards_client(
            packet,
            _translated_reply(packet, client, route.service),
            Return(client, flow),
            Verdict.RETURNED,
            lambda: self._learn_derived(packet, client, route),
        )

    def _matches(self, packet: Packet) -> list[tuple[Tuple, Route]]:
        """The frontends whose client tuple leads to the backend that sent this."""
        reply = packet.tuple
        exact = None
        if not packet.fragment:
            exact = self._config.replies(reply.source, reply.sport, reply.protocol)
        found = exact or self._config.replies(reply.source, 0, reply.protocol)
        if found is None or found.count > Limit.REPLY_CANDIDATES:
            return []
        pairs = (self._match(reply, *candidate) for candidate in found.candidates)
        return [pair for pair in pairs if pair]

    def _match(self, reply: Tuple, frontend_id: int, backend_id: int) -> tuple[Tuple, Route] | None:
        frontend = self._config.frontend(frontend_id)
        if frontend is None:
            return None
        service = self._config.service_of(frontend)
        if service.forward != Forward.NAT or service.direct:
            return None
        dport = frontend.port or reply.sport
        ends = (reply.destination, frontend.address, reply.dport, dport)
        client = Tuple(*ends, reply.protocol)
        backend = self._chooser.choose(service, Start.hashed(service, client))
        if backend is None or backend.id != backend_id:
            return None
        return client, Route(service, frontend, backend)

    def _learn_derived(self, packet: Packet, client: Tuple, route: Route) -> None:
        ending = packet.flags & (RST | FIN)
        opens = packet.flags & SYN and not packet.flags & parse.ACK
        if not route.service.keeps_flows or ending or opens or self._flows.remembers(client):
            return
        if not self._flows.pass_gate(route.service) or self._return_taken(route, client):
            return
        self._flows.learn(FLOWS, route, client)

    def _way(self, source: bytes, destination: bytes) -> Way:
        family = 4 if len(source) == 4 else 6
        return self._situation.fib(family, source, destination, self._situation.ifindex)

    def _towards_client(
        self,
        packet: Packet,
        draft: Draft,
        entry: Return,
        verdict: Verdict,
        remember: Callable[[], None],
    ) -> Outcome:
        """Find the client's next hop, and send the translated packet there."""
        way = self._way(entry.client.destination, entry.client.source)
        if not way.neighbour:
            draft.finish()
            remember()
            self._count("reply_packets", self._service_of(entry).id, entry.flow.backend)
            return self._end(Verdict.RETURN_PASSED, draft.frame())
        if not way.found:
            return self._end(Verdict.NO_ROUTE)
        if packet.ttl <= 1:
            return self._end(Verdict.TTL_EXPIRED)
        if packet.length > way.mtu:
            return self._too_big(packet, way.mtu)
        draft.hop()
        draft.finish()
        draft.macs(way.dmac, way.smac)
        remember()
        self._count("reply_packets", self._service_of(entry).id, entry.flow.backend)
        return self._out(verdict, draft.frame(), way.ifindex)

    # ---- §8: ICMP errors ----

    def _error_to_frontend(self, packet: Packet) -> Outcome | None:
        quote = packet.quote
        assert quote is not None
        if quote.tuple.source != packet.tuple.destination:
            return None
        client = icmp.client_tuple(quote)
        fragment = quote.piece is not parse.Piece.WHOLE
        frontend = self._lookup(client, fragment=fragment)
        if frontend is None:
            return None
        found = self._owner(client, self._config.service_of(frontend))
        if found is None:
            return self._error_by_hash(packet, client, frontend)
        flow, route = found
        return self._error_sent(packet, client, route, flow.port)

    def _owner(self, client: Tuple, service: Service) -> tuple[Flow, Route] | None:
        if not service.keeps_flows:
            return None
        found = self._flows.find(FLOWS, client)
        if found is None and client.protocol == TCP and needs_opening(service):
            found = self._flows.find(OPENING, client)
        return found

    def _error_by_hash(self, packet: Packet, client: Tuple, frontend: Frontend) -> Outcome:
        service = self._config.service_of(frontend)
        if service.forward == Forward.FULLNAT:
            return self._end(Verdict.NO_FLOW)
        backend = self._chooser.choose(service, Start.hashed(service, client))
        if backend is None:
            return self._end(Verdict.NO_BACKEND)
        return self._error_sent(packet, client, Route(service, frontend, backend), 0)

    def _error_sent(self, packet: Packet, client: Tuple, route: Route, port: int) -> Outcome:
        if stop := self._obstacle(packet, route):
            return stop
        ends = icmp.Ends()
        if route.service.translates:
            inside = icmp.End(route.backend.address, _backend_port(route))
            outside = icmp.End(route.backend.address)
            ends = icmp.Ends(outer_destination=outside, quoted_source=inside)
        if route.service.forward == Forward.FULLNAT:
            own = self._config.nat_source(packet.family)
            ends = icmp.Ends(icmp.End(own), outside, inside, icmp.End(own, port))
        draft = icmp.translated(packet, ends)
        return self._send(Verdict.ICMP_FORWARDED, packet, draft, client, route)

    def _error_from_backend(self, packet: Packet) -> Outcome | None:
        quote = packet.quote
        assert quote is not None
        reply = icmp.reply_tuple(quote)
        fullnat = self._config.kinds(packet.tuple.destination) & AddressKind.NAT_SOURCE
        kinds = self._config.kinds(reply.source) | self._config.kinds(packet.tuple.source)
        if not fullnat and not kinds & AddressKind.NAT_BACKEND:
            return None
        forwards = (Forward.NAT, Forward.FULLNAT)
        found = next(filter(None, (self._flows.answer(reply, way) for way in forwards)), None)
        if found is None:
            return None
        _, entry = found
        draft = icmp.translated(packet, _ends_for_client(packet, entry, self._service_of(entry)))
        return self._towards_client(packet, draft, entry, Verdict.ICMP_RETURNED, _nothing)

    # ---- §6: the end of every packet ----

    def _count(self, what: str, service: int, backend: int) -> None:
        octets = what.replace("packets", "bytes")
        for store, id in (("service_counts", service), ("backend_counts", backend)):
            self._memory.count(store, id, **{what: 1, octets: len(self._frame)})

    def _back(self, verdict: Verdict, frame: bytes) -> Outcome:
        return self._out(verdict, frame, self._situation.ifindex)

    def _out(self, verdict: Verdict, frame: bytes, egress: int, *, exact: bool = True) -> Outcome:
        same = egress == self._situation.ifindex
        always = self._config.settings.flags & SettingFlag.REDIRECT_ALWAYS
        action = Action.TX if same and not always else Action.REDIRECT
        return self._done(verdict, action, frame, egress, exact=exact)

    def _end(self, verdict: Verdict, frame: bytes | None = None) -> Outcome:
        action = Action.PASS if verdict in PASSED else Action.DROP
        return self._done(verdict, action, self._frame if frame is None else frame, 0)

    def _done(
        self, verdict: Verdict, action: Action, frame: bytes, egress: int, *, exact: bool = True
    ) -> Outcome:
        counts: Counts = self._memory.get("verdicts", verdict) or Counts()
        self._memory.put("verdicts", verdict, counts.plus(packets=1, bytes=len(self._frame)))
        return Outcome(verdict, action, frame, egress, self._memory.changes(), exact)


_TO = AddressKind.SERVICE | AddressKind.TABLE_FIRST | AddressKind.NAT_SOURCE


def _nothing() -> None:
    """An ICMP error leaves no trace in a flow."""


def _backend_port(route: Route) -> int | None:
    """The port to be written; None when the client's stays."""
    return route.backend.port if route.backend.port and route.frontend.port else None


def _translated_reply(packet: Packet, client: Tuple, service: Service) -> Draft:
    draft = Draft.of(packet)
    draft.source(client.destination, client.dport)
    if service.forward == Forward.FULLNAT:
        draft.destination(client.source, client.sport)
    return draft


def _ends_for_client(packet: Packet, entry: Return, service: Service) -> icmp.Ends:
    client, quote = entry.client, packet.quote
    assert quote is not None
    from_backend = packet.tuple.source == quote.tuple.destination
    quoted_source = None
    if service.forward == Forward.FULLNAT:
        quoted_source = icmp.End(client.source, client.sport)
    return icmp.Ends(
        icmp.End(client.destination) if from_backend else None,
        icmp.End(client.source),
        quoted_source,
        icmp.End(client.destination, client.dport),
    )
