"""The soak in a page: what was asked, what went wrong, what explains it and what nothing explains. Pure."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.soak.excuses import Finding, Symptom, Trouble, going_on

CLIENTS = tuple(one for one in Symptom if one is not Symptom.FELL)
SHOWN = 20


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

    @property
    def unexplained(self) -> list[Finding]:
        return [one for one in self.findings if not one.excuses]

    @property
    def failures(self) -> int:
        return len(self.unexplained) + len(self.complaints)


def lines(account: Account) -> Iterator[str]:
    asked = ", ".join(f"{number} {what}" for what, number in sorted(account.counts.items()))
    yield f"asked: {asked or 'nothing'}"
    yield from _table(account.findings)
    for finding in account.unexplained[:SHOWN]:
        yield from _unexplained(account, finding)
    if len(account.unexplained) > SHOWN:
        yield f"... and {len(account.unexplained) - SHOWN} more"
    for at, what in account.complaints:
        yield f"BROKEN at {at - account.began:.2f} s: {what}"
    yield verdict(account)


def _table(findings: Sequence[Finding]) -> Iterator[str]:
    counts = Counter((one.kind, one.mishap.symptom) for one in findings)
    kinds = sorted({kind for kind, _ in counts})
    if not kinds:
        yield "nothing went wrong"
        return
    yield f"{'explained by':34}" + "".join(f"{one:>12}" for one in CLIENTS)
    for kind in kinds:
        yield f"{kind:34}" + "".join(f"{counts[kind, one] or '':>12}" for one in CLIENTS)


def _unexplained(account: Account, finding: Finding) -> Iterator[str]:
    mishap = finding.mishap
    since, at = (moment - account.began for moment in (mishap.since, mishap.at))
    yield f"UNEXPLAINED between {since:.2f} and {at:.2f} s: {mishap}"
    for trouble in going_on(account.troubles, mishap.since - 1, mishap.at):
        yield f"    going on: {trouble}, from {trouble.begin - account.began:.2f} s"
    for when, what in account.deeds:
        if mishap.since - 5 <= when <= mishap.at:
            yield f"    done at {when - account.began:.2f} s: {what}"


def verdict(account: Account) -> str:
    seconds = account.ended - account.began
    what = "nothing unexplained" if not account.failures else f"{account.failures} unexplained"
    return (
        f"soak {'ok' if not account.failures else 'FAILED'}: {what} in {seconds:.0f} s,"
        f" {len(account.deeds)} deeds, {len(account.findings)} mishaps of clients, seed {account.seed}."
    )
