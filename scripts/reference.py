"""The reference pages of docs/, made from the schemas and from abi.h, which say it already.

reference.py            write docs/reference/ anew
reference.py --check    say which pages are not what they would be; exit code 1 if any
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs/reference"
MADE = "<!-- made by scripts/reference.py (make reference): edit {source} instead -->\n"
Schema = Mapping[str, Any]


# ---- the files, from their schemas


def page_of(source: str) -> str:
    schema = json.loads((ROOT / source).read_text())
    lines = [f"# {schema['title']}", "", MADE.format(source=source), schema["description"]]
    for path, found in _objects(schema, schema, ""):
        lines += ["", f"## `{path}`" if path else "## The file", ""]
        if path:
            lines += [found.get("description", ""), ""]
        lines += _table(found, schema)
    return "\n".join(lines) + "\n"


def _objects(found: Schema, schema: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    """Every object that has keys, parents first; each under the path that a file has it at."""
    found = _resolved(found, schema)
    if "properties" in found:
        yield path, found
        for key, value in found["properties"].items():
            yield from _objects(value, schema, f"{path}.{key}" if path else key)
    elif isinstance(found.get("additionalProperties"), dict):
        yield from _objects(found["additionalProperties"], schema, f"{path}.NAME")
    elif "items" in found:
        yield from _objects(found["items"], schema, f"{path}[]")


def _table(found: Schema, schema: Schema) -> Iterator[str]:
    required = found.get("required", ())
    yield "| key | what it is | values | default | for example |"
    yield "|---|---|---|---|---|"
    for key, value in found["properties"].items():
        whole = _resolved(value, schema)
        default = "must be given" if key in required else _code(whole.get("default"))
        example = _code(next(iter(whole.get("examples", ())), None))
        cells = (f"`{key}`", whole.get("description", ""), _values(whole, schema), default, example)
        yield f"| {' | '.join(_cell(one) for one in cells)} |"


def _resolved(value: Schema, schema: Schema) -> Schema:
    """What a reference says, under what stands beside it."""
    if "$ref" not in value:
        return value
    name = value["$ref"].rpartition("/")[2]
    beside = {key: one for key, one in value.items() if key != "$ref"}
    return {**_resolved(schema["$defs"][name], schema), **beside}


def _values(found: Schema, schema: Schema) -> str:
    if "enum" in found:
        return ", ".join(f"`{one}`" for one in found["enum"])
    if "const" in found:
        return f"`{found['const']}`"
    if "items" in found:
        return f"list of {_values(_resolved(found['items'], schema), schema)}"
    if found.get("type") == "integer" and "minimum" in found:
        return f"{found['minimum']} to {found['maximum']}" if "maximum" in found else "number"
    if "title" in found:
        return str(found["title"])
    kinds = found.get("type", "")
    return kinds if isinstance(kinds, str) else " or ".join(kinds)


def _code(value: object) -> str:
    if value is None:
        return ""
    plain = isinstance(value, str) and value.isprintable()
    return f"`{value if plain else _flow(value)}`"


def _flow(value: object) -> str:
    """As YAML's flow style would have it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return (
        value if isinstance(value, str) and re.fullmatch(r"[\w./-]+", value) else json.dumps(value)
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


# ---- verdicts, from what the compiler reads


def verdicts() -> str:
    header, program = (ROOT / "bpf" / name for name in ("abi.h", "lb.bpf.c"))
    enum = re.search(r"enum verdict \{(.*?)VERDICT_COUNT", header.read_text(), re.DOTALL)
    actions = _actions(program.read_text())
    assert enum is not None, "abi.h has no enum verdict"  # noqa: S101 -- ours to keep
    found = re.findall(r"VERDICT_(\w+),(?:\s*/\*\s*(.*?)\s*\*/)?", enum[1], re.DOTALL)
    rows = (
        f"| `{name.lower()}` | {actions.get(name, 'dropped')} | {_cell(' '.join(why.split()))} |"
        for name, why in found
    )
    return "\n".join((
        "# Verdicts", "", MADE.format(source="bpf/abi.h"),
        "Why each packet went where it went. Every packet has exactly one; `status`, `explain` and the metric",
        "`evenkeel_verdict_packets_total` name it.", "",
        "| verdict | the packet is | because |", "|---|---|---|", *rows, "",
    ))  # fmt: skip


def _actions(program: str) -> dict[str, str]:
    """What `act()` does with each; what it does not name is dropped."""
    body = program[program.index("int act(") :]
    passed, _, sent = body[: body.index("default:")].partition("return XDP_PASS;")
    return {
        **dict.fromkeys(re.findall(r"case VERDICT_(\w+)", passed), "passed to the kernel"),
        **dict.fromkeys(re.findall(r"case VERDICT_(\w+)", sent), "sent"),
    }


# ---- pages


def pages() -> dict[Path, str]:
    return {
        PAGES / "lb.yaml.md": page_of("schemas/config.schema.json"),
        PAGES / "node.yaml.md": page_of("schemas/node.schema.json"),
        PAGES / "verdicts.md": verdicts(),
    }


def main() -> int:
    if sys.argv[1:] not in ([], ["--check"]):
        sys.exit(__doc__)
    stale = [
        path for path, text in pages().items() if not path.exists() or path.read_text() != text
    ]
    if not sys.argv[1:]:
        for path, text in pages().items():
            path.write_text(text)
        return 0
    for path in stale:
        print(f"{path.relative_to(ROOT)}: not what its source says: make reference")  # noqa: T201
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
