"""How a packet comes to its verdict, step by step, worked out from what the maps say. Pure.

An account of docs/packet-path.md for people, beside the program's own: `explain` shows
both, and says loudly where they differ. Where the program draws lots, or asks the kernel's
routes, the account names all that can come of it.
"""

from bpf import abi
from bpf.abi import AddressKind, Balance, Forward, Verdict
from reconciler import choice
from reconciler.model import Packet
from reconciler.trace.replies import Replier
from reconciler.trace.scene import Ending, Found, Scene, Step, Trace, only

__all__ = ["Ending", "Scene", "Step", "Trace", "trace"]


def trace(scene: Scene) -> Trace:
    tracer = _Tracer(scene)
    ending = tracer.run()
    return Trace(tuple(tracer.steps), ending)


class _Tracer(Replier):
    """The way from the top: whose is it?"""

    def run(self) -> Ending:
        to = self.kinds(self.packet.destination)
        by = self.kinds(self.packet.source)
        self._say_kinds(to, by)
        if to & AddressKind.SERVICE and (ending := self.towards(to)):
            return ending
        if by & AddressKind.NAT_BACKEND or to & AddressKind.NAT_SOURCE:
            return self.back(to, by)
        return only(Verdict.NOT_OURS)

    def _say_kinds(self, to: AddressKind, by: AddressKind) -> None:
        said = [
            text
            for given, text in (
                (to & AddressKind.SERVICE, f"{self.packet.destination} may be a service's"),
                (to & AddressKind.NAT_SOURCE, f"{self.packet.destination} may be fullnat's own"),
                (by & AddressKind.NAT_BACKEND, f"{self.packet.source} may be a nat backend's"),
            )
            if given
        ]
        self.say("prefilter", "; ".join(said) or "neither address concerns a service")

    def towards(self, to: AddressKind) -> Ending | None:
        """None: it is not for a service."""
        found = choice.frontend_of(self.state, self.packet)
        self._say_frontend(found)
        table_first = bool(to & AddressKind.TABLE_FIRST)
        if table_first and found is None:
            return None
        if not (table_first and found and not self.keeps(found[1])) and (ending := self.known()):
            return ending
        if found is None:
            return None
        if self.opens(found[1]) and (ending := self.half_open()):
            return ending
        return self.anew(found)

    def _say_frontend(self, found: Found | None) -> None:
        if found is None:
            at = f"{self.packet.destination}, port {self.packet.dport}/{_proto(self.packet)}"
            self.say("frontend", f"no service has {at}, nor any port of it")
            return
        frontend, service = found
        port = f"port {frontend.port}" if frontend.port else "any port"
        how = f"{Forward(service.forward).name.lower()}, {_balance(service)}"
        self.say("frontend", f"service {self.service(service)} by {port} ({how})")


def _balance(service: abi.Service) -> str:
    return Balance(service.balance).name.lower().replace("_", "-")


def _proto(packet: Packet) -> str:
    return packet.proto.name.lower()
