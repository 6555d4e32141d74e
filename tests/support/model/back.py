"""A packet towards a client: the entry that it finds, or what can be derived without one. §7."""

from collections.abc import Callable

from bpf.abi import AddressKind, Forward, Limit, Verdict
from tests.support.model import parse
from tests.support.model.case import Way
from tests.support.model.choice import Start
from tests.support.model.config import Service
from tests.support.model.flows import FLOWS, Route
from tests.support.model.parse import FIN, RST, SYN, Packet, Tuple
from tests.support.model.rewrite import Draft
from tests.support.model.state import Flow, Outcome, Return
from tests.support.model.towards import Towards


class Back(Towards):
    """What happens to a packet from a backend."""

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


def _translated_reply(packet: Packet, client: Tuple, service: Service) -> Draft:
    draft = Draft.of(packet)
    draft.source(client.destination, client.dport)
    if service.forward == Forward.FULLNAT:
        draft.destination(client.source, client.sport)
    return draft
