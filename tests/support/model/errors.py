"""ICMP errors about our flows, in both directions, and pings. §8 and §9."""

from bpf.abi import AddressKind, Forward, FrontendMark, Verdict
from tests.support.model import icmp, parse, rewrite
from tests.support.model.back import Back
from tests.support.model.choice import Start
from tests.support.model.config import Frontend, Service
from tests.support.model.flows import FLOWS, OPENING, Route, needs_opening
from tests.support.model.parse import TCP, Packet, Tuple
from tests.support.model.state import Flow, Outcome, Return
from tests.support.model.towards import backend_port


class Errors(Back):
    """What happens to ICMP."""

    def _echo(self, packet: Packet) -> Outcome | None:
        family, protocol = packet.family, packet.tuple.protocol
        wanted = packet.kind == parse.ECHO_REQUEST[family] and packet.code == 0
        mark = self._config.mark(packet.tuple.destination, 0, protocol)
        if not wanted or mark != FrontendMark.ECHO:
            return None
        return self._back(Verdict.ECHO_ANSWERED, rewrite.echo_reply(packet))

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
            inside = icmp.End(route.backend.address, backend_port(route))
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


def _nothing() -> None:
    """An ICMP error leaves no trace in a flow."""


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
