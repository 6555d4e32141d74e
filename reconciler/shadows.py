"""Shadows of the program: what becomes of a frame, found out without a packet being sent.

A shadow has flows and counters of its own, and is attached nowhere. Over the live
configuration it shares the maps that say it, and writes none of them.
"""

import itertools
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bpf import abi
from bpf.kernel import Action, Instance, Sizes
from reconciler import ids
from reconciler.dataplane import State
from reconciler.maps import PinnedMaps
from reconciler.memory import Memory
from reconciler.plan import plan
from reconciler.verdicts import COUNTED

FEW = 256  # entries that are faster looked at one by one than all at once
SMALL = 1024  # entries of the maps that a shadow hardly needs
FLOWS = ("flows4", "flows6", "returns4", "returns6", "opening4", "opening6")


@dataclass(frozen=True, slots=True)
class Seen:
    """What the program did with a frame: ids are 0 where it counted none."""

    verdict: abi.Verdict
    action: Action
    frame: bytes
    service: int = 0
    backend: int = 0


def of_state(
    state: State,
    health: Mapping[int, abi.Health],
    flows: int = SMALL,
    path: Path | None = None,
) -> Instance:
    """A program, of that object or else this version's, with maps of its own that say this."""
    shadow = Instance.unpinned("shadow", sizes_for(state, flows), path)
    try:
        PinnedMaps(shadow).apply(plan(state, State()))
        _put(shadow.maps.health, health)
    except BaseException:
        shadow.close()
        raise
    return shadow


def of_live(live: Instance, flows: int = SMALL) -> Instance:
    """One over the live configuration, with health and overrides as they are at any moment."""
    return live.shadow(sizes=replace(live.sizes(), **dict.fromkeys(FLOWS, flows)))


def plant(shadow: Instance, memory: Memory, live: Mapping[int, int]) -> None:
    """What the live program remembers of a packet's flow, and how many flows its backends have."""
    for name, entries in memory.entries.items():
        _put(shadow.maps[name], entries)
    _put(shadow.maps.live, live)


def _put(target: Any, entries: Mapping[Any, Any]) -> None:  # noqa: ANN401 -- any map
    """As far as a smaller shadow has room for it."""
    fits = (not target.array or key < target.max_entries for key in entries)
    target.put_many(itertools.compress(entries.items(), fits))


def forget(shadow: Instance) -> None:
    """The next packet is the first: none is in its way."""
    maps: Any = shadow.maps
    for name in FLOWS:
        maps[name].delete_many([key for key, _ in maps[name].items()])
    for name, nothing in (("service_state", abi.ServiceState()), ("live", 0)):
        maps[name].put_many((at, nothing) for at, _ in maps[name].items())


def sizes_for(state: State, flows: int = SMALL) -> Sizes:
    """Room for every index in it, whatever gaps there are."""
    return Sizes(
        frontends=_room(state.frontends4, state.frontends6, range(_end(state.frontends))),
        services=_end(state.services) + 1,
        pools=_end(state.pools) + 1,
        backends=max(_end(state.backends), len(state.replies4), len(state.replies6)) + 1,
        **dict.fromkeys(FLOWS, flows),
    )


def _room(*content: Collection[Any]) -> int:
    return sum(map(len, content)) + 1


def _end(entries: Mapping[int, Any]) -> int:
    return max(entries, default=0) + 1


class Watched:
    """A shadow, and what it has counted: what became of a frame is what is counted since."""

    def __init__(self, shadow: Instance, state: State) -> None:
        self.shadow, self.state = shadow, state
        self._verdicts = self._counted_verdicts()
        self._services = _totals(shadow.maps.service_counts)
        self._backends = _totals(shadow.maps.backend_counts)
        self._known: dict[Hashable, tuple[int, int]] = {}

    def send(self, frame: bytes, ifindex: int, flow: Hashable = None) -> Seen:
        """`flow` is whose frame it is, if known: others of it were counted where this one will be."""
        run = self.shadow.run(frame, ifindex=ifindex)
        after = self._counted_verdicts()
        before, self._verdicts = self._verdicts, after
        verdict = next(one for one in abi.Verdict if after[one] != before[one])
        if verdict not in COUNTED:
            return Seen(verdict, run.action, run.frame)
        service, backend = self._known.get(flow, (0, 0))
        maps = self.shadow.maps
        services, backends = self.state.services, self.state.backends
        service = _counted(maps.service_counts, self._services, service, services)
        backend = _counted(maps.backend_counts, self._backends, backend, backends)
        self._known[flow] = service, backend
        return Seen(
            verdict,
            run.action,
            run.frame,
            _id(services, service),
            _id(backends, backend),
        )

    def _counted_verdicts(self) -> list[int]:
        cpu = self.shadow.maps.cpus.get(0)
        return [0] * len(abi.Verdict) if cpu is None else [one.packets for one in cpu.verdict]


def _total(one: abi.Counters | None) -> int:
    return one.packets + one.reply_packets if one is not None else 0


def _totals(counts: Any) -> dict[int, int]:  # noqa: ANN401 -- either map of counters
    return {at: _total(one) for at, one in counts.items()}


def _counted(counts: Any, known: dict[int, int], guess: int, entries: Mapping[int, Any]) -> int:  # noqa: ANN401
    """The index that was counted since, 0 if none was. The guess is looked at first: it is cheaper."""
    if guess and _has_counted(counts, known, guess):
        return guess
    if len(entries) <= FEW:
        return next((at for at in entries if _has_counted(counts, known, at)), 0)
    found = 0
    for at, total in _totals(counts).items():
        if total != known.get(at, 0):
            known[at], found = total, at
    return found


def _has_counted(counts: Any, known: dict[int, int], at: int) -> bool:  # noqa: ANN401
    now = _total(counts.get(at))
    before, known[at] = known.get(at, 0), now
    return now != before


def _id(entries: Any, at: int) -> int:  # noqa: ANN401 -- services or backends
    number: int = entries[at].id if at in entries else 0
    assert number in (0, ids.make(at, ids.incarnation(number)))  # noqa: S101 -- indexes are ids' own
    return number
