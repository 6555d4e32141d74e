"""The text of a keepalived.conf, as blocks of words. Pure: what is included is handed in, and nothing is judged.

As keepalived reads it: # and ! begin comments outside of quotes, a backslash joins lines, braces nest,
`$NAME=value` defines, also several lines at once, what is put in where it is used, and `include` takes files in. Lines for some nodes only (`@id ...`) are told apart, not guessed at.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

DEEPEST = 16  # includes within includes, and definitions within definitions
LONGEST = 1 << 16  # letters that a line comes to
_INCLUDE = re.compile(r"include[rmwbca]*\Z")
_DEFINES = re.compile(r"\s*(@\S+\s+)?\$([A-Za-z_]\w*)=(.*)\Z", re.DOTALL)
_USES = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))")
_PARTS = re.compile(r'"([^"]*)"|([{}])|([#!])|((?:\\.|\$\{\w*\}|[^\s{}"#!\\])+)|(\\\Z)|(.)')

Files = Callable[
    [str, str], Iterable[tuple[str, str]]
]  # (pattern, from which file) -> names, texts


class Malformed(Exception):
    """Braces or quotes that do not match: nothing in the file can be trusted to be what it looks like."""


@dataclass(slots=True)
class Statement:
    """A line of words, and what is in the braces behind it."""

    words: tuple[str, ...]
    where: str  # file:line
    block: list["Statement"] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.words[0]

    def all(self, name: str) -> Iterator["Statement"]:
        return (inner for inner in self.block if inner.name == name)

    def has(self, name: str) -> bool:
        return any(self.all(name))

    def value(self, name: str, default: str = "") -> str:
        """The last one's, as keepalived takes it."""
        found = [inner.words[1] for inner in self.all(name) if len(inner.words) > 1]
        return found[-1] if found else default


@dataclass(frozen=True, slots=True)
class Parsed:
    """`root` holds everything; `conditional`: places of lines that are for some nodes only."""

    root: Statement
    conditional: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()  # includes that took nothing in


def parse(text: str, file: str, files: Files = lambda *_: ()) -> Parsed:
    reader = _Reader(files)
    reader.read(text, file, 0)
    if len(reader.open) > 1:
        raise Malformed(f"{reader.open[-1].where}: the block is not closed")
    return Parsed(reader.open[0], tuple(reader.conditional), tuple(reader.absent))


class _Reader:
    def __init__(self, files: Files) -> None:
        self._files = files
        self._defined: dict[str, str] = {}
        self.open = [Statement(("",), "")]
        self.conditional: list[str] = []
        self.absent: list[str] = []

    def read(self, text: str, file: str, depth: int) -> None:
        if depth > DEEPEST:
            raise Malformed(f"{file}: included {DEEPEST} deep: does it include itself?")
        for number, line in _lines(text):
            where = f"{file}:{number}"
            if found := _DEFINES.match(line):
                self.conditional += [where] if found[1] else []
                self._defined[found[2]] = found[3].strip()
                continue
            for one in self._substituted(line, where).split("\n"):
                self._take(_words(one, where), where, depth)

    def _substituted(self, line: str, where: str) -> str:
        """Values are looked into when they are used, not when they are defined."""
        for _ in range(DEEPEST):
            before = line
            line = _USES.sub(lambda use: self._defined.get(use[1] or use[2], use[0]), line)
            if line == before:
                return line
            if len(line) > LONGEST:
                break
        raise Malformed(f"{where}: definitions that use each other without an end")

    def _take(self, words: list[tuple[str, bool]], where: str, depth: int) -> None:
        """The words of one line; braces among them that were not quoted open and close."""
        line: list[str] = []
        for word, is_brace in words:
            if not is_brace:
                line.append(word)
                continue
            self._say(line, where, depth)
            line = []
            if word == "{":
                self._enter(where)
            else:
                self._leave(where)
        self._say(line, where, depth)

    def _enter(self, where: str) -> None:
        """Braces belong to the statement before them, on this line or on the one before."""
        if not self.open[-1].block:
            raise Malformed(f"{where}: a {{ without a name before it")
        self.open.append(self.open[-1].block[-1])

    def _leave(self, where: str) -> None:
        if len(self.open) == 1:
            raise Malformed(f"{where}: a }} that closes nothing")
        self.open.pop()

    def _say(self, words: list[str], where: str, depth: int) -> None:
        if words and words[0].startswith("@"):
            self.conditional.append(where)
            words = words[1:]
        if not words:
            return
        if _INCLUDE.match(words[0]) and len(words) > 1:
            self._include(words[1], where, depth)
        else:
            self.open[-1].block.append(Statement(tuple(words), where))

    def _include(self, pattern: str, where: str, depth: int) -> None:
        found = list(self._files(pattern, where.rpartition(":")[0]))
        if not found:
            self.absent.append(f"{where}: include {pattern}")
        for name, text in found:
            self.read(text, name, depth + 1)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """With their numbers; a backslash at the end joins the next one, in a definition as a line of its own."""
    held, began = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        began = began or number
        if line.endswith("\\"):
            held += line[:-1] + ("\n" if _DEFINES.match(held or line) else "")
            continue
        yield began, held + line
        held, began = "", 0
    if held:
        yield began, held


def _words(line: str, where: str) -> list[tuple[str, bool]]:
    """Each word, and whether it is a brace. @!id is no comment."""
    words: list[tuple[str, bool]] = []
    for part in _PARTS.finditer(line.replace("@!", "@\\!")):
        quoted, brace, comment, word, _, other = part.groups()
        if comment:
            break
        if other == '"':
            raise Malformed(f"{where}: a quote that is not closed")
        if brace:
            words.append((brace, True))
        elif quoted is not None or word:
            words.append((quoted if quoted is not None else word.replace("\\", ""), False))
    return words
