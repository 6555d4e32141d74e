"""Sends the same packets through the running program and through a new one, and says where they differ.

Both are shadows: they read the live configuration, and have flows and counters of their
own. Nothing that forwards is written. What a difference is, `likeness` says.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from bpf import abi
from bpf.kernel import Action, Instance, KernelError, Mode, Sizes
from reconciler import encode, ids
from reconciler.encode import IPV4
from reconciler.likeness import Difference, Outcome, differ
from reconciler.model import Address, Packet, Proto
from reconciler.packet.build import FLAGS, SYN, frame
from reconciler.shadows import FLOWS, forget

ACK = FLAGS["ack"]
BY_CHANCE = (abi.Balance.RANDOM, abi.Balance.LEAST_CONNECTIONS)
PORTS = range(1024, 1 << 16)  # of clients that nobody knows
CLIENTS: dict[int, Address] = {4: ip_address("198.51.100.7"), 6: ip_address("2001:db8:7::1")}
ELSEWHERE: dict[int, Address] = {4: ip_address("203.0.113.99"), 6: ip_address("2001:db8:f::99")}
TRIES = 3  # a difference is one only if it stays
EXPLAINED = 10
LEAST = 1024  # entries of a shadow's flow maps


@dataclass(frozen=True, slots=True)
class Probe:
    """A packet, and where it comes in; `drawn`: chance may choose its backend.

    `asks`: what a service that chooses by chance would choose anew for.
    """

    what: str
    frame: bytes
    ifindex: int
    drawn: bool = False
    asks: Packet | None = None


@dataclass(frozen=True, slots=True)
class Compared:
    """How it went: packets by what they stood for, and every difference, the first explained."""

    packets: Mapping[str, int]
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """Entries of the live flow maps, and of the maps for their replies."""

    flows: dict[str, list[tuple[Any, Any]]]
    returns: dict[str, list[tuple[Any, Any]]]

    @property
    def count(self) -> int:
        return sum(map(len, self.flows.values()))


NOBODY = Sample({}, {})


def sampled(instance: Instance, limit: int) -> Sample:
    """Evenly from both families; what one has not got the other may have."""
    return Sample(
        _evenly(instance, ("flows4", "flows6"), limit),
        _evenly(instance, ("returns4", "returns6"), limit),
    )


def _evenly(
    instance: Instance, names: tuple[str, str], limit: int
) -> dict[str, list[tuple[Any, Any]]]:
    maps: Any = instance.maps
    found = {name: list(maps[name].scan()) for name in names}
    four, six = (len(entries) for entries in found.values())
    half = limit // 2
    share = {names[0]: limit - min(six, half), names[1]: limit - min(four, limit - half)}
    return {name: _some(entries, share[name]) for name, entries in found.items()}


def _some(entries: Sequence[Any], limit: int) -> list[Any]:
    if len(entries) <= limit:
        return list(entries)
    return [entries[at * len(entries) // limit] for at in range(limit)]


class Selftest:
    """Two shadows of one instance, side by side; without `running`, only the new one."""

    def __init__(self, instance: Instance, running: Path | None, new: Path, limit: int) -> None:
        self._live = instance
        sizes = _least(instance.sizes(), max(LEAST, 8 * limit))
        with ExitStack() as undo:
            started = time.monotonic()
            self.new = undo.enter_context(instance.shadow(new, sizes))
            self.load_seconds = time.monotonic() - started
            self.running = undo.enter_context(instance.shadow(running, sizes)) if running else None
            self._stack = undo.pop_all()

    def __enter__(self) -> "Selftest":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def compare(self, sample: Sample) -> Compared:
        """First as if no flow were known, then with those that were sampled.

        What chance decides is a pass of its own: its flows would be in the way of others.
        """
        fresh = [*self._foreign(), *self._frontends(), *self._clients(sample, SYN, "new")]
        known = [*self._clients(sample, ACK, "known"), *self._replies(sample)]
        drawn = [probe for probe in (*fresh, *known) if probe.drawn]
        found = self._differences([probe for probe in fresh if not probe.drawn], NOBODY)
        found += self._differences([probe for probe in known if not probe.drawn], sample)
        found += self._differences(drawn, sample)
        packets = Counter(probe.what.partition(":")[0] for probe in (*fresh, *known))
        return Compared(packets, tuple(found))

    # ---- what is sent

    def _foreign(self) -> Iterator[Probe]:
        """What concerns no service goes to the kernel as it came."""
        for version, address in ELSEWHERE.items():
            packet = Packet(CLIENTS[version], PORTS[0], address, 9, Proto.UDP)
            yield Probe(f"no service's: {said(packet)}", frame(packet), self._inside())
        arp = b"\xff" * 6 + bytes(6) + (0x0806).to_bytes(2) + bytes(28)
        yield Probe("no service's: ARP", arp, self._inside())

    def _frontends(self) -> Iterator[Probe]:
        """A client that nobody knows, for each another: two of one would want the same return entry."""
        for at, entry in self._live.maps.frontends.items():
            if not ids.index(entry.id):
                continue
            address = encode.address(entry.addr, entry.family)
            client, proto = CLIENTS[entry.family], Proto(entry.proto)
            sport = PORTS[at % len(PORTS)]
            packet = Packet(client, sport, address, entry.port or sport, proto)
            yield self._probe("frontend", packet, SYN)

    def _clients(self, sample: Sample, flags: int, what: str) -> Iterator[Probe]:
        for entries in sample.flows.values():
            for key, _ in entries:
                if (packet := packet_of(key)) is not None:
                    yield self._probe(what, packet, flags)

    def _replies(self, sample: Sample) -> Iterator[Probe]:
        for entries in sample.returns.values():
            for key, entry in entries:
                if (packet := packet_of(key)) is not None:
                    backend = self._live.maps.backends.get(ids.index(entry.flow.backend))
                    ifindex = backend.ifindex if backend and backend.ifindex else self._inside()
                    yield Probe(f"reply: {said(packet)}", frame(packet, ACK), ifindex)

    def _probe(self, what: str, packet: Packet, flags: int) -> Probe:
        asks = packet if flags != ACK or packet.proto is Proto.UDP else None
        drawn = asks is not None and self._drawn(asks)
        return Probe(f"{what}: {said(packet)}", frame(packet, flags), self._inside(), drawn, asks)

    def _drawn(self, packet: Packet) -> bool:
        """By whose packet it is now: the flow's own frontend may have closed, and opened again as another."""
        numbers = filter(None, (self._frontend(packet, port) for port in (packet.dport, 0)))
        entry = self._live.maps.frontends.get(ids.index(next(numbers, 0)))
        service = self._live.maps.services.get(ids.index(entry.service)) if entry else None
        return service is not None and service.balance in BY_CHANCE

    def _frontend(self, packet: Packet, port: int) -> int | None:
        maps: Any = self._live.maps
        keys = maps.frontends4 if packet.destination.version == IPV4 else maps.frontends6
        number: int | None = keys.get(encode.key_of(packet.destination, port, packet.proto))
        return number

    def _inside(self) -> int:
        """An interface of this network namespace that the program is attached to."""
        for one in self._live.attachments():
            if one.mode is not Mode.AUTO:
                return one.ifindex
        return 1

    def _know(self, sample: Sample) -> None:
        """The sampled flows and no others, and the next hops that they name."""
        live: Any = self._live.maps
        for shadow in self._pair:
            forget(shadow)
            maps: Any = shadow.maps
            for name in ("hops", "hop_ids"):
                maps[name].put_many(live[name].items())
            for name, entries in (*sample.flows.items(), *sample.returns.items()):
                maps[name].put_many(entries)

    # ---- what comes of it

    @property
    def _pair(self) -> tuple[Instance, Instance]:
        if self.running is None:
            raise KernelError("nothing to compare with")
        return self.running, self.new

    def _differences(self, probes: Sequence[Probe], sample: Sample) -> list[Difference]:
        """What differs whenever it is sent, each time to shadows that remember only what was sampled.

        Once may be the live configuration, changed between the two: one has a flow from before.
        """
        found: list[tuple[Probe, Difference]] = []
        for _ in range(TRIES):
            self._know(sample)
            found = [*self._sent(probes)]
            if not found:
                return []
            probes = [probe for probe, _ in found]
        first = [self._explained(*one) for one in found[:EXPLAINED]]
        return first + [difference for _, difference in found[EXPLAINED:]]

    def _sent(self, probes: Iterable[Probe]) -> Iterator[tuple[Probe, Difference]]:
        for probe in probes:
            pair = [outcome(shadow, probe) for shadow in self._pair]
            difference = differ(probe.what, *pair, drawn=probe.drawn)
            if difference is None:
                continue
            if probe.asks and self._drawn(probe.asks):  # by now: its service has just opened
                difference = differ(probe.what, *pair, drawn=True)
            if difference is not None:
                yield probe, difference

    def _explained(self, probe: Probe, difference: Difference) -> Difference:
        """With the backends that the two count it for."""
        running, new = (_backend(shadow, probe) for shadow in self._pair)
        return replace(difference, running_backend=running, new_backend=new)


