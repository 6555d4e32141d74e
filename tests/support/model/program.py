"""One packet, top to bottom, as docs/packet-path.md says: the order of decisions, and nothing else.

Nothing here waits, draws a number or changes what it was given. Where the program may draw, or
may be over a rate that cannot be seen from outside, there are several outcomes.
"""

from collections.abc import Mapping

from bpf.abi import AddressKind, Verdict
from tests.support.model import parse
from tests.support.model.case import Fib, Situation
from tests.support.model.config import Config, Raw
from tests.support.model.errors import Errors
from tests.support.model.parse import TCP, UDP, Packet, Stop
from tests.support.model.state import Outcome, State, applied
from tests.support.model.sweeping import Swept, sweep

_TO = AddressKind.SERVICE | AddressKind.TABLE_FIRST | AddressKind.NAT_SOURCE


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

    def swept(self, now: int) -> tuple["Model", Swept]:
        """The model after a sweep, and what the sweep reports."""
        done = sweep(self.config, self.state, now)
        return Model(self.raw, applied(self.state, done.changes), self.config), done


class Judgement(Errors):
    """§1 and §2: whose is a frame?"""

    def outcome(self) -> Outcome:
        try:
            return self._judge()
        except Stop as stop:
            return self._end(stop.verdict)

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
