"""YAML, read strictly, with the place of every key and value.

Refuses whatever two readers may understand differently: anchors, aliases, tags,
merge keys, duplicate keys, a second document, and unquoted words that are a
boolean, a number or a time to one YAML and text to another.
"""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from reconciler.problems import Mark, Problem

MAX_BYTES = 4 << 20
MAX_DEPTH = 32
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)\Z")
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]+\Z")
_CONSTANTS = {"": None, "~": None, "null": None, "true": True, "false": False}
_QUOTE = "quote it if it is text"
# The first pattern that fits says why the word is doubtful.
_AMBIGUOUS = [
    (re.compile(r"(y|yes|n|no)\Z", re.IGNORECASE), "use true or false, or quote it"),
    (re.compile(r"(True|TRUE|False|FALSE|Null|NULL)\Z"), "write it in lower case, or quote it"),
    (re.compile(r"(On|ON|Off|OFF)\Z"), "write it in lower case, or quote it"),
    (re.compile(r"[-+]?0[0-9xXoObB][0-9a-fA-F_]*\Z"), "write a plain decimal, or quote it"),
    (re.compile(r"\+[0-9]+\Z|[-+]?[0-9][0-9_]*_[0-9_]*\Z"), "write a plain decimal, or quote it"),
    (re.compile(r"[-+]?[0-9.]+[eE][-+]?[0-9]+\Z"), "write a plain decimal, or quote it"),
    (re.compile(r"[-+]?\.(inf|Inf|INF)\Z|\.(nan|NaN|NAN)\Z"), _QUOTE),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.)\Z"), "write a plain decimal, or quote it"),
    (re.compile(r"[-+]?[0-9]+(:[0-9]+)+\Z"), "a time to some readers: quote it"),
    (re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}\Z"), "a time to some readers: quote it"),
    (re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}"), "a date to some readers: quote it"),
    (re.compile(r"=\Z"), _QUOTE),
]


Event = Any  # of PyYAML, which comes without types
Content = Any  # whatever YAML may hold


class Map(dict[str, Any]):
    """A mapping that knows where its keys and values were written."""

    __slots__ = ("at", "keys_at", "values_at")

    def __init__(self, at: Mark) -> None:
        super().__init__()
        self.at = at
        self.keys_at: dict[str, Mark] = {}
        self.values_at: dict[str, Mark] = {}


class Seq(list[Any]):
    """A sequence that knows where its items were written."""

    __slots__ = ("at", "values_at")

    def __init__(self, at: Mark) -> None:
        super().__init__()
        self.at = at
        self.values_at: list[Mark] = []


@dataclass(frozen=True, slots=True)
class Document:
    root: Any
    problems: tuple[Problem, ...]
    sealed: bool = False  # ends with `...`, so that a cut-off copy can be told


def read(text: str) -> Document:
    """The document, as far as it can be read, and everything wrong with its form."""
    if len(text) > MAX_BYTES:
        return _refused(f"the file is larger than {MAX_BYTES >> 20} MiB")
    reader = _Reader(text)
    try:
        return reader.document()
    except yaml.MarkedYAMLError as error:
        return Document(None, (*reader.problems, _syntax(error)))
    except yaml.reader.ReaderError as error:
        return Document(None, (_unacceptable(text, chr(error.character)),))


def _unacceptable(text: str, character: str) -> Problem:
    """The parser's own position is in bytes, or in characters, as it was built."""
    lines = text[: text.index(character)].split("\n")
    place = Mark(len(lines), len(lines[-1]) + 1)
    code = f"\\x{ord(character):02x}" if ord(character) < 256 else f"\\u{ord(character):04x}"  # noqa: PLR2004
    return Problem(place, f"character {code} may not be in YAML", f'as text it is "{code}"')


def _refused(message: str) -> Document:
    return Document(None, (Problem(Mark(1, 1), message),))


