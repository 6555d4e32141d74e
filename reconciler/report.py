"""A plan in words: what changes for whom, why, and what it costs.

Describes a View; decides nothing and prints nothing. `describe` gives the
versioned document that `--output json` prints, `text` the same for people.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bpf import abi
from reconciler import ids, table
from reconciler.dataplane import Op, Put, State, Where
from reconciler.encode import address_bytes
from reconciler.look import Live, View
from reconciler.model import NOWHERE, Config, Origin
from reconciler.names import Names, address_of, frontend_text, key_text
from reconciler.revision import NO_COMMIT, Commit

FORMAT = "1.0"
SIGNS = {"create": "+", "update": "~", "delete": "-", "restore": "!"}


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

    def document(self) -> dict[str, Any]:
        return {
            "action": self.action,
            "kind": self.kind,
            "name": self.name,
            "detail": self.detail,
            "origin": {"file": self.origin.file, "line": self.origin.line},
            "impact": dict(self.impact),
            "changes": [part.document() for part in self.parts],
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is said about one plan."""

    source: str
    digest: str
    generation: int  # live; 0: nothing was ever applied
    live_digest: str
    changes: tuple[Change, ...]
    drift: tuple[Change, ...]
    guards: tuple[str, ...]
    writes: Mapping[str, int]
    deletes: Mapping[str, int]
    made: Commit = NO_COMMIT

    def document(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT,
            "source": {"path": self.source, "sha256": self.digest, **_commit(self.made)},
            "live": {"generation": self.generation, "sha256": self.live_digest},
            "changes": [change.document() for change in self.changes],
            "drift": [change.document() for change in self.drift],
            "guards": list(self.guards),
            "map_writes": dict(self.writes),
            "map_deletes": dict(self.deletes),
        }


def describe(
    view: View,
    live: Live,
    source: tuple[str, bytes],
    configs: tuple[Config | None, Config],
    size: int,
    meta: abi.Meta | None,
    made: Commit = NO_COMMIT,
) -> Plan:
    """`configs` are the applied one, as far as it is known, and the new one."""
    names = Names.of(configs, size, live.actual, view.held)
    same = meta is not None and bytes(meta.digest) == source[1]
    changes = tuple(_changes(live.actual, view.held, names))
    return Plan(
        source=source[0],
        digest=source[1].hex(),
        generation=meta.generation if meta is not None else 0,
        live_digest=bytes(meta.digest).hex() if meta is not None else "",
        changes=() if same else changes,
        drift=tuple(drift(view.ops, live.actual)) if same else (),
        guards=tuple(str(finding) for finding in view.findings),
        writes=_count(view.ops, removals=False),
        deletes=_count(view.ops, removals=True),
        made=made,
    )


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


# ---- drift: the file is what was applied, and yet the maps differ


def drift(ops: tuple[Op, ...], actual: State) -> Iterator[Change]:
    """Not what follows from health, neighbours, overrides and the node file: nobody meddled there."""
    for op in ops:
        before = actual[op.where].get(op.key)
        if op.where in (Where.SETTINGS, Where.SPARES) or _expected(op, before):
            continue
        how = "missing" if before is None else "different"
        how = how if isinstance(op, Put) else "not ours"
        yield Change("restore", op.where.value, key_text(op.key), how)


def _expected(op: Op, before: Any) -> bool:  # noqa: ANN401 -- an entry of any map
    if not isinstance(op, Put) or before is None:
        return False
    if op.where is Where.SERVICES:
        return _settled(op.value) == _settled(before)
    return op.where is Where.BACKENDS and _unrouted(op.value) == _unrouted(before)


def _settled(entry: abi.Service) -> abi.Service:
    """A service whatever its pools' health."""
    plain = abi.Service.from_bytes(bytes(entry))
    plain.short_pools = 0
    return plain


