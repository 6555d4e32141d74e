"""The sweep, by batch from Python, for kernels that cannot run it themselves.

The same rules as bpf/sweep.h; a unit of time is a tick. It reads whole maps:
most of a second for a quarter of a million flows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from socket import IPPROTO_TCP
from typing import Any

from bpf.abi import Backend, Flow, FlowState, Frontend, IdLayout, Service, Settings, Side, Sweep
from bpf.maps import Map
from bpf.mapset import Maps

WORD = 0xFFFFFFFF  # ticks and ids are 32 bits
SIGN = 0x80000000


Entry = tuple[Any, Flow, int]  # key, flow, ticks that it is kept without packets


@dataclass(slots=True)
class Sweeper:
    """One pass; configuration is read once, flows are counted as they are met."""

    now: int
    settings: Settings
    frontends: dict[int, Frontend]
    services: dict[int, Service]
    backends: dict[int, Backend]
    live: Counter[int] = field(default_factory=Counter)
    expired: int = 0

    def flows(self, found: Map[Any, Flow]) -> None:
        closing = self.settings.closing
        entries = ((key, flow, self._patience(key, flow, closing)) for key, flow in found.scan())
        self._visit(found, entries, counted=True)

    def opening(self, found: Map[Any, Any]) -> None:
        closing = self.settings.closing
        self._visit(found, ((k, entry.flow, closing) for k, entry in found.scan()), counted=True)

    def returns(self, found: Map[Any, Any]) -> None:
        rest = self.settings.rest
        pairs = ((key, entry.flow) for key, entry in found.scan())
        entries = ((key, flow, self._patience(key, flow, rest)) for key, flow in pairs)
        self._visit(found, entries, counted=False)

    def _visit(self, found: Map[Any, Any], entries: Iterator[Entry], *, counted: bool) -> None:
        """Count what lives, then delete what is over."""
        over = []
        for key, flow, patience in entries:
            if not self._is_valid(flow) or idle(self.now, flow.seen) > patience:
                over.append(key)
            elif counted and key.side == Side.CLIENT and not flow.state & FlowState.CLOSED:
                self.live[flow.backend & IdLayout.INDEX_MASK] += 1
        self.expired += found.delete_many(over)

    def _is_valid(self, flow: Flow) -> bool:
        """Whether every id that the entry leads to still means something."""
        frontend = self.frontends.get(flow.frontend)
        return bool(
            frontend and frontend.service in self.services and flow.backend in self.backends
        )

    def _patience(self, key: Any, flow: Flow, closed: int) -> int:  # noqa: ANN401 -- either family
        if flow.state & FlowState.CLOSED:
            return closed
        frontend = self.frontends.get(flow.frontend)
        service = self.services.get(frontend.service) if frontend else None
        if service is None:
            return 0
        return service.tcp_idle if key.proto == IPPROTO_TCP else service.udp_idle


def idle(now: int, seen: int) -> int:
    """Ticks since; negative for a packet that came after the sweep began."""
    return ((now - seen + SIGN) & WORD) - SIGN


def by_id(entries: Map[int, Any]) -> dict[int, Any]:
    """Entries at the index that their id says: any other means nothing."""
    return {
        entry.id: entry for index, entry in entries.items()
        if entry.id & IdLayout.INDEX_MASK == index
    }  # fmt: skip


def sweep(maps: Maps, now: int) -> Sweep:
    """Expire and recount; the report that the kernel's own sweep would give."""
    sweeper = Sweeper(
        now,
        maps.settings.get(0) or Settings(),
        by_id(maps.frontends),
        by_id(maps.services),
        by_id(maps.backends),
    )
    for flows in (maps.flows4, maps.flows6):
        sweeper.flows(flows)
    for opening in (maps.opening4, maps.opening6):
        sweeper.opening(opening)
    for returns in (maps.returns4, maps.returns6):
        sweeper.returns(returns)
    _publish(maps.live, sweeper.live)
    return Sweep(now=now, expired=sweeper.expired, flows=sweeper.live.total())


def _publish(live: Map[int, int], counted: Counter[int]) -> None:
    """Only what differs: the program counts in the same map meanwhile."""
    before = dict(live.items())
    indexes = before.keys() | counted.keys()
    live.put_many((i, counted[i]) for i in sorted(indexes) if before.get(i, 0) != counted[i])
