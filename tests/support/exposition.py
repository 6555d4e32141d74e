"""Reads Prometheus' text format strictly, as a scraper would: what it refuses, a scraper may refuse."""

import re

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
_SAMPLE = re.compile(rf"({_NAME})(\{{{_LABEL}(?:,{_LABEL})*\}})? (-?[0-9.e+-]+|\+Inf|NaN)\Z")
_KINDS = ("counter", "gauge", "histogram")
_OF_HISTOGRAM = ("_bucket", "_sum", "_count")


def samples(text: str) -> dict[str, float]:
    """Values by name and labels; AssertionError for what the format does not allow."""
    assert text.endswith("\n"), "the last line has no end"
    kinds: dict[str, str] = {}
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            name, kind = line.removeprefix("# TYPE ").split(" ")
            assert name not in kinds, f"{name} is declared twice"
            assert kind in _KINDS, line
            assert kind != "counter" or name.endswith("_total"), f"counters end in _total: {name}"
            kinds[name] = kind
        elif not line.startswith("# HELP "):
            sample = _SAMPLE.match(line)
            assert sample, f"not a sample: {line!r}"
            assert _family(sample[1], kinds), f"{sample[1]} is not declared before"
            key = sample[1] + (sample[2] or "")
            assert key not in found, f"{key} is there twice"
            found[key] = float(sample[3])
    return found


def names(text: str) -> set[str]:
    return {key.partition("{")[0] for key in samples(text)}


def _family(name: str, kinds: dict[str, str]) -> bool:
    if name in kinds:
        return True
    stems = (name.removesuffix(end) for end in _OF_HISTOGRAM if name.endswith(end))
    return any(kinds.get(stem) == "histogram" for stem in stems)
