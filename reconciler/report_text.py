"""A plan as people read it: signs and words; colour says nothing that these do not. Pure."""

from collections.abc import Iterator, Mapping

from reconciler.report import Change, Plan

SIGNS = {"create": "+", "update": "~", "delete": "-", "restore": "!"}
COLOURS = {"create": "32", "update": "33", "delete": "31", "restore": "35"}
WIDE = 34


def text(plan: Plan, *, colour: bool = False) -> str:
    lines = [*_heads(plan), ""]
    for change in (*plan.changes, *plan.drift):
        lines += _lines(change, 1, colour=colour)
    if not plan.changes and not plan.drift:
        lines.append("  no changes")
    return "\n".join([*lines, "", *_summary(plan), "", _last(plan)])


def _heads(plan: Plan) -> Iterator[str]:
    yield f"source   {plan.source}  sha256:{plan.digest[:8]}  {plan.made}".rstrip()
    if plan.against:
        yield f"against  {plan.against}  sha256:{plan.live_digest[:8]}"
    elif plan.generation:
        yield f"live     generation {plan.generation}  sha256:{plan.live_digest[:8]}"
    else:
        yield "live     nothing was ever applied"


def _lines(change: Change, depth: int, *, colour: bool) -> Iterator[str]:
    where = f"   {change.origin}" if change.origin.line else ""
    what = "drift   " if change.action == "restore" else ""
    head = f"{'  ' * depth}{SIGNS[change.action]} {what}{change.kind} {change.name}"
    line = f"{head:<{WIDE}}  {change.detail}{_flows(change)}{where}".rstrip()
    yield f"\033[{COLOURS[change.action]}m{line}\033[0m" if colour else line
    for part in change.parts:
        yield from _lines(part, depth + 1, colour=colour)
    if change.note:
        yield f"{'  ' * (depth + 1)}! {change.note}"


def _flows(change: Change) -> str:
    live = change.impact.get("live_flows", 0)
    return f"  {live} live flow{'s' if live > 1 else ''}" if live else ""


def _summary(plan: Plan) -> Iterator[str]:
    counts = {action: sum(c.action == action for c in plan.changes) for action in SIGNS}
    yield (
        f"Plan: {counts['create']} to add, {counts['update']} to change,"
        f" {counts['delete']} to remove, {len(plan.drift)} drift to repair."
    )
    if not plan.against:
        yield from _maps(plan)
    if plan.live_flows:
        yield f"Flows: {plan.live_flows} live on the backends concerned."
    yield from (f"Drain: {drain}" for drain in plan.drains)
    yield from (f"Guard: {guard.text}" for guard in plan.guards)


def _maps(plan: Plan) -> Iterator[str]:
    writes, deletes = sum(plan.writes.values()), sum(plan.deletes.values())
    yield f"Maps: {writes} writes, {deletes} deletes."
    if writes:
        yield f"  write   {_counted(plan.writes)}"
    if deletes:
        yield f"  delete  {_counted(plan.deletes)}"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _last(plan: Plan) -> str:
    said = f"   plan {plan.plan_id}" if plan.plan_id else ""
    return f"Dry run: nothing was changed.{said}"
