"""What is told of a packet's way, and what every step of the telling needs. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from bpf import abi
from bpf.abi import AddressKind, Balance, FlowState, Forward, ServiceFlag, Verdict
from reconciler import encode, ids
from reconciler.dataplane import State
from reconciler.memory import Ends, Memory, Return, ends_of, reply_places
from reconciler.model import Address, Packet, Proto
from reconciler.names import Names

SYN, ACK, RST, FIN = 2, 16, 4, 1
ENDS = SYN | ACK | RST | FIN
Found = tuple[abi.Frontend, abi.Service]
TRANSLATING = (Forward.NAT, Forward.FULLNAT)
IPV4 = 4


@dataclass(frozen=True, slots=True)
class Scene:
    """A packet, and what its fate depends on."""

    packet: Packet
    length: int  # of the IP packet
    flags: int  # of TCP
    state: State
    health: Mapping[int, abi.Health]
    memory: Memory
    names: Names
    now: int  # tick
    commit: str = ""
    interfaces: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """What one step looked at, and what it found; `more` are its details."""

    about: str
    found: str
    more: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ending:
    """What can come of the packet. Several where it is not for the maps to say."""

    verdicts: frozenset[Verdict]
    backends: frozenset[int] = frozenset()  # ids; empty: none
    service: int = 0


@dataclass(frozen=True, slots=True)
class Trace:
    steps: tuple[Step, ...]
    ending: Ending


def only(verdict: Verdict, service: int = 0, backend: int = 0) -> Ending:
    return Ending(frozenset({verdict}), frozenset({backend} if backend else ()), service)


class Teller:
    """Says steps; names things; answers what several steps ask."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.state = scene, scene.state
        self.packet, self.client = scene.packet, Ends.of(scene.packet)
        self.settings = scene.state.settings.get(0, abi.Settings())
        self.steps: list[Step] = []

    def say(self, about: str, found: str, *more: str) -> None:
        self.steps.append(Step(about, found, more))

    def kinds(self, address: Address) -> AddressKind:
        return AddressKind(self.state.prefilter.get(encode.bucket(address), 0))

    def service(self, entry: abi.Service) -> str:
        named = self.scene.names.service(ids.index(entry.id), self.state.services)
        return named.name + self._written(named.origin.file, named.origin.line)

    def backend(self, number: int) -> str:
        entry = self.state.backends.get(ids.index(number))
        if entry is None or entry.id != number or not number:
            return f"#{number:#x}, which is nobody"
        return self.scene.names.backend(entry.name).name

    def _written(self, file: str, line: int) -> str:
        at = f"@{self.scene.commit[:12]}" if self.scene.commit else ""
        return f" ({file}:{line}{at})" if line else ""

    def keeps(self, service: abi.Service) -> bool:
        return service.forward == Forward.FULLNAT or not service.flags & ServiceFlag.FLOWS_OFF

    def needs_entry(self, service: abi.Service) -> bool:
        return service.forward in TRANSLATING or service.balance != Balance.HASH

    def opens(self, service: abi.Service) -> bool:
        return self.needs_entry(service) and self.keeps(service) and self.is_tcp

    @property
    def is_tcp(self) -> bool:
        return self.packet.proto is Proto.TCP

    @property
    def is_syn(self) -> bool:
        return self.is_tcp and self.scene.flags & ENDS == SYN

    @property
    def is_ack(self) -> bool:
        return self.is_tcp and self.scene.flags & ENDS == ACK

    def _age(self, flow: abi.Flow) -> str:
        return f"quiet for {max(0, ticks(self.scene.now, flow.seen)) * encode.TICK:.0f} s"

    def _entry(self, number: int) -> abi.Backend:
        return self.state.backends[ids.index(number)]

    def _entries(self, reply: Ends) -> Iterator[Return | None]:
        return (self.scene.memory.get(name, key) for name, key in reply_places(reply))

    def spent(self, flow: abi.Flow) -> bool:
        backend = self.state.backends.get(ids.index(flow.backend))
        frontend = self.state.frontends.get(ids.index(flow.frontend))
        if backend is None or backend.id != flow.backend:
            return True
        if frontend is None or frontend.id != flow.frontend:
            return True
        over = flow.state & FlowState.CLOSED
        return bool(over) and ticks(self.scene.now, flow.seen) > self.settings.rest

    def others(self, reply: Ends) -> bool:
        """Whether replies with this tuple are another client's."""
        return any(
            entry is not None
            and ends_of(entry.client) != self.client
            and not self.spent(entry.flow)
            for entry in self._entries(reply)
        )


def ticks(now: int, seen: int) -> int:
    """Since then; negative when another CPU was ahead."""
    passed = (now - seen) & 0xFFFFFFFF
    return passed - (1 << 32) if passed >> 31 else passed
