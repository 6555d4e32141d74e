"""Which configuration is to be applied, given what is known. Pure: no clock, no I/O, no logging.

Whatever is doubtful keeps what is applied: a source that cannot be read, a file that
was cut short, a history that was rewritten. Nothing here ever answers "empty".
"""

from dataclasses import dataclass
from enum import StrEnum

from reconciler.conditions import Trouble
from reconciler.revision import Ancestry, Candidate


class Use(StrEnum):
    CANDIDATE = "candidate"  # what the source offers
    CURRENT = "current"  # what is applied by this process stays
    LAST_GOOD = "last-good"  # after a start: what was applied before, from disk
    PINNED = "pinned"  # the generation that an operator went back to
    NOTHING = "nothing"  # there is none; the maps stay as they are


class Standing(StrEnum):
    """What is known to be good."""

    RUNNING = "running"  # applied by this process
    ON_DISK = "on-disk"  # kept from before
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Good:
    """The last configuration that was accepted, if any."""

    standing: Standing = Standing.NONE
    digest: bytes = b""
    sealed: bool = False

    @property
    def instead(self) -> Use:
        """What is used when the candidate is not."""
        if self.standing is Standing.RUNNING:
            return Use.CURRENT
        return Use.LAST_GOOD if self.standing is Standing.ON_DISK else Use.NOTHING


@dataclass(frozen=True, slots=True)
class Pause:
    """The source is not followed; `generation` is what was asked for instead, 0 if nothing was."""

    reason: str
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Rules:
    """What an operator allowed for this run."""

    allow_rollback: bool = False
    allow_unsealed: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    use: Use
    reason: str
    message: str = ""

    @property
    def refused(self) -> bool:
        """Whether the source offers something that is not taken."""
        return self.reason in REFUSALS


CUT_OFF = "CutOff"
REFUSALS = frozenset({CUT_OFF, "WentBack", "Diverged", "UnknownHistory"})
_TURNS = {
    Ancestry.BACKWARD: ("WentBack", "is older than the commit that was accepted"),
    Ancestry.DIVERGED: ("Diverged", "does not descend from the commit that was accepted"),
    Ancestry.UNKNOWN: ("UnknownHistory", "is in a repository without the commit that was accepted"),
}
_WAY_BACK = "to go back, commit a `git revert`; to accept this history, start with --allow-rollback"
_MARKER = (
    "the end marker `...` that the applied file has is missing: was this one cut off?"
    " Add it; if it is meant to go, start with --allow-unsealed"
)


def decide(
    offered: Candidate | Trouble | None, good: Good, pause: Pause | None, rules: Rules
) -> Decision:
    """What to apply, and why. `offered` is None until the source has said anything."""
    if pause is not None and pause.generation:
        return Decision(Use.PINNED, "RolledBack", pause.reason)
    if pause is not None and good.standing is not Standing.NONE:
        return Decision(good.instead, "Suspended", pause.reason)
    if offered is None:
        return Decision(_while_waiting(good), "Waiting", "the source has not answered yet")
    if isinstance(offered, Trouble):
        return Decision(good.instead, offered.reason, offered.message)
    return _judge(offered, good, rules)


def _judge(offered: Candidate, good: Good, rules: Rules) -> Decision:
    offer = offered.revision
    if offered.ancestry in _TURNS and not rules.allow_rollback:
        reason, what = _TURNS[offered.ancestry]
        return Decision(good.instead, reason, f"{offer.path}: {offer.made} {what}; {_WAY_BACK}")
    if offer.digest == good.digest and good.standing is Standing.RUNNING:
        return Decision(Use.CANDIDATE, "SameContent")
    if good.sealed and not offer.sealed and not rules.allow_unsealed:
        return Decision(good.instead, CUT_OFF, f"{offer.path}: {_MARKER}")
    return Decision(Use.CANDIDATE, "Accepted")


def _while_waiting(good: Good) -> Use:
    """A source that takes its time does not keep a restarted node from what it knows."""
    return good.instead if good.standing is Standing.RUNNING else Use.NOTHING