def _least(sizes: Sizes, entries: int) -> Sizes:
    """A shadow needs no more flows than are sampled."""
    return replace(sizes, **dict.fromkeys(FLOWS, entries))


def outcome(shadow: Instance, probe: Probe) -> Outcome:
    before = _verdicts(shadow)
    run = shadow.run(probe.frame, ifindex=probe.ifindex)
    after = _verdicts(shadow)
    counted = [one.name.lower() for one in abi.Verdict if after[one] != before[one]]
    return Outcome(" and ".join(counted) or "not counted", Action(run.action).name, run.frame)


def _verdicts(shadow: Instance) -> list[int]:
    cpu = shadow.maps.cpus.get(0)
    return [one.packets for one in cpu.verdict] if cpu else [0] * len(abi.Verdict)


def _backend(shadow: Instance, probe: Probe) -> int:
    """The id of the backend that the packet is counted for; 0: none."""
    before = dict(shadow.maps.backend_counts.items())
    shadow.run(probe.frame, ifindex=probe.ifindex)
    for at, counts in shadow.maps.backend_counts.items():
        if counts != before.get(at):
            entry = shadow.maps.backends.get(at)
            return int(entry.id) if entry else 0
    return 0


# ---- keys


def packet_of(key: abi.Flow4Key | abi.Flow6Key) -> Packet | None:
    """The 5-tuple of a flow's key."""
    data = bytes(key)
    size = 4 if isinstance(key, abi.Flow4Key) else 16
    source, destination, ports = data[:size], data[size : 2 * size], data[2 * size :]
    if ports[4] not in (Proto.TCP, Proto.UDP):
        return None
    sport, dport = int.from_bytes(ports[:2]), int.from_bytes(ports[2:4])
    return Packet(ip_address(source), sport, ip_address(destination), dport, Proto(ports[4]))


def said(packet: Packet) -> str:
    def end(address: Address, port: int) -> str:
        return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"  # noqa: PLR2004

    source, target = end(packet.source, packet.sport), end(packet.destination, packet.dport)
    return f"{source} -> {target}/{packet.proto.name.lower()}"
