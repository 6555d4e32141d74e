"""A plan that is kept, and applied later as it was or not at all. Pure.

It is bound to what it was made from: the file, this node's file, and what the maps
said. Counters, flows, health and next hops are no part of that: they change all
the time and no plan would ever be fresh.
"""

import hashlib
import operator
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from reconciler.dataplane import State, Where
from reconciler.drift import configured
from reconciler.report import FORMAT

SHORT = 12
_NAMES = {
    "instance": "it was made for another instance",
    "config": "the configuration is not the one that it was made from",
    "node": "node.yaml is not the one that it was made from",
    "maps": "the maps do not say any more what they said then",
}


class Unreadable(ValueError):
    """No saved plan, or one that this version does not know."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What a plan was made from."""

    instance: str
    config: str  # digests, in hex
    node: str
    maps: str
    allow_removals: bool = False

    @property
    def plan_id(self) -> str:
        said = "\n".join(map(str, asdict(self).values()))
        return hashlib.sha256(said.encode()).hexdigest()[:SHORT]

    def document(self) -> dict[str, Any]:
        return asdict(self)


def stale(plan: Bound, now: Bound) -> list[str]:
    """Why the plan must not be applied any more; nothing when it may."""
    then, found = plan.document(), now.document()
    return [
        f"{why} ({_short(then[name])}, now {_short(found[name])})"
        for name, why in _NAMES.items()
        if then[name] != found[name]
    ]


def _short(text: str) -> str:
    return text[:SHORT] or "none"


def bound(document: Any) -> Bound:  # noqa: ANN401 -- whatever a file says
    """What the saved plan in this document is bound to."""
    if not isinstance(document, Mapping) or "plan_id" not in document:
        raise Unreadable("this is no plan that --out saved")
    if document.get("format_version") != FORMAT:
        version = document.get("format_version")
        raise Unreadable(f"format {version!r} is not known here: {FORMAT!r} is. Make it anew")
    try:
        found = Bound(**document["bound"])
    except (KeyError, TypeError) as error:
        raise Unreadable("the plan is not bound to anything: make it with --out") from error
    if found.plan_id != document["plan_id"]:
        raise Unreadable("the plan was changed after it was made: make it anew")
    return found


def live_digest(state: State) -> str:
    """Of what is configured, as the maps have it."""
    digest = hashlib.sha256()
    for piece in _pieces(state):
        digest.update(len(piece).to_bytes(4) + piece)
    return digest.hexdigest()


def _pieces(state: State) -> Iterator[bytes]:
    for where in Where:
        if where is Where.SPARES:
            continue
        yield where.value.encode()
        entries = {_packed(key): entry for key, entry in state[where].items()}
        for key, entry in sorted(entries.items(), key=operator.itemgetter(0)):
            yield key
            yield _packed(configured(where, entry))


def _packed(value: Any) -> bytes:  # noqa: ANN401 -- a key or an entry of any map
    if isinstance(value, int):
        return value.to_bytes(8)
    return value.tobytes() if isinstance(value, array) else bytes(value)
