"""What is applied, given what is known: every case as a line of a table."""

import pytest

from reconciler.acceptance import Decision, Good, Pause, Rules, Standing, Use, decide
from reconciler.conditions import Trouble
from reconciler.revision import Ancestry, Candidate, Commit, SourceError, revision, sealed

SEALED, OPEN, OTHER = b"a: 1\n...\n", b"a: 1\n", b"a: 2\n...\n"


def offer(data: bytes, ancestry: Ancestry = Ancestry.UNASKED) -> Candidate:
    return Candidate(revision("lb.yaml", data, Commit("c" * 40)), ancestry)


def good(standing: Standing, data: bytes = SEALED) -> Good:
    known = revision("lb.yaml", data)
    return Good(standing, known.digest, known.sealed)


RUNNING, ON_DISK, NONE = good(Standing.RUNNING), good(Standing.ON_DISK), Good()
MISSING = Trouble("FileMissing", "lb.yaml: there is no such file")
PAUSED, BACK = Pause("incident"), Pause("incident", 41)
FREE = Rules(allow_rollback=True, allow_unsealed=True)
FOLLOW = Rules()

CASES = [
    # offered, known to be good, pause, rules -> use, reason
    (None, NONE, None, FOLLOW, Use.NOTHING, "Waiting"),
    (None, ON_DISK, None, FOLLOW, Use.NOTHING, "Waiting"),
    (None, RUNNING, None, FOLLOW, Use.CURRENT, "Waiting"),
    (MISSING, NONE, None, FREE, Use.NOTHING, "FileMissing"),
    (MISSING, ON_DISK, None, FREE, Use.LAST_GOOD, "FileMissing"),
    (MISSING, RUNNING, None, FREE, Use.CURRENT, "FileMissing"),
    (offer(OTHER), NONE, None, FOLLOW, Use.CANDIDATE, "Accepted"),
    (offer(OTHER), ON_DISK, None, FOLLOW, Use.CANDIDATE, "Accepted"),
    (offer(OTHER), RUNNING, None, FOLLOW, Use.CANDIDATE, "Accepted"),
    (offer(SEALED), RUNNING, None, FOLLOW, Use.CANDIDATE, "SameContent"),
    (offer(OPEN), RUNNING, None, FOLLOW, Use.CURRENT, "CutOff"),
    (offer(OPEN), ON_DISK, None, FOLLOW, Use.LAST_GOOD, "CutOff"),
    (offer(OPEN), RUNNING, None, FREE, Use.CANDIDATE, "Accepted"),
    (offer(OPEN), NONE, None, FOLLOW, Use.CANDIDATE, "Accepted"),
    (offer(OPEN), good(Standing.RUNNING, b"a: 0\n"), None, FOLLOW, Use.CANDIDATE, "Accepted"),
    (offer(OTHER, Ancestry.FORWARD), RUNNING, None, FOLLOW, Use.CANDIDATE, "Accepted"),
    (offer(OTHER, Ancestry.SAME), RUNNING, None, FOLLOW, Use.CANDIDATE, "Accepted"),
    (offer(OTHER, Ancestry.BACKWARD), RUNNING, None, FOLLOW, Use.CURRENT, "WentBack"),
    (offer(OTHER, Ancestry.DIVERGED), RUNNING, None, FOLLOW, Use.CURRENT, "Diverged"),
    (offer(OTHER, Ancestry.UNKNOWN), RUNNING, None, FOLLOW, Use.CURRENT, "UnknownHistory"),
    (offer(SEALED, Ancestry.BACKWARD), RUNNING, None, FOLLOW, Use.CURRENT, "WentBack"),
    (offer(OTHER, Ancestry.BACKWARD), ON_DISK, None, FOLLOW, Use.LAST_GOOD, "WentBack"),
    (offer(OTHER, Ancestry.DIVERGED), NONE, None, FOLLOW, Use.NOTHING, "Diverged"),
    (offer(OTHER, Ancestry.DIVERGED), RUNNING, None, FREE, Use.CANDIDATE, "Accepted"),
    (offer(OTHER), RUNNING, PAUSED, FOLLOW, Use.CURRENT, "Suspended"),
    (offer(OTHER), ON_DISK, PAUSED, FOLLOW, Use.LAST_GOOD, "Suspended"),
    (offer(OTHER), NONE, PAUSED, FOLLOW, Use.CANDIDATE, "Accepted"),
    (MISSING, RUNNING, PAUSED, FOLLOW, Use.CURRENT, "Suspended"),
    (offer(OTHER), RUNNING, BACK, FOLLOW, Use.PINNED, "RolledBack"),
    (MISSING, ON_DISK, BACK, FOLLOW, Use.PINNED, "RolledBack"),
    (None, NONE, BACK, FREE, Use.PINNED, "RolledBack"),
]  # fmt: skip


@pytest.mark.parametrize(("offered", "known", "pause", "rules", "use", "reason"), CASES)
def test_what_is_applied(
    offered: Candidate | Trouble | None,
    known: Good,
    pause: Pause | None,
    rules: Rules,
    use: Use,
    reason: str,
) -> None:
    decided = decide(offered, known, pause, rules)
    assert (decided.use, decided.reason) == (use, reason)


def test_a_refusal_names_the_way_out() -> None:
    went_back = decide(offer(OTHER, Ancestry.BACKWARD), RUNNING, None, FOLLOW)
    assert went_back.refused
    assert "git revert" in went_back.message
    assert "--allow-rollback" in went_back.message
    cut = decide(offer(OPEN), RUNNING, None, FOLLOW)
    assert cut.refused
    assert "--allow-unsealed" in cut.message
    assert not Decision(Use.CURRENT, "FileMissing").refused


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\n...\n", True),
        ("a: 1\n...", True),
        ("a: 1\n...  # the end\n\n# really\n", True),
        ("a: 1\n", False),
        ("a: |\n  ...\n", False),
        ("a: ...\n", False),
        ("", False),
    ],
)
def test_the_end_marker_is_a_line_of_its_own(text: str, expected: bool) -> None:
    assert sealed(text) is expected


@pytest.mark.parametrize(("data", "reason"), [(b"", "FileEmpty"), (b" \n", "FileEmpty"), (b"\xff", "NotText")])  # fmt: skip
def test_nothing_is_never_a_configuration(data: bytes, reason: str) -> None:
    with pytest.raises(SourceError) as caught:
        revision("lb.yaml", data)
    assert caught.value.reason == reason
