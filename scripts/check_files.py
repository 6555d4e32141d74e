"""Whether every schema is one, and every example is what its schema says. Changes nothing."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from jsonschema import Draft202012Validator, SchemaError

ROOT = Path(__file__).parent.parent
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def wrong_schemas() -> Iterator[str]:
    for path in sorted(ROOT.glob("schemas/*.json")):
        schema = json.loads(path.read_text())
        if schema.get("$schema") != DIALECT:
            yield f"{path.relative_to(ROOT)}: $schema is not {DIALECT}"
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            yield f"{path.relative_to(ROOT)}: {error.json_path}: {error.message}"


def wrong_examples() -> Iterator[str]:
    """Each through the program itself, so that a file that passes here is one that it accepts."""
    for path in sorted(ROOT.glob("examples/**/lb.yaml")):
        for node in sorted(path.parent.glob("**/node.yaml")):
            command = [sys.executable, "-m", "reconciler", "validate", "--config", str(path)]
            command += ["--node", str(node)]
            result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if result.returncode != 0:
                yield f"{path.relative_to(ROOT)}: {result.stderr or result.stdout}"


def main() -> int:
    wrong = [*wrong_schemas(), *wrong_examples()]
    for line in wrong:
        print(line.rstrip(), file=sys.stderr)  # noqa: T201
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
