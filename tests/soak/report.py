"""The soak in a page: what was asked, what went wrong, what explains it and what nothing explains. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.soak.excuses import Finding, Mishap, Symptom, Trouble, going_on

CLIENTS = tuple(one for one in Symptom if one is not Symptom.FELL)
ERRORS = tuple(one for one in CLIENTS if one is not Symptom.MOVED)
SHOWN = 20
DEED = "deed "
EARLIER, LATER = 10.0, 0.5  # seconds around a mishap of which all is told


@dataclass(frozen=True, slots=True)
class Account:
    """All there is to tell."""

    seed: int
    began: float
    ended: float
    counts: Mapping[str, int]
    deeds: Sequence[tuple[float, str]]
    findings: Sequence[Finding]
    troubles: Sequence[Trouble]
    complaints: Sequence[tuple[float, str]]
    seen: Sequence[tuple[float, str, str]] = ()  # in the maps: when, of which pool, what

    @property
    def unexplained(self) -> list[Finding]:
        return [one for one in self.findings if not one.excuses]

    @property
    def failures(self) -> int:
        return len(self.unexplained) + len(self.complaints)


def lines(account: Account) -> Iterator[str]:
    yield from _totals(account)
    yield from _table(account.findings)
    for finding in account.unexplained[:SHOWN]:
        yield from _unexplained(account, finding.mishap)
    if len(account.unexplained) > SHOWN:
        yield f"... and {len(account.unexplained) - SHOWN} more"
    for at, what in account.complaints:
        yield f"BROKEN at {at - account.began:.2f} s: {what}"
        yield from _story(account, at, at, "")
    yield verdict(account)


def _totals(account: Account) -> Iterator[str]:
    counts = account.counts
    for protocol in ("tcp", "udp"):
        asked, flows = (counts.get(f"{protocol} {what}", 0) for what in ("answers", "flows"))
        yield f"{asked} {protocol.upper()} requests answered, of {flows} flows"
    deeds = sorted(what for what in counts if what.startswith(DEED))
    yield f"done: {', '.join(f'{counts[one]} {one.removeprefix(DEED)}' for one in deeds)}"
    found = Counter(one.mishap.symptom for one in account.findings)
    yield (
        f"{sum(found[one] for one in ERRORS)} errors ({found[Symptom.RESET]} resets),"
        f" {found[Symptom.MOVED]} flows moved, {len(account.unexplained)} of them unexplained"
    )


def _table(findings: Sequence[Finding]) -> Iterator[str]:
    counts = Counter((one.kind, one.mishap.symptom) for one in findings)
    kinds = sorted({kind for kind, _ in counts})
    if not kinds:
        yield "nothing went wrong"
        return
    yield f"{'explained by':34}" + "".join(f"{one:>12}" for one in CLIENTS)
    for kind in kinds:
        yield f"{kind:34}" + "".join(f"{counts[kind, one] or '':>12}" for one in CLIENTS)


def _unexplained(account: Account, mishap: Mishap) -> Iterator[str]:
    since, at = (moment - account.began for moment in (mishap.since, mishap.at))
    yield f"UNEXPLAINED between {since:.2f} and {at:.2f} s: {mishap}"
    begun: dict[str, list[float]] = {}
    for trouble in going_on(account.troubles, mishap):
        begun.setdefault(str(trouble), []).append(trouble.begin - account.began)
    for what, when in begun.items():
        yield f"    going on: {what}, from {_moments(when)} s"
    yield from _story(account, mishap.since, mishap.at, mishap.pool)


def _moments(when: Iterable[float]) -> str:
    return ", ".join(dict.fromkeys(f"{one:.2f}" for one in when))


def _story(account: Account, since: float, at: float, pool: str) -> Iterator[str]:
    """What was done and what the maps said then, in one row."""
    told = [(when, f"done at {when - account.began:.2f} s: {what}") for when, what in account.deeds]
    told += [
        (when, f"seen at {when - account.began:.2f} s: {what}")
        for when, of, what in account.seen
        if pool in (of, "") or not of
    ]
    for when, line in sorted(told):
        if since - EARLIER <= when <= at + LATER:
            yield f"    {line}"


def verdict(account: Account) -> str:
    seconds = account.ended - account.began
    what = "nothing unexplained" if not account.failures else f"{account.failures} unexplained"
    return (
        f"soak {'ok' if not account.failures else 'FAILED'}: {what} in {seconds:.0f} s,"
        f" {len(account.deeds)} deeds, {len(account.findings)} mishaps of clients, seed {account.seed}."
    )
