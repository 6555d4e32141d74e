"""Replies of backends, and whose they are. Pure."""

from bpf import abi
from bpf.abi import AddressKind, Forward, ServiceFlag, Verdict
from reconciler import choice, encode, ids
from reconciler.memory import Return, ends_of, nat_source
from reconciler.model import Packet
from reconciler.trace.flows import Rememberer
from reconciler.trace.scene import Ending, only

# What the kernel's routes make of a reply.
ON_THE_WAY_BACK = frozenset({
    Verdict.RETURNED, Verdict.RETURN_PASSED, Verdict.NO_ROUTE, Verdict.TOO_BIG,
    Verdict.TOO_BIG_ANSWERED, Verdict.TOO_BIG_LIMITED,
})  # fmt: skip


class Replier(Rememberer):
    """A packet that may be a reply."""

    def back(self, to: AddressKind, by: AddressKind) -> Ending:
        full = bool(to & AddressKind.NAT_SOURCE) and self._own_port()
        if not full and not by & AddressKind.NAT_BACKEND:
            self.say("reply", "to none of fullnat's own ports")
            return only(Verdict.NOT_OURS)
        mode = Forward.FULLNAT if full else Forward.NAT
        entry = next((one for one in self._entries(self.client) if self._stands(one, mode)), None)
        if entry is not None:
            return self.translated(entry)
        if full:
            self.say("reply", "to one of fullnat's own ports, and no flow's")
            return only(Verdict.UNKNOWN_PORT)
        return self.derived()

    def _own_port(self) -> bool:
        own, port = nat_source(self.state, self.client.version), self.packet.dport
        low, high = self.settings.port_low, self.settings.port_high
        return any(own.packed) and own == self.packet.destination and low <= port <= high

    def _stands(self, entry: Return | None, mode: Forward) -> bool:
        found = choice.standing(self.state, entry.flow.frontend) if entry is not None else None
        return found is not None and found[1].forward == mode

    def translated(self, entry: Return) -> Ending:
        client = ends_of(entry.client)
        said = f"{client.source} port {client.sport}, to {client.target} port {client.dport}"
        self.say("reply", f"of a known flow: {said}, {self._age(entry.flow)}")
        found = choice.standing(self.state, entry.flow.frontend)
        service = found[1].id if found is not None else 0
        return Ending(ON_THE_WAY_BACK, self._there(entry.flow.backend), service)

    def _there(self, number: int) -> frozenset[int]:
        entry = self.state.backends.get(ids.index(number))
        return frozenset({number} if entry is not None and entry.id == number else ())

    def derived(self) -> Ending:
        """A reply that no entry knows: whose table leads its client here?"""
        matches = [one for one in self._listed() if self._leads_here(one)]
        if len(matches) != 1:
            said = f"{len(matches) or 'no'} services' tables lead this client to this backend"
            self.say("reply", f"of no known flow, and {said}")
            return only(Verdict.NOT_OURS)
        found = choice.standing(self.state, matches[0].frontend)
        assert found is not None  # noqa: S101 -- it leads here
        self.say("reply", f"of no known flow; service {self.service(found[1])} leads here")
        verdicts = ON_THE_WAY_BACK | {Verdict.NOT_OURS}
        return Ending(verdicts, self._there(matches[0].backend), found[1].id)

    def _listed(self) -> list[abi.ReplyCandidate]:
        for port in (self.packet.sport, 0):
            key = encode.key_of(self.packet.source, port, self.packet.proto)
            listed = self._replies(key)
            if listed is not None:
                usable = listed.count <= abi.Limit.REPLY_CANDIDATES
                return list(listed.candidate[: listed.count]) if usable else []
        return []

    def _replies(self, key: encode.FrontendKey) -> abi.Reply | None:
        if isinstance(key, abi.Frontend4Key):
            return self.state.replies4.get(key)
        return self.state.replies6.get(key)

    def _leads_here(self, one: abi.ReplyCandidate) -> bool:
        found = choice.standing(self.state, one.frontend)
        if found is None:
            return False
        frontend, service = found
        if service.forward != Forward.NAT or service.flags & ServiceFlag.DIRECT:
            return False
        client = Packet(
            self.packet.destination,
            self.packet.dport,
            encode.address(frontend.addr, self.client.version),
            frontend.port or self.packet.sport,
            self.packet.proto,
        )
        chosen = choice.backend_of(self.state, self.scene.health, service, client)
        return chosen is not None and chosen.id == one.backend
