"""Runs the file's `tests:` through a shadow of the program, or without the right to, through the model.

The shadow is loaded for this, with maps of its own, pinned and attached nowhere:
what forwards is neither read nor written.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bpf import abi
from bpf.kernel import Instance, KernelError, Sizes
from reconciler import ids
from reconciler.dataplane import State
from reconciler.expect import HERE, Outcome, Stage, by_model, failures, named, stage
from reconciler.maps import PinnedMaps
from reconciler.model import Config, Node, Packet, Proto
from reconciler.plan import plan
from reconciler.problems import Problem

SMALL = 1024  # entries of the maps that a shadow hardly needs
FLOWS = ("flows4", "flows6", "returns4", "returns6", "opening4", "opening6")
ETHERTYPE = {4: 0x0800, 6: 0x86DD}
SYN, TTL = 0x02, 64


@dataclass(frozen=True, slots=True)
class Tried:
    """How the tests of a file went."""

    count: int = 0
    by: str = ""  # what they were run through
    problems: tuple[Problem, ...] = ()

    def __str__(self) -> str:
        return f"{self.count} test{'' if self.count == 1 else 's'} by {self.by}"


def tried(config: Config, node: Node | None = None) -> Tried:
    if not config.tests:
        return Tried()
    staged = stage(config, node or Node(interfaces={}))
    packets = [test.packet for test in config.tests]
    try:
        outcomes, how = _by_program(staged, packets), "the program itself, in a shadow"
    except (KernelError, OSError) as error:
        outcomes = [by_model(staged, packet) for packet in packets]
        how = f"the reference model (no program: {str(error).partition(chr(10))[0]})"
    return Tried(len(packets), how, tuple(failures(config, outcomes)))


def _by_program(staged: Stage, packets: Iterable[Packet]) -> list[Outcome]:
    with Instance.unpinned("tests", _sizes(staged.state)) as shadow:
        PinnedMaps(shadow).apply(plan(staged.state, State()))
        shadow.maps.health.put_many(staged.health.items())
        return [_outcome(shadow, staged, packet) for packet in packets]


def _sizes(state: State) -> Sizes:
    return Sizes(
        frontends=len(state.frontends4) + len(state.frontends6) + len(state.frontends) + 2,
        services=len(state.services) + 2,
        pools=len(state.pools) + 2,
        backends=max(len(state.backends), len(state.replies4), len(state.replies6)) + 2,
        **dict.fromkeys(FLOWS, SMALL),
    )


def _outcome(shadow: Instance, staged: Stage, packet: Packet) -> Outcome:
    """By what the program counts: exactly one verdict, and a backend if it took one."""
    _forget(shadow)
    before, counted = _verdicts(shadow), dict(shadow.maps.backend_counts.items())
    shadow.run(frame(packet), ifindex=HERE)
    after = _verdicts(shadow)
    verdict = next(one for one in abi.Verdict if after[one] != before[one])
    taken = [
        at
        for at, entry in shadow.maps.backend_counts.items()
        if entry.packets and entry != counted.get(at)
    ]
    number: int = staged.state.backends[taken[0]].id if taken else 0
    assert number == 0 or ids.index(number) == taken[0]  # noqa: S101 -- indexes are ids' own
    return named(staged, packet, verdict.name.lower(), number)


def _forget(shadow: Instance) -> None:
    """Each packet is the first: no test is in another's way."""
    for name in FLOWS:
        flows: Any = shadow.maps[name]
        flows.delete_many([key for key, _ in flows.items()])
    state = shadow.maps.service_state
    state.put_many((at, abi.ServiceState()) for at, _ in state.items())


def _verdicts(shadow: Instance) -> list[int]:
    cpu = shadow.maps.cpus.get(0)
    return [0] * len(abi.Verdict) if cpu is None else [one.packets for one in cpu.verdict]


def frame(packet: Packet) -> bytes:
    """The first packet of a client, checksums left out: the program changes these, and checks none."""
    segment = _ports(packet)
    if packet.proto is Proto.TCP:
        segment += bytes(8) + bytes([5 << 4, SYN]) + bytes(6)
    else:
        segment += (8).to_bytes(2) + bytes(2)
    version = packet.source.version
    header = _ipv4(packet, len(segment)) if version == 4 else _ipv6(packet, len(segment))  # noqa: PLR2004
    return bytes(12) + ETHERTYPE[version].to_bytes(2) + header + segment


def _ports(packet: Packet) -> bytes:
    return packet.sport.to_bytes(2) + packet.dport.to_bytes(2)


def _ipv4(packet: Packet, size: int) -> bytes:
    head = bytes([0x45, 0]) + (20 + size).to_bytes(2) + bytes(4) + bytes([TTL, packet.proto, 0, 0])
    return head + packet.source.packed + packet.destination.packed


def _ipv6(packet: Packet, size: int) -> bytes:
    head = bytes([0x60, 0, 0, 0]) + size.to_bytes(2) + bytes([packet.proto, TTL])
    return head + packet.source.packed + packet.destination.packed
