"""Whether two balancers forward alike: what each says of itself, compared; and for how long they differ. Pure.

Tables depend on configuration alone, so nodes with one file must have the same ones,
slot by slot. Where they have not, connections break when an address moves, and at no
other time: nobody would notice. A difference that is younger than the patience is a
deployment under way.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

SHORT = 12  # letters of a digest that people are shown
LISTED = 5  # tables


@dataclass(frozen=True, slots=True)
class Identity:
    """What a node forwards: equal on nodes that agree. Generations are each node's own counts."""

    digest: str
    commit: str
    tables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of asking a peer once; no identity: why it did not answer."""

    identity: Identity | None = None
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Peer:
    """What is known of a peer. Times are of a clock that never jumps, except `heard`."""

    name: str
    address: str
    patience: float
    began: float
    answered: float | None = None  # when it last did
    heard: float | None = None  # seconds since the epoch
    identity: Identity | None = None
    trouble: str = ""
    differences: tuple[str, ...] = ()
    differing_since: float | None = None

    def silent(self, now: float) -> bool:
        """Whether it has not answered for longer than its patience."""
        return now - (self.began if self.answered is None else self.answered) >= self.patience

    def differs(self, now: float) -> bool:
        """Whether it has differed for longer than its patience."""
        return self.differing_since is not None and now - self.differing_since >= self.patience


def asked(before: Peer, own: Identity | None, answer: Answer, now: float, wall: float) -> Peer:
    """What is known after asking. While a peer is silent, what it last said stands."""
    if answer.identity is None:
        return replace(before, trouble=answer.trouble)
    found = tuple(differences(own, answer.identity)) if own else ()
    since = before.differing_since if before.differing_since is not None else now
    return replace(
        before,
        answered=now,
        heard=wall,
        identity=answer.identity,
        trouble="",
        differences=found,
        differing_since=since if found else None,
    )


def differences(own: Identity, other: Identity) -> Iterator[str]:
    """In words, the cause before its effects."""
    if own.digest != other.digest:
        yield f"configuration {_short(own.digest)} here, {_short(other.digest)} there"
    if own.commit and other.commit and own.commit != other.commit:
        yield f"commit {_short(own.commit)} here, {_short(other.commit)} there"
    unequal = [
        name
        for name in sorted(own.tables.keys() | other.tables.keys())
        if own.tables.get(name) != other.tables.get(name)
    ]
    for name in unequal[:LISTED]:
        here, there = own.tables.get(name, ""), other.tables.get(name, "")
        yield f"table {name} {_short(here)} here, {_short(there)} there"
    if len(unequal) > LISTED:
        yield f"and {len(unequal) - LISTED} more tables"
    if unequal and own.digest == other.digest:
        yield "the same configuration, other tables: is table-size in node.yaml the same on both?"


def _short(text: str) -> str:
    return text[:SHORT] or "nothing"
