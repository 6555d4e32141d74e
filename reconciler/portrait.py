"""What a table looks like: whose share is how large, and a digest to compare nodes by. Pure.

The digest is over names, never ids: equal on all nodes that have the same
configuration, whatever happened on them before.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from reconciler.table import Slots

KEPT = 4096


@dataclass(frozen=True, slots=True)
class Portrait:
    size: int
    digest: str
    shares: Mapping[int, float]  # by backend id


EMPTY = Portrait(0, "", {})
_drawn: dict[tuple[bytes, int], Portrait] = {}  # tables change seldom, and are large


def portrait(slots: Slots | None, names: Mapping[int, str]) -> Portrait:
    """Of a table whose slots hold ids; `names` are its backends'."""
    if not slots:
        return EMPTY
    content = hashlib.blake2b(slots, digest_size=16).digest()
    key = content, hash(frozenset(names.items()))
    if key not in _drawn:
        if len(_drawn) >= KEPT:
            _drawn.clear()
        _drawn[key] = _draw(slots, names)
    return _drawn[key]


def _draw(slots: Slots, names: Mapping[int, str]) -> Portrait:
    counts = Counter(slots)
    ordered = sorted(counts, key=lambda number: names.get(number, f"#{number}"))
    rank = {number: i for i, number in enumerate(ordered)}
    named = "\n".join(names.get(number, f"#{number}") for number in ordered)
    digest = hashlib.sha256(f"{len(slots)}\n{named}\n".encode())
    digest.update(Slots("I", [rank[number] for number in slots]))
    shares = {number: count / len(slots) for number, count in counts.items()}
    return Portrait(len(slots), digest.hexdigest(), shares)
