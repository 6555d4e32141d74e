"""Packets of a capture through a shadow of the program, in order, so that flows build up.

Time does not pass in between, but for the gates, which open anew with each second of the capture.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from bpf import abi
from bpf.kernel import KernelError
from reconciler import choice
from reconciler.capture import LONGEST, Captured
from reconciler.dataplane import State
from reconciler.fates import NOT_REPLAYED, Fate, Replayed, Tally
from reconciler.ids import index
from reconciler.model import Packet, Proto
from reconciler.names import Names
from reconciler.packet.decode import Decoded, Tuple, decode
from reconciler.shadows import Watched

SHORTEST = 14  # bytes of a frame that the kernel runs a program on


@dataclass(frozen=True, slots=True)
class Lane:
    """One configuration: a shadow that has it, and the names in it."""

    watched: Watched
    state: State
    names: Names
    ifindex: int

    def fate(self, frame: bytes, decoded: Decoded) -> Fate:
        if len(frame) < SHORTEST:
            return Fate(
                NOT_REPLAYED, problem=f"a frame of {len(frame)} bytes: no card hands up one"
            )
        try:
            seen = self.watched.send(frame, self.ifindex, decoded.tuple)
        except KernelError as error:
            return Fate(NOT_REPLAYED, problem=str(error).partition("\n")[0])
        service = seen.service or self._wanted(decoded.tuple)
        return Fate(
            seen.verdict.name.lower(),
            seen.action.name.lower(),
            self._service(service),
            self._backend(seen.backend),
        )

    def breathe(self) -> None:
        """Another second: what gates counted is over."""
        counted = self.watched.shadow.maps.service_state
        for at, entry in counted.items():
            if entry.gate:
                entry.gate = 0
                counted.put(at, entry)

    def _wanted(self, packet: Tuple | None) -> int:
        """Whose the packet was, of one that went nowhere."""
        if packet is None or packet.protocol not in tuple(Proto):
            return 0
        source, target = ip_address(packet.source), ip_address(packet.destination)
        ends = Packet(source, packet.sport, target, packet.dport, Proto(packet.protocol))
        service = choice.service_of(self.state, ends)
        return service.id if service is not None else 0

    def _service(self, number: int) -> str:
        """Of a service that is one for each family, the name in the file."""
        if not number:
            return ""
        return self.names.service(index(number), self.state.services).name.partition("/")[0]

    def _backend(self, number: int) -> str:
        entry: abi.Backend | None = self.state.backends.get(index(number))
        return self.names.backend(entry.name).name if entry is not None and number else ""


def replay(
    captured: Iterator[Captured], lane: Lane, against: Lane | None, tally: Tally, gue_port: int
) -> Iterator[Replayed]:
    """Counts each packet before it is handed out."""
    lanes = [one for one in (lane, against) if one is not None]
    second = None
    for number, one in zip(itertools.count(1), captured, strict=False):
        if one.time is not None and one.time >> abi.Limit.TICK_SHIFT != second:
            second = one.time >> abi.Limit.TICK_SHIFT
            for each in lanes:
                each.breathe()
        found = _replayed(number, one, lane, against, tally, gue_port)
        tally.add(found)
        yield found


def _replayed(
    number: int, one: Captured, lane: Lane, against: Lane | None, tally: Tally, gue_port: int
) -> Replayed:
    decoded = decode(one.data, one.length, gue_port)
    # Lengths in it count what the capture left out; a length that no packet has is no reason to take memory.
    frame = one.data.ljust(min(one.length, LONGEST), b"\0")
    fate = lane.fate(frame, decoded)
    return Replayed(
        number,
        one.time,
        len(one.data),
        one.length,
        decoded,
        fate,
        against.fate(frame, decoded) if against is not None else None,
        tally.before(str(decoded.tuple), fate),
    )
