"""Whether a document has the shape that its schema asks for, in an author's words.

Adds no meaning: whether a named pool exists is config.py's question. Understands
the part of JSON Schema that our schemas use, and refuses to load a schema that
uses more. It adds one keyword, maxDuration, which validators of JSON Schema pass
over: a pattern can hardly compare minutes with hours. Neither oneOf nor anyOf is in it, so every error has one place and one
cause; and it takes a tenth of the time of a validator for all of JSON Schema.
"""

import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from reconciler.checks import seconds
from reconciler.problems import Mark, Problem, did_you_mean
from reconciler.yamlpos import Map, Seq

Content = Any  # whatever YAML may hold
Schema = Mapping[str, Any]
Path = tuple[Any, ...]  # linked: (path to the parent, key)

_TYPES: dict[str, tuple[str, Callable[[Content], bool]]] = {
    "object": ("a mapping", lambda v: isinstance(v, dict)),
    "array": ("a list", lambda v: isinstance(v, list)),
    "string": ("text", lambda v: isinstance(v, str)),
    "integer": ("a whole number", lambda v: type(v) is int),
    "boolean": ("true or false", lambda v: isinstance(v, bool)),
}
_NOTES = frozenset(
    {"$schema", "$id", "$ref", "$defs", "title", "description", "default", "examples"}
)


@dataclass(frozen=True, slots=True)
class Fault:
    """A keyword of a schema that a value does not satisfy."""

    keyword: str
    value: Content
    schema: Schema
    path: Path
    limit: Any


Check = Callable[[Content, Path, list[Fault]], None]


@functools.cache
def schema_text(name: str) -> str:
    """The published schema of that name: config, node, targets."""
    return (resources.files("schemas") / f"{name}.schema.json").read_text()


@functools.cache
def _checker(name: str) -> Check:
    schema = json.loads(schema_text(name))
    return _compiled(schema, schema)


def faults(root: Content, name: str) -> list[Fault]:
    """What the schema refuses about the document, in no order."""
    found: list[Fault] = []
    _checker(name)(root, (), found)
    return found


def problems(root: Content, name: str) -> list[Problem]:
    """The same in words, with places."""
    return [problem for fault in faults(root, name) for problem in _worded(fault, root)]


# ---- from a schema to a function


def _compiled(schema: Schema, whole: Schema) -> Check:
    if "$ref" in schema:
        target = whole["$defs"][schema["$ref"].removeprefix("#/$defs/")]
        return _compiled({**target, **_without_ref(schema)}, whole)
    unknown = schema.keys() - _NOTES - _KEYWORDS.keys() - {"type"}
    if unknown:
        raise ValueError(f"schema keywords that nobody checks: {sorted(unknown)}")
    wanted = _tests_of(schema)
    checks = [_KEYWORDS[key](schema, whole) for key in schema if key in _KEYWORDS]

    def check(value: Content, path: Path, found: list[Fault]) -> None:
        if wanted and not any(test(value) for test in wanted):
            found.append(Fault("type", value, schema, path, schema["type"]))
            return
        for each in checks:
            each(value, path, found)

    return check


def _without_ref(schema: Schema) -> dict[str, Any]:
    return {key: part for key, part in schema.items() if key != "$ref"}


def _tests_of(schema: Schema) -> list[Callable[[Content], bool]]:
    names = schema.get("type", [])
    return [_TYPES[name][1] for name in ([names] if isinstance(names, str) else names)]


def _properties(schema: Schema, whole: Schema) -> Check:
    parts = {key: _compiled(part, whole) for key, part in schema["properties"].items()}

    def check(value: Content, path: Path, found: list[Fault]) -> None:
        for key, content in value.items():
            part = parts.get(key)
            if part is not None:
                part(content, (path, key), found)

    return check


def _additional(schema: Schema, whole: Schema) -> Check:
    known = schema.get("properties", {}).keys()
    allowed = schema["additionalProperties"]
    part = _compiled(allowed, whole) if allowed is not False else None

    def check(value: Content, path: Path, found: list[Fault]) -> None:
        for key, content in value.items():
            if key in known:
                continue
            if part is not None:
                part(content, (path, key), found)
            else:
                found.append(Fault("additionalProperties", key, schema, path, known))

    return check