def _unrouted(entry: abi.Backend) -> abi.Backend:
    """A backend whatever its next hop, and whatever an operator forces."""
    plain = abi.Backend.from_bytes(bytes(entry))
    plain.flags &= ~int(abi.BackendFlag.FORCED_UP | abi.BackendFlag.FORCED_DOWN)
    plain.ifindex = plain.mtu = 0
    plain.dmac = plain.smac = (0,) * 6
    return plain


# ---- changes: services, their pools, and their backends


def _changes(actual: State, held: State, names: Names) -> Iterator[Change]:
    seen: set[int] = set()
    old, new = _by_id(actual.services), _by_id(held.services)
    for number in sorted(old.keys() | new.keys(), key=lambda n: names.service(n, old, new).name):
        before, after = old.get(number), new.get(number)
        entry = after or before
        pools = {n for e in (before, after) if e for n in e.pools[: e.pool_count]} - seen
        seen |= pools
        parts = tuple(_pool_changes(pools, actual, held, names)) if after else ()
        said = _service_details(before, after, names)
        frontends = _frontends(number, actual, held)
        if entry and (parts or said or frontends or before is None or after is None):
            action = "create" if before is None else "update" if after else "delete"
            named = names.service(number, old, new)
            details = [*([] if after is None else said), *frontends]
            yield Change(action, "service", named.name, "; ".join(details), named.origin, parts)
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


def _pool_changes(pools: set[int], actual: State, held: State, names: Names) -> Iterator[Change]:
    for number in sorted(pools, key=names.pool):
        at = ids.index(number)
        before = actual.tables.get(at) if _is(actual.pools, number) else None
        after = held.tables.get(at) if _is(held.pools, number) else None
        backends = tuple(_backend_changes(number, actual, held, names))
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


def _backend_changes(pool: int, actual: State, held: State, names: Names) -> Iterator[Change]:
    old, new = _of_pool(pool, actual, names), _of_pool(pool, held, names)
    for name in sorted(old.keys() | new.keys(), key=lambda n: names.backend(n).name):
        before, after = old.get(name), new.get(name)
        said = names.backend(name)
        if before is None and after is not None:
            yield Change("create", "backend", said.name, _backend_text(after), said.origin)
        elif after is None and before is not None:
            yield Change("delete", "backend", said.name, _backend_text(before))
        elif before is not None and after is not None and (text := _difference(before, after)):
            yield Change("update", "backend", said.name, text, said.origin)


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


# ---- as text


def text(plan: Plan) -> str:
    lines = [
        f"source   {plan.source}  sha256:{plan.digest[:8]}  {plan.made}".rstrip(),
        f"live     generation {plan.generation}  sha256:{plan.live_digest[:8]}"
        if plan.generation
        else "live     nothing was ever applied",
        "",
    ]
    for change in (*plan.changes, *plan.drift):
        lines += _lines(change, 1)
    if not plan.changes and not plan.drift:
        lines.append("  no changes")
    return "\n".join([*lines, "", *_summary(plan), "", "Dry run: nothing was changed."])


def _lines(change: Change, depth: int) -> Iterator[str]:
    where = f"   {change.origin}" if change.origin.line else ""
    what = "drift   " if change.action == "restore" else ""
    head = f"{'  ' * depth}{SIGNS[change.action]} {what}{change.kind} {change.name}"
    yield f"{head:<30}  {change.detail}{where}".rstrip()
    for part in change.parts:
        yield from _lines(part, depth + 1)


def _summary(plan: Plan) -> Iterator[str]:
    counts = {action: sum(c.action == action for c in plan.changes) for action in SIGNS}
    yield (
        f"Plan: {counts['create']} to add, {counts['update']} to change,"
        f" {counts['delete']} to remove, {len(plan.drift)} drift to repair."
    )
    tables = plan.writes.get("tables", 0)
    yield (
        f"Maps: {sum(plan.writes.values())} writes, {sum(plan.deletes.values())} deletes,"
        f" {tables} of them tables."
    )
    yield from (f"Guard: {guard}" for guard in plan.guards)
