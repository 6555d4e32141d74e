"""Our check of shapes against an implementation of all of JSON Schema."""

import copy
import json
from typing import Any

import jsonschema
import yaml
from hypothesis import given
from hypothesis import strategies as st

from reconciler import config, shape
from reconciler.problems import Rejected

VALID = {
    "config": """
apiVersion: evenkeel/v1
defaults: {forward: dsr, balance: {hash: source}, idle: {tcp: 1h}}
checks: {alive: {type: http, path: /up, expect: [200-204, 401], every: 500ms, fall: 5}}
pools: {web: {check: alive, initial: up, backends: {w1: {address: 10.1.2.101, port: 80, weight: 3}}}}
services: {www: {addresses: [192.0.2.10], ports: [80/tcp], pools: [web], panic: 20%, echo: true}}
guardrails: {removed-services: 10%, allow-empty: true}
""",
    "node": """
apiVersion: evenkeel/v1
interfaces: {wan: {mode: native}, lan: {}}
table-size: 4093
sizes: {flows4: 1024}
tunnel-source: {ipv4: 10.1.2.1}
nat-ports: 30000-30999
""",
}
words = st.sampled_from(
    [
        "",
        "up",
        "80/tcp",
        "20%",
        "5s",
        "evenkeel/v1",
        "nat",
        "x y",
        "-",
        "/",
        "200-299",
        "a" * 300,
    ]
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(-2, 10**10), st.just(1.5), words)
contents = st.one_of(
    scalars, st.lists(scalars, max_size=3), st.dictionaries(words, scalars, max_size=2)
)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    return [path, *(place for key, part in items for place in places(part, (*path, key)))]


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, Any]:
    """Something valid with a few things wrong."""
    name = draw(st.sampled_from(sorted(VALID)))
    document = copy.deepcopy(yaml.safe_load(VALID[name]))
    for _ in range(draw(st.integers(0, 3))):
        path = draw(st.sampled_from(places(document)))
        if not path:
            continue
        parent = shape.find(document, list(path[:-1]))
        what = draw(st.sampled_from(["replace", "remove", "add"]))
        if what == "replace":
            parent[path[-1]] = draw(contents)
        elif what == "remove":
            del parent[path[-1]]
        elif isinstance(parent, dict):
            parent[draw(words)] = draw(contents)
        else:
            parent.append(draw(contents))
    return name, document


@given(documents())
def test_both_find_fault_with_the_same_places(case: tuple[str, Any]) -> None:
    """Ours says less about a value of the wrong type: its type is enough."""
    name, document = case
    schema = json.loads(shape.schema_text(name))
    errors = jsonschema.Draft202012Validator(schema).iter_errors(document)
    ours = {tuple(shape.keys_of(fault.path)) for fault in shape.faults(document, name)}
    assert ours == {tuple(error.absolute_path) for error in errors}


@given(documents())
def test_whatever_is_wrong_can_be_said(case: tuple[str, Any]) -> None:
    """Every fault has a place and words; nothing but Rejected comes out."""
    name, document = case
    said = ""
    try:
        config.parse(yaml.safe_dump(document), "lb.yaml", name)
    except Rejected as rejected:
        said = str(rejected)
    assert bool(said) == bool(shape.faults(document, name))
    assert not said or said.startswith("lb.yaml:")


def test_a_newline_at_the_end_is_no_end() -> None:
    """As JSON Schema has it, and Python's own `$` has not."""
    document = yaml.safe_load(VALID["node"])
    document["interfaces"]["wan\n"] = {}
    assert [fault.keyword for fault in shape.faults(document, "node")] == ["propertyNames"]