def _syntax(error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    context = error.context or ""
    hint = _syntax_hint(str(error.problem), context)
    place = Mark(mark.line + 1, mark.column + 1) if mark else Mark(1, 1)
    message = f"{error.problem}, {context}" if context else str(error.problem)
    return Problem(place, f"not valid YAML: {message}", hint)


def _syntax_hint(problem: str, context: str) -> str:
    if "cannot start any token" in problem:
        return "a tab? YAML is indented with spaces; text that begins with @, ` or % is quoted"
    return 'quote a word that starts with "*" or "&"' if "alias" in context else ""


class _Reader:
    """One pass over the events of the parser; nothing is composed twice."""

    def __init__(self, text: str) -> None:
        self._events: Iterator[Any] = iter(yaml.parse(text, Loader=_Loader))
        self.problems: list[Problem] = []

    def document(self) -> Document:
        next(self._events)  # the stream starts
        start = next(self._events)
        if isinstance(start, yaml.StreamEndEvent):
            return _refused("the file is empty")
        if start.version or start.tags:
            self._complain(start, "directives are not allowed", "remove the line")
        root = self._node(next(self._events), 0)
        end = next(self._events)
        self._nothing_follows()
        return Document(root, tuple(self.problems), end.explicit)

    def _nothing_follows(self) -> None:
        after = next(self._events)
        if isinstance(after, yaml.DocumentStartEvent):
            self._complain(after, "a second document is not allowed", "one file, one document")

    def _complain(self, event: Event, message: str, hint: str = "") -> None:
        self.problems.append(Problem(_mark(event), message, hint))

    def _node(self, event: Event, depth: int) -> Content:
        if isinstance(event, yaml.AliasEvent):
            self._complain(event, f"alias *{event.anchor} is not allowed", "write it out")
            return None
        if event.anchor is not None:
            self._complain(event, f"anchor &{event.anchor} is not allowed", "write it out")
        if event.tag is not None:
            self._complain(event, f"tag {event.tag} is not allowed", "remove it")
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        if depth == MAX_DEPTH:
            raise yaml.MarkedYAMLError(None, None, "nested too deeply", event.start_mark)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(event, depth + 1)
        return self._sequence(event, depth + 1)

    def _sequence(self, start: Event, depth: int) -> Seq:
        result = Seq(_mark(start))
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            result.values_at.append(_mark(event))
            result.append(self._node(event, depth))
        return result

    def _mapping(self, start: Event, depth: int) -> Map:
        result = Map(_mark(start))
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._key(event, depth, result)
            value = next(self._events)
            at = _mark(value)
            content = self._node(value, depth)
            if key is not None:
                result.keys_at[key] = _mark(event)
                result.values_at[key] = at
                result[key] = content
        return result

    def _key(self, event: Event, depth: int, parent: Map) -> str | None:
        """The key, or None when it is unusable (and complained about)."""
        if isinstance(event, yaml.ScalarEvent) and event.value == "<<" and not event.style:
            self._complain(event, "merge keys are not allowed", "write it out")
            return None
        before = len(self.problems)
        key = self._node(event, depth)
        if len(self.problems) > before:
            return None
        if not isinstance(key, str):
            self._complain(event, "a key must be text", "quote it")
            return None
        if key in parent:
            first = parent.keys_at[key].line
            self._complain(event, f"duplicate key {key!r}", f"first defined on line {first}")
            return None
        return key

    def _scalar(self, event: Event) -> Content:
        text: str = event.value
        if event.style in ("'", '"', "|", ">"):
            return text
        value, hint = _plain(text)
        if hint:
            self._complain(event, f"ambiguous unquoted value {text}", hint)
        return value


@functools.lru_cache(maxsize=1 << 16)
def _plain(text: str) -> tuple[Content, str]:
    """What an unquoted word means, or why nobody can tell. Words repeat, so it is remembered."""
    if text in _CONSTANTS:
        return _CONSTANTS[text], ""
    if _INTEGER.match(text):
        return (int(text) if len(text) <= len(str(1 << 63)) else text), ""
    if _DECIMAL.match(text):
        return float(text), ""
    for pattern, hint in _AMBIGUOUS:
        if pattern.match(text):
            return None, hint
    return text, ""


def _mark(event: Event) -> Mark:
    mark = event.start_mark
    return Mark(mark.line + 1, mark.column + 1)