def _required(schema: Schema, _: Schema) -> Check:
    keys = schema["required"]

    def check(value: Content, path: Path, found: list[Fault]) -> None:
        missing = [key for key in keys if key not in value]
        found.extend(Fault("required", value, schema, path, key) for key in missing)

    return check


def _names(schema: Schema, whole: Schema) -> Check:
    part = _compiled(schema["propertyNames"], whole)

    def check(value: Content, path: Path, found: list[Fault]) -> None:
        for key in value:
            inner: list[Fault] = []
            part(key, path, inner)
            found += (
                Fault("propertyNames", key, fault.schema, path, fault.limit) for fault in inner
            )

    return check


def _items(schema: Schema, whole: Schema) -> Check:
    part = _compiled(schema["items"], whole)

    def check(value: Content, path: Path, found: list[Fault]) -> None:
        for index, item in enumerate(value):
            part(item, (path, index), found)

    return check


def _limit(keyword: str, kinds: tuple[type, ...], fine: Callable[[Any, Any], bool]) -> Any:  # noqa: ANN401
    """A keyword that compares a value of these types with a limit."""

    def compiled(schema: Schema, _: Schema) -> Check:
        limit = schema[keyword]

        def check(value: Content, path: Path, found: list[Fault]) -> None:
            if isinstance(value, kinds) and not fine(value, limit):
                found.append(Fault(keyword, value, schema, path, limit))

        return check

    return compiled


def _matches(value: str, pattern: str) -> bool:
    return _pattern(pattern).search(value) is not None


@functools.cache
def _pattern(text: str) -> re.Pattern[str]:
    # In JSON Schema, $ is the very end; in Python it is also the place before a last newline.
    return re.compile(text.removesuffix("$") + r"\Z" if text.endswith("$") else text)


def _longest(schema: Schema, _: Schema) -> Check:
    most, pattern = schema["maxDuration"], schema["pattern"]

    def check(value: Content, path: Path, found: list[Fault]) -> None:
        if _matches(value, pattern) and seconds(value) > seconds(most):
            found.append(Fault("maxDuration", value, schema, path, most))

    return check


def _is_unique(value: list[Content], _: bool) -> bool:
    return all(item not in value[:i] for i, item in enumerate(value))


_ANY = (object,)
_KEYWORDS: dict[str, Callable[[Schema, Schema], Check]] = {
    "properties": _properties,
    "additionalProperties": _additional,
    "required": _required,
    "propertyNames": _names,
    "items": _items,
    "enum": _limit("enum", _ANY, lambda value, known: value in known),
    "const": _limit("const", _ANY, lambda value, wanted: value == wanted),
    "pattern": _limit("pattern", (str,), _matches),
    "maxDuration": _longest,
    "maxLength": _limit("maxLength", (str,), lambda value, most: len(value) <= most),
    "minimum": _limit("minimum", (int,), lambda value, least: value >= least),
    "maximum": _limit("maximum", (int,), lambda value, most: value <= most),
    "minItems": _limit("minItems", (list,), lambda value, least: len(value) >= least),
    "maxItems": _limit("maxItems", (list,), lambda value, most: len(value) <= most),
    "uniqueItems": _limit("uniqueItems", (list,), _is_unique),
    "minProperties": _limit("minProperties", (dict,), lambda value, least: len(value) >= least),
}


# ---- from faults to words


def _worded(fault: Fault, root: Content) -> Iterator[Problem]:
    path = keys_of(fault.path)
    if fault.keyword == "additionalProperties":
        at = find(root, path).keys_at[fault.value]
        hint = did_you_mean(fault.value, fault.limit)
        yield Problem(at, f"{place(path)}unknown key {fault.value!r}", hint)
    elif fault.keyword == "required":
        yield from _missing_key(fault, root, path)
    elif fault.keyword == "propertyNames":
        yield _bad_name(fault, root, path)
    else:
        message = f"{place(path)}{_WORDS[fault.keyword](fault)}"
        yield Problem(mark_of(root, path), message, _hint(fault))


def _missing_key(fault: Fault, root: Content, path: list[Any]) -> Iterator[Problem]:
    """Unless an unknown key nearly is the missing one: that has been said already."""
    known = fault.schema["properties"]
    strangers = (key for key in fault.value if key not in known)
    if any(did_you_mean(key, [fault.limit]).startswith("did") for key in strangers):
        return
    hint = known[fault.limit].get("description", "")
    yield Problem(_key_mark(root, path), f"{place(path)}{fault.limit!r} is missing", hint)


