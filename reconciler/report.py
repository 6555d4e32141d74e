"""A plan in words: what changes for whom, why, and what it costs. Pure.

Describes a View; decides nothing and prints nothing. `describe` gives the
versioned document that `--output json` prints; report_text says it to people.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bpf import abi
from reconciler import ids, table
from reconciler.dataplane import Op, Put, State, Where
from reconciler.drift import differences
from reconciler.encode import address_bytes
from reconciler.guard import Finding
from reconciler.look import Live, View
from reconciler.model import NOWHERE, Config, Origin
from reconciler.names import Names, address_of, frontend_text, key_text
from reconciler.revision import NO_COMMIT, Commit

FORMAT = "1.0"
COUNTED = (Where.SERVICES, Where.POOLS, Where.BACKENDS, Where.FRONTENDS)


@dataclass(frozen=True, slots=True)
class Change:
    """One line of a plan, with what belongs under it."""

    action: str
    kind: str
    name: str
    detail: str = ""
    origin: Origin = NOWHERE
    parts: tuple["Change", ...] = ()
    impact: Mapping[str, int] = field(default_factory=dict)
    note: str = ""  # what it means for clients

    def document(self) -> dict[str, Any]:
        return {
            "action": self.action,
            "kind": self.kind,
            "name": self.name,
            "detail": self.detail,
            "origin": {"file": self.origin.file, "line": self.origin.line},
            "impact": dict(self.impact),
            "note": self.note,
            "changes": [part.document() for part in self.parts],
        }


@dataclass(frozen=True, slots=True)
class Guard:
    """What a guardrail, or the maps' room, has to say."""

    name: str
    refused: bool
    text: str

    def document(self) -> dict[str, Any]:
        return {"name": self.name, "refused": self.refused, "text": self.text}


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is said about one plan."""

    source: str
    digest: str
    generation: int  # live; 0: nothing was ever applied
    live_digest: str
    changes: tuple[Change, ...]
    drift: tuple[Change, ...]
    guards: tuple[Guard, ...]
    writes: Mapping[str, int]
    deletes: Mapping[str, int]
    live_flows: int = 0  # of backends that change
    drains: tuple[str, ...] = ()  # how far they are
    made: Commit = NO_COMMIT
    against: str = ""  # the file that it was compared with, instead of the maps
    plan_id: str = ""
    bound: Mapping[str, Any] = field(default_factory=dict)  # to what, if it is to be saved

    def document(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT,
            "plan_id": self.plan_id,
            "source": {"path": self.source, "sha256": self.digest, **_commit(self.made)},
            "live": {"generation": self.generation, "sha256": self.live_digest},
            "against": self.against,
            "changes": [change.document() for change in self.changes],
            "drift": [change.document() for change in self.drift],
            "guards": [guard.document() for guard in self.guards],
            "live_flows": self.live_flows,
            "drains": list(self.drains),
            "map_writes": dict(self.writes),
            "map_deletes": dict(self.deletes),
            "bound": dict(self.bound),
        }


@dataclass(frozen=True, slots=True)
class Apart:
    """What is drift and what is change, when what was applied last is known."""

    drift: tuple[Change, ...]
    before: State  # as it was applied
    after: State


def describe(
    view: View,
    live: Live,
    source: tuple[str, bytes],
    configs: tuple[Config | None, Config],
    size: int,
    meta: abi.Meta | None,
    made: Commit = NO_COMMIT,
    *,
    apart: Apart | None = None,
    flows: Mapping[int, int] | None = None,
) -> Plan:
    """`configs` are the applied one, as far as it is known, and the new one; `flows` by index."""
    apart = apart or _told_apart(view, live.actual, meta, source[1])
    names = Names.of(configs, size, apart.before, apart.after, live.actual)
    changes = tuple(_changes(apart.before, apart.after, names, flows or {}))
    return Plan(
        source=source[0],
        digest=source[1].hex(),
        generation=meta.generation if meta is not None else 0,
        live_digest=bytes(meta.digest).hex() if meta is not None else "",
        changes=changes,
        drift=apart.drift,
        guards=(*map(_guard, view.findings), *_blocked(view), *_room(view, live)),
        writes=_count(view.ops, removals=False),
        deletes=_count(view.ops, removals=True),
        live_flows=sum(map(_live_flows, changes)),
        drains=tuple(
            sorted(
                f"{names.backend(one.name).name}: {one.progress(live.now)}" for one in view.drains
            )
        ),
        made=made,
    )


def _told_apart(view: View, actual: State, meta: abi.Meta | None, digest: bytes) -> Apart:
    """Where the file is what was applied, what differs is drift; else nobody knows."""
    if meta is not None and bytes(meta.digest) == digest:
        return Apart(tuple(drift(view.ops, actual)), view.held, view.held)
    return Apart((), actual, view.held)


def _guard(finding: Finding) -> Guard:
    return Guard(finding.setting, finding.refused, str(finding))


def _blocked(view: View) -> Iterator[Guard]:
    """Services that stay what they are, or absent; the others are applied."""
    for _, why in sorted(view.blocked.items()):
        yield Guard("blocked", refused=True, text=str(why))


def _room(view: View, live: Live) -> Iterator[Guard]:
    """How full the maps get, of those that change."""
    for where in COUNTED:
        before, after = len(live.actual[where]), len(view.held[where])
        if before != after and where.value in live.room:
            text = f"{where.value} {before} -> {after} of {live.room[where.value]}"
            yield Guard("capacity", refused=False, text=text)


def _live_flows(change: Change) -> int:
    return change.impact.get("live_flows", 0) + sum(map(_live_flows, change.parts))


def _commit(made: Commit) -> dict[str, str]:
    return {
        "commit": made.id,
        "author": made.author,
        "subject": made.subject,
        "signer": made.signer,
        "provenance": made.provenance.value,
    }


def _count(ops: tuple[Op, ...], *, removals: bool) -> dict[str, int]:
    counts: dict[str, int] = {}
    for op in ops:
        if isinstance(op, Put) != removals:
            counts[op.where.value] = counts.get(op.where.value, 0) + 1
    return counts


# ---- drift: what others did to the maps


def drift(ops: Iterable[Op], actual: State) -> Iterator[Change]:
    """Not what follows from health, neighbours, overrides and the node file: nobody meddled there."""
    for one in differences(ops, actual):
        yield Change("restore", one.where.value, key_text(one.key), one.how)


# ---- changes: services, their pools, and their backends


PASSED = "packets for these addresses and ports will be passed to the kernel"


def _changes(
    actual: State, held: State, names: Names, flows: Mapping[int, int]
) -> Iterator[Change]:
    seen: set[int] = set()
    old, new = _by_id(actual.services), _by_id(held.services)
    for number in sorted(old.keys() | new.keys(), key=lambda n: names.service(n, old, new).name):
        before, after = old.get(number), new.get(number)
        entry = after or before
        pools = {n for e in (before, after) if e for n in e.pools[: e.pool_count]} - seen
        seen |= pools
        parts = tuple(_pool_changes(pools, actual, held, names, flows))
        said = _service_details(before, after, names)
        frontends = _frontends(number, actual, held)
        if entry and (parts or said or frontends or before is None or after is None):
            action = "create" if before is None else "update" if after else "delete"
            named = names.service(number, old, new)
            details = [*([] if after is None else said), *frontends]
            yield Change(
                action, "service", named.name, "; ".join(details), named.origin, parts,
                note="" if after else PASSED,
            )  # fmt: skip
    if actual.settings and held.settings != actual.settings:
        yield Change("update", "settings", "of this node")


def _by_id(entries: Mapping[int, Any]) -> dict[int, Any]:
    return {entry.id: entry for entry in entries.values()}


def _frontends(number: int, actual: State, held: State) -> list[str]:
    def of(state: State) -> set[str]:
        return {frontend_text(e) for e in state.frontends.values() if e.service == number}

    before, after = of(actual), of(held)
    if not before or not after:
        return sorted(before | after)
    return [
        *(f"+ {f}" for f in sorted(after - before)),
        *(f"- {f}" for f in sorted(before - after)),
    ]


def _service_details(
    before: abi.Service | None, after: abi.Service | None, names: Names
) -> list[str]:
    if before is None or after is None:
        return []
    return [
        f"{label} {show(before)} -> {show(after)}"
        for label, show in (
            ("forward", lambda e: abi.Forward(e.forward).name.lower()),
            ("balance", lambda e: abi.Balance(e.balance).name.lower().replace("_", "-")),
            ("hash", lambda e: abi.HashFields(e.hash).name.lower().replace("_", "-")),
            ("flags", lambda e: abi.ServiceFlag(e.flags).name or "none"),
            ("gate", lambda e: e.gate),
            ("idle ticks", lambda e: f"{e.tcp_idle}/{e.udp_idle}"),
            ("pools", lambda e: ",".join(names.pool(n) for n in e.pools[: e.pool_count])),
        )
        if show(before) != show(after)
    ]


def _pool_changes(
    pools: set[int], actual: State, held: State, names: Names, flows: Mapping[int, int]
) -> Iterator[Change]:
    for number in sorted(pools, key=names.pool):
        at = ids.index(number)
        before = actual.tables.get(at) if _is(actual.pools, number) else None
        after = held.tables.get(at) if _is(held.pools, number) else None
        backends = tuple(_backend_changes(number, actual, held, names, flows))
        moves = _moves(before, after)
        if backends or moves or (before is None) != (after is None):
            action = "create" if before is None else "update" if after is not None else "delete"
            detail = _table_text(before, after, moves)
            yield Change(action, "pool", names.pool(number), detail, NOWHERE, backends, moves)


def _is(entries: Mapping[int, Any], number: int) -> bool:
    entry = entries.get(ids.index(number))
    return entry is not None and entry.id == number


def _moves(before: table.Slots | None, after: table.Slots | None) -> dict[str, int]:
    """Slots that change hands: those that a share lost or won, and the rest, which is collateral."""
    if before is None or after is None or before == after:
        return {}
    moved = table.moved(before, after)
    counted = dict.fromkeys({*before, *after}, 0)
    for slots, sign in ((before, -1), (after, 1)):
        for number, count in table.shares(slots).items():
            counted[number] += sign * count
    due = sum(count for count in counted.values() if count > 0)
    return {"slots": len(after), "moved": moved, "unavoidable": due, "collateral": moved - due}


def _table_text(
    before: table.Slots | None, after: table.Slots | None, moves: Mapping[str, int]
) -> str:
    if moves:
        share = 100 * moves["moved"] / moves["slots"]
        return (
            f"{moves['moved']} of {moves['slots']} slots move ({share:.1f} %):"
            f" {moves['unavoidable']} unavoidable, {moves['collateral']} collateral"
        )
    return f"{len(after or before or ())} slots" if before is None or after is None else ""


def _backend_changes(
    pool: int, actual: State, held: State, names: Names, flows: Mapping[int, int]
) -> Iterator[Change]:
    old, new = _of_pool(pool, actual, names), _of_pool(pool, held, names)
    for name in sorted(old.keys() | new.keys(), key=lambda n: names.backend(n).name):
        before, after = old.get(name), new.get(name)
        said, live = names.backend(name), _flows_of(before, flows)
        if before is None and after is not None:
            yield Change("create", "backend", said.name, _backend_text(after), said.origin)
        elif after is None and before is not None:
            yield Change("delete", "backend", said.name, _backend_text(before), impact=live)
        elif before is not None and after is not None and (text := _difference(before, after)):
            yield Change("update", "backend", said.name, text, said.origin, impact=live)


def _flows_of(entry: abi.Backend | None, flows: Mapping[int, int]) -> dict[str, int]:
    live = flows.get(ids.index(entry.id), 0) if entry is not None else 0
    return {"live_flows": live} if live else {}


def _of_pool(pool: int, state: State, names: Names) -> dict[int, abi.Backend]:
    """By name: those that the configuration puts there, and those that slots name."""
    slots = set(state.tables.get(ids.index(pool), ()))
    return {
        entry.name: entry
        for entry in state.backends.values()
        if entry.id in slots or names.belongs(entry.name, pool)
    }


def _backend_text(entry: abi.Backend) -> str:
    address = address_of(address_bytes(entry.addr, entry.family), entry.port)
    state = _state(entry)
    return f"{address}  weight {entry.weight}" + (f"  {state}" if state != "up" else "")


def _state(entry: abi.Backend) -> str:
    if entry.flags & abi.BackendFlag.FORCED_DOWN:
        return "down"
    drained = entry.flags & abi.BackendFlag.NO_NEW and entry.weight
    return "drain" if drained else "up"


def _difference(before: abi.Backend, after: abi.Backend) -> str:
    """What of a backend changes, next hops apart: they are the node's."""
    shown = (
        ("", lambda e: address_of(address_bytes(e.addr, e.family), e.port)),
        ("weight ", lambda e: e.weight),
        ("state ", _state),
    )
    return "  ".join(
        f"{label}{show(before)} -> {show(after)}"
        for label, show in shown
        if show(before) != show(after)
    )
