"""health.json as the reconciler reads it: another user writes it, and nothing in it may end a pass."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from reconciler.healthfile import NAME, HealthFile

BACKEND = {
    "id": 1,
    "check": "alive",
    "since": "2026-11-29T12:00:00+00:00",
    "last": {"reason": "refused", "latency_ms": 1.5},
    "counters": {"passed": 1, "failed": 2, "reasons": {"refused": 2}},
}
WHOLE: dict[str, Any] = {
    "published_at": "2026-11-29T12:00:00+00:00",
    "checker": {"probes": 3},
    "conditions": [],
    "backends": [BACKEND],
}


def backend(**changes: object) -> str:
    return json.dumps({**WHOLE, "backends": [{**BACKEND, **changes}]})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[" * 100_000,
        json.dumps({**WHOLE, "published_at": "0001-01-01"}),
        json.dumps({**WHOLE, "checker": {"probes": "many"}}),
        json.dumps({**WHOLE, "conditions": [1]}),
        json.dumps({**WHOLE, "backends": {"a": 1}}),
        backend(id=[]),
        backend(last="refused"),
        backend(last={"latency_ms": "soon"}),
        backend(counters={"passed": "often"}),
        backend(counters={"reasons": {"refused": []}}),
    ],
    ids=itertools.count(),
)
def test_what_cannot_be_leaves_what_was_read_before(text: str, tmp_path: Path) -> None:
    path, reader = tmp_path / NAME, HealthFile(tmp_path)
    path.write_text(json.dumps(WHOLE))
    before = reader.read()
    assert before is not None
    assert before.backends[1].reason == "refused"
    path.unlink()
    path.write_text(text)
    assert reader.read() is before
    path.unlink()
    assert reader.read() is None