def _bad_name(fault: Fault, root: Content, path: list[Any]) -> Problem:
    at = find(root, path).keys_at[fault.value]
    title = fault.schema.get("title", "a name")
    hint = fault.schema.get("description", "")
    return Problem(at, f"{place(path)}{fault.value!r} is not {title}", hint)


def _hint(fault: Fault) -> str:
    if fault.keyword == "enum" and isinstance(fault.value, str):
        return did_you_mean(fault.value, fault.limit)
    if fault.keyword == "type" and fault.value is None:
        return ""
    if fault.limit == "object" and isinstance(fault.value, list):
        return _as_mapping(fault.value)
    plain = [e for e in fault.schema.get("examples", []) if not isinstance(e, (dict, list))]
    examples = [json.dumps(e, ensure_ascii=False).strip('"') for e in plain]
    return f"for example {', '.join(examples)}" if examples else ""


def _as_mapping(value: list[Content]) -> str:
    """A list of names where each name has something to say: how that is written."""
    named = value and all(isinstance(item, str) for item in value)
    return f"each a key: {{{', '.join(f'{item}: {{...}}' for item in value)}}}" if named else ""


def _shown(value: Content) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, (dict, list)):
        return _TYPES["object" if isinstance(value, dict) else "array"][0]
    return json.dumps(value, ensure_ascii=False) if isinstance(value, bool) else repr(value)


def _of_type(fault: Fault) -> str:
    names = fault.limit if isinstance(fault.limit, list) else [fault.limit]
    wanted = " or ".join(_TYPES[name][0] for name in names)
    return f"expected {wanted}, not {_shown(fault.value)}"


def _of_version(fault: Fault) -> str:
    if str(fault.value).startswith("evenkeel/v"):
        return (
            f"format {fault.value} is not this program's {fault.limit}:"
            " use the program that reads it"
        )
    return f"expected {fault.limit}, not {_shown(fault.value)}"


_WORDS: dict[str, Callable[[Fault], str]] = {
    "type": _of_type,
    "const": _of_version,
    "enum": lambda f: f"{_shown(f.value)} is none of {', '.join(map(str, f.limit))}",
    "pattern": lambda f: f"{f.value!r} is not {f.schema.get('title', 'well formed')}",
    "maxDuration": lambda f: f"{f.value} is longer than {f.limit}",
    "minimum": lambda f: f"{f.value} is below {f.limit}",
    "maximum": lambda f: f"{f.value} is above {f.limit}",
    "minItems": lambda _: "the list is empty",
    "maxItems": lambda f: f"more than {f.limit} items",
    "minProperties": lambda _: "there must be at least one",
    "uniqueItems": lambda _: "an item is there twice",
    "maxLength": lambda f: f"longer than {f.limit} characters",
}


# ---- places


def keys_of(path: Path) -> list[Any]:
    keys: list[Any] = []
    while path:
        path, key = path
        keys.append(key)
    return keys[::-1]


def place(path: list[Any]) -> str:
    """`services[www].ports: `: names rather than indices; nothing at the root."""
    if not path:
        return ""
    words = [str(path[0])]
    for outer, inner in itertools.pairwise(path):
        named = outer in ("services", "pools", "checks", "backends", "interfaces", "peers")
        words.append(f"[{inner}]" if named or isinstance(inner, int) else f".{inner}")
    return f"{''.join(words)}: "


def find(root: Content, path: list[Any]) -> Content:
    return functools.reduce(lambda node, step: node[step], path, root)


def mark_of(root: Content, path: list[Any]) -> Mark:
    """Where the value at the path was written."""
    if not path:
        return root.at if isinstance(root, (Map, Seq)) else Mark(1, 1)
    mark: Mark = find(root, path[:-1]).values_at[path[-1]]
    return mark


def _key_mark(root: Content, path: list[Any]) -> Mark:
    """Where the key that leads to the mapping was written: it is what lacks something."""
    parent = find(root, path[:-1]) if path else root
    if path and isinstance(parent, Map):
        return parent.keys_at[path[-1]]
    return mark_of(root, path)
