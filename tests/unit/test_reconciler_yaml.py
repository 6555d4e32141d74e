"""YAML, read strictly: each refused form with its place and its hint."""

import pytest

from reconciler.problems import Mark
from reconciler.yamlpos import read


def test_knows_where_keys_and_values_are() -> None:
    root = read("a: 1\nb:\n  c: [x, yy]\n").root
    assert root == {"a": 1, "b": {"c": ["x", "yy"]}}
    assert root.keys_at["b"] == Mark(2, 1)
    assert root["b"].values_at["c"] == Mark(3, 6)
    assert root["b"]["c"].values_at == [Mark(3, 7), Mark(3, 10)]


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("a: &x 1\nb: 2\n", (1, 4), "anchor &x is not allowed"),
        ("a: &x 1\nb: *x\n", (2, 4), "alias *x is not allowed"),
        ("a: !!str 1\n", (1, 4), "tag tag:yaml.org,2002:str is not allowed"),
        ("a: {b: 1}\nc:\n  <<: 1\n", (3, 3), "merge keys are not allowed"),
        ("a: 1\nb: 2\na: 3\n", (3, 1), "duplicate key 'a'"),
        ("a: 1\n---\nb: 2\n", (2, 1), "a second document is not allowed"),
        ("%YAML 1.1\n---\na: 1\n", (1, 1), "directives are not allowed"),
        ("1: a\n", (1, 1), "a key must be text"),
        ("[a]: 1\n", (1, 1), "a key must be text"),
        ("a: [1\nb: 2\n", (2, 2), "not valid YAML: "),
        ("", (1, 1), "the file is empty"),
        ("# only this\n", (1, 1), "the file is empty"),
        ("ü: 1\na: \x01\n", (2, 4), "character \\x01 may not be in YAML"),
        ("ü: \0", (1, 4), "character \\x00 may not be in YAML"),
        ("a: \ufffe", (1, 4), "character \\ufffe may not be in YAML"),
    ],
)
def test_refuses(text: str, place: tuple[int, int], message: str) -> None:
    problems = read(text).problems
    assert any(p.mark == place and p.message.startswith(message) for p in problems), problems


@pytest.mark.parametrize(
    "word",
    ["yes", "No", "y", "On", "OFF", "True", "NULL", "010", "0x1f", "0o17", "1_000", "+1", "1e3",
     ".5", "1.", ".inf", ".nan", "22:22", "1:30", "10:20:30:40:50:59", "0a:1b:2c:3d:4e:5f",
     "1:2:3:4:5:6:7:8", "2024-01-02", "="],
)  # fmt: skip
def test_a_word_that_readers_take_differently_must_be_quoted(word: str) -> None:
    (problem,) = read(f"a: {word}\n").problems
    assert problem.message == f"ambiguous unquoted value {word}"
    assert "quote it" in problem.hint
    assert read(f'a: "{word}"\n').root == {"a": word}


@pytest.mark.parametrize(
    ("word", "value"),
    [("true", True), ("false", False), ("null", None), ("", None), ("7", 7), ("-3", -3),
     ("1.5", 1.5), ("on", "on"), ("off", "off"), ("80/tcp", "80/tcp"), ("20%", "20%"),
     ("192.0.2.10", "192.0.2.10"), ("2001:db8::10", "2001:db8::10"), ("5-tuple", "5-tuple")],
)  # fmt: skip
def test_plain_words(word: str, value: object) -> None:
    document = read(f"a: {word}\n")
    assert not document.problems
    assert document.root == {"a": value}
    assert type(document.root["a"]) is type(value)


def test_reports_every_error_at_once() -> None:
    problems = read("a: yes\nb: &x 010\na: 1\n").problems
    assert [p.mark.line for p in sorted(problems)] == [1, 2, 2, 3]


def test_the_end_marker_seals_a_file() -> None:
    assert read("a: 1\n...\n").sealed
    assert not read("a: 1\n").sealed


def test_nesting_has_a_limit() -> None:
    (problem,) = read("[" * 40 + "]" * 40).problems
    assert "nested too deeply" in problem.message


def test_a_huge_file_is_refused_unread() -> None:
    (problem,) = read("a" * (5 << 20)).problems
    assert "larger than 4 MiB" in problem.message
