"""Whether a packet can be sent to a backend, what is learnt of it, and how it leaves. Pure."""

from bpf import abi
from bpf.abi import Forward, Verdict
from reconciler import encode, ids
from reconciler.memory import nat_source, own_ports, reply_to
from reconciler.trace.scene import IPV4, Ending, Found, Teller, only, ticks

TUNNELS = {Forward.IPIP: (20, 40), Forward.GUE: (28, 48)}  # bytes over IPv4 and IPv6


class Sender(Teller):
    """The end of the way to a backend."""

    def stopped(self, verdict: Verdict, service: abi.Service) -> Ending:
        self.say("stopped", verdict.name.lower())
        if verdict is Verdict.TOO_BIG:
            told = {verdict, Verdict.TOO_BIG_ANSWERED, Verdict.TOO_BIG_LIMITED}
            return Ending(frozenset(told), service=service.id)
        return only(verdict, service.id)

    def unsendable(self, service: abi.Service, backend: abi.Backend) -> Verdict | None:
        if not self.fits(service, backend):
            return Verdict.MISCONFIGURED
        if not backend.ifindex:
            return Verdict.NO_NEXT_HOP
        if self.scene.length + _overhead(service, backend) > backend.mtu:
            return Verdict.TOO_BIG
        return None

    def fits(self, service: abi.Service, backend: abi.Backend) -> bool:
        """Mode, families and this node's own addresses."""
        if service.forward == Forward.DSR:
            return True
        if service.forward in TUNNELS:
            own = self.settings
            source = own.tunnel_source4 if backend.family == IPV4 else own.tunnel_source6
            return any(bytes(source))
        if backend.family != self.client.version:
            return False
        if service.forward == Forward.FULLNAT:
            return any(nat_source(self.state, self.client.version).packed)
        return True

    def learnt(self, found: Found, backend: abi.Backend, *, first: bool) -> tuple[Verdict, int]:
        """Whether what is learnt lets it go; and fullnat's source port."""
        service = found[1]
        if not self.learns(service):
            refused = service.forward == Forward.FULLNAT
            return (Verdict.NO_FLOW if refused else Verdict.FORWARDED), 0
        if first and self.gated(service):
            self.say("gate", f"{service.gate} new flows in this second are all it lets in")
            return (Verdict.GATED if self.needs_entry(service) else Verdict.FORWARDED), 0
        if service.forward == Forward.FULLNAT:
            return self.port(found, backend)
        reply = reply_to(self.state, self.client, found, backend, 0)
        if service.forward == Forward.NAT and self.others(reply):
            return Verdict.RETURN_TAKEN, 0
        return Verdict.FORWARDED, 0

    def learns(self, service: abi.Service) -> bool:
        if not self.keeps(service):
            return False
        if self.is_syn:
            return self.needs_entry(service)
        return not self.is_tcp or self.is_ack

    def gated(self, service: abi.Service) -> bool:
        """Whether as many flows as the gate lets in have come in this tick."""
        kept = self.scene.memory.get("service_state", ids.index(service.id))
        if not service.gate or kept is None or not self.learns(service):
            return False
        past = ticks(self.scene.now, kept.gate >> 32) > 0
        return not past and (kept.gate & 0xFFFFFFFF) >= service.gate

    def port(self, found: Found, backend: abi.Backend) -> tuple[Verdict, int]:
        for port in own_ports(self.state, self.packet):
            if not self.others(reply_to(self.state, self.client, found, backend, port)):
                return Verdict.FORWARDED, port
        return Verdict.PORTS_TAKEN, 0

    def _say_delivery(self, found: Found, backend: abi.Backend, port: int) -> None:
        frontend, service = found
        mode = Forward(service.forward)
        self.say("rewrite", self._rewrite(frontend, mode, backend, port))
        interface = self.scene.interfaces.get(backend.ifindex, f"interface {backend.ifindex}")
        macs = f"{bytes(backend.smac).hex(':')} -> {bytes(backend.dmac).hex(':')}"
        self.say("next hop", f"{interface}, {macs}, MTU {backend.mtu}")

    def _rewrite(
        self, frontend: abi.Frontend, mode: Forward, backend: abi.Backend, port: int
    ) -> str:
        target = encode.address(backend.addr, backend.family)
        to = backend.port if backend.port and frontend.port else self.packet.dport
        if mode is Forward.DSR:
            return "dsr: only the MAC addresses"
        if mode in TUNNELS:
            own = self.settings
            source = own.tunnel_source4 if backend.family == IPV4 else own.tunnel_source6
            said = f"{encode.address(source, backend.family)} -> {target}"
            return f"{mode.name.lower()}: into a packet {said}"
        end = f"[{target}]:{to}" if backend.family != IPV4 else f"{target}:{to}"
        if mode is Forward.NAT:
            return f"nat: destination becomes {end}"
        own_end = f"{nat_source(self.state, self.client.version)}, port {port}"
        return f"fullnat: destination becomes {end}, source {own_end}"


def _overhead(service: abi.Service, backend: abi.Backend) -> int:
    return TUNNELS.get(Forward(service.forward), (0, 0))[backend.family != IPV4]
