"""A status for people, from its document: whoever asks a daemon has nothing else. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

Document = Mapping[str, Any]
Row = Sequence[object]

GREEN, YELLOW, RED, PLAIN = "\033[32m", "\033[33m", "\033[31m", "\033[0m"
ROLES = {"master": GREEN, "backup": GREEN, "stop": YELLOW}
SHOWN_VERDICTS = 12


def render(status: Document, *, colour: bool = False) -> str:
    """The whole status, most wanted first."""
    sections = (
        _head(status),
        _conditions(status, colour),
        _vrrp(status, colour),
        _peers(status, colour),
        _services(status),
        _short_pools(status),
        *(_pool(pool, status, colour) for pool in status["pools"]),
        _verdicts(status),
        _listed("drift", status["drift"]),
        _listed("refused by guardrails", status["refused"]),
        _listed(
            "services that could not be applied",
            [f"{one['service']} ({one['reason']}): {one['message']}" for one in status["blocked"]],
        ),
        _drains(status),
        _overrides(status),
        _suspends(status),
        _history(status),
    )
    return "\n\n".join("\n".join(lines) for lines in map(list, sections) if lines)


def _head(status: Document) -> Iterator[str]:
    applied, attempted = status["applied"], status["attempted"]
    yield f"instance    {status['instance']}, {_daemon(status)}"
    attached = (
        f"{one['interface']} ({one['mode']}{', ' + one['reason'] if one['reason'] else ''})"
        for one in status["attached"]
    )
    yield f"attached    {', '.join(attached) or 'nowhere'}"
    yield from _programs(status)
    if applied:
        under_way = ", being written now" if status["applying"] else ""
        yield f"applied     {_content(applied)}, {_time(applied['at'])}{under_way}"
    else:
        yield "applied     nothing yet"
    if attempted and (not applied or attempted["digest"] != applied["digest"]):
        yield f"attempted   {_content(attempted)}, {_time(attempted['at'])}: {attempted['result']}"
    if attempted:
        yield f"source      {attempted['path']} {attempted['commit_text']}".rstrip()
    tables = [table for pool in status["pools"] for table in pool["tables"]]
    if tables:
        yield "tables      " + ", ".join(f"{t['name']} {t['digest'][:12]}" for t in tables)


def _programs(status: Document) -> Iterator[str]:
    program, before = status["program"], status["previous_program"]
    if program:
        since = f", since {_time(program['since'])}" if program["since"] else ""
        yield f"program     {_program(program)}{since}"
    if before:
        yield f"kept        {_program(before)}, for `reconciler upgrade --undo`"


def _program(one: Document) -> str:
    made_of = (
        f"{one['version']}, object {one['object']}" if one["object"] else "of an unknown object"
    )
    return f"{made_of}, tag {one['tag']}"


def _daemon(status: Document) -> str:
    daemon = status["daemon"]
    if daemon is None:
        return "read from the maps: no reconciler runs"
    return f"reconciler {daemon['version']}, pid {daemon['pid']}, since {_time(daemon['started'])}"


def _content(one: Document) -> str:
    commit = f", commit {one['commit'][:12]}" if one["commit"] else ""
    return f"generation {one['generation']}{commit}, sha256 {one['digest'][:12]}"


def _conditions(status: Document, colour: bool) -> Iterator[str]:
    rows = [
        (
            _painted(c["type"], GREEN if c["well"] else RED, colour),
            c["status"],
            c["reason"],
            f"since {_time(c['since'])}",
            _first_line(c["message"]),
        )
        for c in status["conditions"]
    ]
    yield from _table(("CONDITION", "", "REASON", "", ""), rows)


def _vrrp(status: Document, colour: bool) -> Iterator[str]:
    vrrp = status["vrrp"]
    if vrrp is None:
        return
    rows = [
        (
            one["name"],
            _painted(one["role"], ROLES.get(one["role"], RED), colour),
            "" if one["priority"] is None else one["priority"],
            f"since {_time(one['since'])}",
        )
        for one in vrrp["instances"]
    ]
    if rows:
        yield from _table(("VRRP", "ROLE", "PRIORITY", ""), rows)
    if not vrrp["running"]:
        yield "VRRP: keepalived does not run, or knows nothing of the FIFO"


def _peers(status: Document, colour: bool) -> Iterator[str]:
    rows = [
        (
            one["name"],
            _painted(_likeness(one), GREEN if one["agrees"] and one["answers"] else RED, colour),
            f"heard {_time(one['heard'])}" if one["heard"] else one["address"],
            one["trouble"] or ", ".join(one["differences"]),
        )
        for one in status["peers"]
    ]
    if rows:
        yield from _table(("PEER", "", "", ""), rows)


def _likeness(one: Document) -> str:
    if not one["answers"]:
        return "silent"
    if one["agrees"]:
        return "agrees"
    return f"differs for {one['differing_seconds']:.0f} s"


def _services(status: Document) -> Iterator[str]:
    rows = [
        (
            one["name"],
            " ".join(one["frontends"]),
            f"{one['forward']}, {one['balance']}",
            _serving(one),
            *_rates(one["rates"]),
        )
        for one in status["services"]
    ]
    if rows:
        yield from _table(
            ("SERVICE", "FRONTENDS", "HOW", "SERVED BY", "PKT/S", "BYTE/S", "NEW/S"), rows
        )


def _short_pools(status: Document) -> Iterator[str]:
    rows = [
        (
            short["name"],
            one["name"],
            f"{short['usable']} of {short['backends']} usable",
            f"below {short['panic_at']}" if short["usable"] < short["panic_at"] else "recovering",
            f"serves again with {short['serves_at']}",
            f"since {_time(short['since'])}" if short["since"] else "",
        )
        for one in status["services"]
        for short in one["short"]
    ]
    if rows:
        yield from _table(("SHORT POOL", "OF SERVICE", "", "", "", ""), rows)


def _serving(one: Document) -> str:
    if one["serving"] is None:
        return "nobody: dropped"
    return f"{one['serving']}, fail open" if one["fail_open"] else str(one["serving"])


def _pool(pool: Document, status: Document, colour: bool) -> Iterator[str]:
    yield f"POOL {pool['name']}: {pool['usable']} of {len(pool['backends'])} get new flows"
    until = {one["backend"]: one["until"] for one in status["overrides"]}
    rows = [
        (
            f"  {one['name']}",
            one["address"],
            _painted(_state(one), GREEN if one["usable"] else RED, colour),
            _because(one, until.get(f"{pool['name']}/{one['name']}")),
            one["weight"],
            f"{one['share']:.1%}",
            one["live_flows"],
            *_rates(one["rates"]),
        )
        for one in pool["backends"]
    ]
    yield from _table(
        ("  BACKEND", "ADDRESS", "STATE", "WHY", "WEIGHT", "SHARE", "FLOWS", "PKT/S", "BYTE/S", "NEW/S"),
        rows,
    )  # fmt: skip


def _state(one: Document) -> str:
    if one["override"]:
        return f"forced {one['override']}"
    if one["state"] != "up":
        return str(one["state"])
    if one["health"]["state"] == "unknown":
        return "up (unchecked)" if one["usable"] else "unknown"
    return str(one["health"]["state"])


def _because(one: Document, until: str | None) -> str:
    health = one["health"]
    since = f" since {_time(health['since'])}" if health["since"] else ""
    found = f"{health['reason']}{since}" if health["reason"] else ""
    parts = [f"until {_time(until)}" if until else "", one["reason"], found]
    if not one["reachable"]:
        parts.append("next hop not resolved")
    return "; ".join(part for part in parts if part)


def _rates(rates: Document | None) -> tuple[str, str, str]:
    if rates is None:
        return "-", "-", "-"
    return tuple(_short(rates[unit]) for unit in ("packets", "bytes", "flows"))  # type: ignore[return-value]


def _verdicts(status: Document) -> Iterator[str]:
    seen = sorted((v for v in status["verdicts"] if v["packets"]), key=lambda v: -v["packets"])
    rows = [
        (v["verdict"], v["packets"], "-" if v["packets_per_second"] is None else v["packets_per_second"])
        for v in seen[:SHOWN_VERDICTS]
    ]  # fmt: skip
    if rows:
        yield from _table(("VERDICT", "PACKETS", "PKT/S"), rows)


def _listed(title: str, lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield f"{title.upper()}"
        yield from (f"  {line}" for line in lines)


def _drains(status: Document) -> Iterator[str]:
    rows = [
        (
            one["backend"],
            one["flows_left"],
            "kept" if one["seconds_left"] is None else f"{one['seconds_left']:.0f} s",
        )
        for one in status["drains"]
    ]
    if rows:
        yield from _table(("DRAINING", "FLOWS LEFT", "TIME LEFT"), rows)


def _overrides(status: Document) -> Iterator[str]:
    rows = [
        (one["backend"], one["state"], f"until {_time(one['until'])}", one["by"], one["reason"])
        for one in status["overrides"]
    ]
    if rows:
        yield from _table(("OVERRIDE", "", "", "BY", "REASON"), rows)


def _suspends(status: Document) -> Iterator[str]:
    for one in status["suspends"]:
        until = f" until {_time(one['until'])}" if one["until"] else ""
        back = f", at generation {one['generation']}" if one["generation"] else ""
        yield f"SUSPENDED{until}{back} by {one['by']}: {one['reason']}"


def _history(status: Document) -> Iterator[str]:
    rows = [
        (one["generation"], one["digest"][:12], one["commit"][:12], _time(one["at"]), one["result"])
        for one in status["history"]
    ]
    if rows:
        yield from _table(("GENERATION", "SHA256", "COMMIT", "", "RESULT"), rows)


# ---- words and columns


def _time(text: str) -> str:
    return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M:%SZ")


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def _short(number: float) -> str:
    """Three figures and a letter."""
    letters = iter(" kMGTP")
    letter = next(letters)
    while number >= 1000:  # noqa: PLR2004 -- what a letter stands for
        number, letter = number / 1000, next(letters)
    return f"{number:.3g}{letter}".rstrip()


def _painted(word: str, colour: str, wanted: bool) -> str:
    return f"{colour}{word}{PLAIN}" if wanted else word


def _table(head: Row, rows: Iterable[Row]) -> Iterator[str]:
    """Columns as wide as their widest; paint has no width."""
    lines = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (c + " " * (w - _width(c)) for c, w in zip(line, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _width(cell: str) -> int:
    for paint in (GREEN, YELLOW, RED, PLAIN):
        cell = cell.replace(paint, "")
    return len(cell)
