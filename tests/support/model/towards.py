"""A packet towards a backend: flow or choice, can it be sent, sending. §3, §10 and §11."""

from bpf.abi import Forward, Limit, Verdict
from tests.support.model import rewrite
from tests.support.model.case import Case
from tests.support.model.config import TUNNELS, Backend, Frontend, Service
from tests.support.model.flows import (
    FLOWS,
    OPENING,
    Route,
    Stale,
    can_do_without,
    is_zero,
    needs_opening,
    reply_tuple,
)
from tests.support.model.parse import TCP, Packet, Tuple
from tests.support.model.rewrite import Draft
from tests.support.model.state import Flow, Outcome

OVERHEAD = {Forward.IPIP: {4: 20, 6: 40}, Forward.GUE: {4: 28, 6: 48}}


class Towards(Case):
    """What happens to a packet for a frontend."""

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
        if (found := self._remembered(FLOWS, packet)) and (done := self._known(packet, *found)):
            return done
        if frontend is None:
            return self._unknown_port(packet)
        return self._opening(packet, frontend) or self._new(packet, frontend)

    def _opening(self, packet: Packet, frontend: Frontend) -> Outcome | None:
        if packet.tuple.protocol != TCP or packet.fragment:
            return None
        if not needs_opening(self._config.service_of(frontend)):
            return None
        found = self._remembered(OPENING, packet)
        return self._half_open(packet, *found) if found else None

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
        draft.destination(route.backend.address, backend_port(route))
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


def backend_port(route: Route) -> int | None:
    """The port to be written; None when the client's stays."""
    return route.backend.port if route.backend.port and route.frontend.port else None
