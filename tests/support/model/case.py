"""One frame in one situation: what is known of it, and how its story ends. Decides nothing.

A packet's story is told in three parts, as docs/packet-path.md is: towards.py, back.py, errors.py.
"""

from dataclasses import dataclass
from typing import Protocol

from bpf.abi import SettingFlag, Verdict
from tests.support.model.choice import Chooser, Draws, Start, by_cursor, draws_needed
from tests.support.model.config import Config, Service
from tests.support.model.flows import Flows
from tests.support.model.parse import Packet
from tests.support.model.state import Action, Counts, Memory, Outcome, State

PASSED = (Verdict.NOT_OURS, Verdict.TRUNCATED, Verdict.RETURN_PASSED)


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


class Case:
    """One frame in one situation."""

    def __init__(self, config: Config, state: State, frame: bytes, situation: Situation) -> None:
        self._config = config
        self._frame = frame
        self._situation = situation
        self._memory = Memory(state)
        self._flows = Flows(config, self._memory, situation.now)
        self._chooser = Chooser(config, self._memory.live)
        self._drew: tuple[Service, int] | None = None

    def other_draws(self) -> list[Draws]:
        """Draws that may have led elsewhere."""
        if self._drew is None:
            return []
        return list(self._chooser.distinct_draws(*self._drew))

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

    # ---- §6: the end of every packet ----

    def _count(self, what: str, service: int, backend: int) -> None:
        octets = what.replace("packets", "bytes")
        for store, whole in (("service_counts", service), ("backend_counts", backend)):
            self._memory.count(store, whole, **{what: 1, octets: len(self._frame)})

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
