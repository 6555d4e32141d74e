"""Flows that are known already, and whether they still speak for the packet. Pure."""

from bpf import abi
from bpf.abi import BackendFlag, FlowState, ServiceFlag, Verdict
from reconciler import choice, ids
from reconciler.memory import reply_of
from reconciler.trace.choosing import Chooser
from reconciler.trace.scene import TRANSLATING, Ending, only, ticks


class Rememberer(Chooser):
    """A packet that may be of a flow."""

    def known(self) -> Ending | None:
        flow = self.scene.memory.get(f"flows{self.client.version}", self.client.key())
        if flow is None:
            self.say("known flow", "none")
            return None
        asserted = flow.seen != self.scene.now
        return self.taken_up("known flow", flow, asserted=asserted)

    def half_open(self) -> Ending | None:
        entry = self.scene.memory.get(f"opening{self.client.version}", self.client.key())
        if entry is None:
            self.say("half-open flow", "none")
            return None
        return self.taken_up("half-open flow", entry.flow, asserted=self.is_ack)

    def taken_up(self, about: str, flow: abi.Flow, *, asserted: bool) -> Ending | None:
        said = f"with {self.backend(flow.backend)}, {self._age(flow)}{_endings(flow)}"
        if why := self.fallen(flow):
            self.say(about, f"{said}: not used, {why}")
            return None
        found, backend = choice.standing(self.state, flow.frontend), self._entry(flow.backend)
        assert found is not None  # noqa: S101 -- or it would have fallen
        service = found[1]
        if verdict := self.unsendable(service, backend):
            self.say(about, said)
            return self.stopped(verdict, service)
        reply = reply_of(self.state, self.client, flow)
        if asserted and service.forward in TRANSLATING and reply and self.others(reply):
            self.say(about, f"{said}: not used, the entry for its replies is another flow's by now")
            return None
        self.say(about, said)
        self._say_delivery(found, backend, flow.hop)
        return only(Verdict.FORWARDED, service.id, backend.id)

    def fallen(self, flow: abi.Flow) -> str:
        """Why an entry does not speak for this packet; empty: it does."""
        found = choice.standing(self.state, flow.frontend)
        backend = self.state.backends.get(ids.index(flow.backend))
        if found is None:
            return "its frontend is gone"
        if backend is None or backend.id != flow.backend:
            return "its backend is gone, or its flows were flushed"
        service = found[1]
        closed = flow.state & FlowState.CLOSED
        idle = service.tcp_idle if self.is_tcp else service.udp_idle
        if ticks(self.scene.now, flow.seen) > (self.settings.closing if closed else idle):
            return "it was quiet for too long"
        if self.is_syn and closed:
            return "it is over, and this is a SYN"
        if self.is_syn and backend.flags & BackendFlag.NO_NEW:
            return "its backend drains, and this is a SYN"
        if self.down_for_flows(backend) and (
            self.is_syn or not service.flags & ServiceFlag.KEEP_DOWN
        ):
            return "its backend is down"
        return ""

    def down_for_flows(self, backend: abi.Backend) -> bool:
        if backend.flags & BackendFlag.FORCED_DOWN:
            return True
        health = self.scene.health.get(ids.index(backend.id))
        down = health is not None and health.id == backend.id
        return (
            not backend.flags & BackendFlag.FORCED_UP
            and down
            and health is not None
            and health.state == abi.HealthState.DOWN
        )


def _endings(flow: abi.Flow) -> str:
    names = [
        one.name.lower().replace("_", " ") for one in FlowState if one & flow.state and one.name
    ]
    return f", {', '.join(names)}" if names else ""
