"""Whether a document has the shape that its schema asks for, in an author's words.

Adds no meaning: whether a named pool exists is config.py's question. Schemas use
neither oneOf nor anyOf, so that every error has one place and one cause.
"""

import functools
import itertools
import json
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any

import jsonschema

from reconciler.problems import Mark, Problem, did_you_mean
from reconciler.yamlpos import Map, Seq

Content = Any  # whatever YAML may hold
Error = Any  # jsonschema.ValidationError, whose fields have no useful types

_TYPES = {
    "object": "a mapping",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "boolean": "true or false",
}


@functools.cache
def schema_text(name: str) -> str:
    """The published schema of that name: config, node, targets."""
    return (resources.files("schemas") / f"{name}.schema.json").read_text()


@functools.cache
def _validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(schema_text(name)))


def problems(root: Content, name: str) -> list[Problem]:
    """Everything about the document that its schema refuses."""
    return [
        problem
        for error in _validator(name).iter_errors(root)
        for problem in _problems(error, root)
    ]


def _problems(error: Error, root: Content) -> Iterator[Problem]:
    path = list(error.absolute_path)
    words = _WORDS.get(error.validator)
    if error.validator == "additionalProperties":
        yield from _unknown_keys(error, path)
    elif error.validator == "required":
        yield from _missing_keys(error, root, path)
    elif error.validator == "propertyNames" or "propertyNames" in error.absolute_schema_path:
        yield _bad_name(error, root, path)
    else:
        message = words(error) if words else error.message
        yield Problem(mark_of(root, path), f"{place(path)}{message}", _hint(error))


def _unknown_keys(error: Error, path: list[Any]) -> Iterator[Problem]:
    known = error.schema.get("properties", {})
    for key in error.instance:
        if key not in known:
            at = error.instance.keys_at[key]
            yield Problem(at, f"{place(path)}unknown key {key!r}", did_you_mean(key, known))


def _missing_keys(error: Error, root: Content, path: list[Any]) -> Iterator[Problem]:
    """Unless an unknown key nearly is the missing one: that has been said already."""
    known = error.schema["properties"]
    strangers = [key for key in error.instance if key not in known]
    for key in error.validator_value:
        if key in error.instance or repr(key) not in error.message:
            continue
        if any(did_you_mean(stranger, [key]).startswith("did") for stranger in strangers):
            continue
        hint = known[key].get("description", "") if key in known else ""
        yield Problem(_key_mark(root, path), f"{place(path)}{key!r} is missing", hint)


def _bad_name(error: Error, root: Content, path: list[Any]) -> Problem:
    parent = find(root, path)
    at = parent.keys_at.get(error.instance, parent.at)
    title = error.schema.get("title", "a name")
    hint = error.schema.get("description", "")
    return Problem(at, f"{place(path)}{error.instance!r} is not {title}", hint)


def _hint(error: Error) -> str:
    if error.validator == "enum" and isinstance(error.instance, str):
        return did_you_mean(error.instance, error.validator_value)
    if error.validator == "type" and error.instance is None:
        return ""
    examples = [json.dumps(e, ensure_ascii=False).strip('"') for e in _examples(error.schema)]
    return f"for example {', '.join(examples)}" if examples else ""


def _examples(schema: dict[str, Any]) -> list[Any]:
    return [e for e in schema.get("examples", []) if not isinstance(e, (dict, list))]


def _shown(value: Content) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, (dict, list)):
        return _TYPES["object" if isinstance(value, dict) else "array"]
    return json.dumps(value, ensure_ascii=False) if isinstance(value, bool) else repr(value)


def _of_type(error: Error) -> str:
    wanted = error.validator_value
    names = wanted if isinstance(wanted, list) else [wanted]
    return f"expected {' or '.join(_TYPES[name] for name in names)}, not {_shown(error.instance)}"


def _of_version(error: Error) -> str:
    got, ours = str(error.instance), error.validator_value
    if got.startswith("evenkeel/v"):
        return f"format {got} is not this program's {ours}: use the program that reads it"
    return f"expected {ours}, not {_shown(error.instance)}"


_WORDS: dict[str, Callable[[Error], str]] = {
    "type": _of_type,
    "const": _of_version,
    "enum": lambda e: f"{_shown(e.instance)} is none of {', '.join(map(str, e.validator_value))}",
    "pattern": lambda e: f"{e.instance!r} is not {e.schema.get('title', 'well formed')}",
    "minimum": lambda e: f"{e.instance} is below {e.validator_value}",
    "maximum": lambda e: f"{e.instance} is above {e.validator_value}",
    "minItems": lambda _: "the list is empty",
    "maxItems": lambda e: f"more than {e.validator_value} items",
    "minProperties": lambda _: "there must be at least one",
    "uniqueItems": lambda _: "an item is there twice",
    "maxLength": lambda e: f"longer than {e.validator_value} characters",
}


def place(path: list[Any]) -> str:
    """`services[www].ports: `: names rather than indices; nothing at the root."""
    if not path:
        return ""
    words = [str(path[0])]
    for outer, inner in itertools.pairwise(path):
        named = outer in ("services", "pools", "checks", "backends", "interfaces")
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
