"""Probes by a process of their own, which runs as healthcheck's unit has it: its user, and its capabilities.

Asked line by line in JSON, so that a test can change the network between two probes. Judges no answer.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from healthcheck.exchange import Reason, Result
from healthcheck.health import Outcome
from tests.support.health import LOOPBACK, a_row_of, probe, subject
from tests.support.namespace import Namespace, end
from tests.support.unit import unit

ROOT = Path(__file__).parents[2]


class Prober:
    """Use it as a context manager. In a namespace, or beside the test."""

    def __init__(self, place: Namespace | None = None) -> None:
        command = unit("healthcheck").python("-m", "tests.support.prober")
        self._process = subprocess.Popen(
            place.inside(*command) if place else command,
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        end(self._process)

    def probe(self, port: int, address: str = LOOPBACK, **changes: object) -> Result:
        return self.row(port, address, times=1, **changes)[0]

    def row(
        self, port: int, address: str = LOOPBACK, *, times: int, **changes: object
    ) -> list[Result]:
        """One after the other, by one engine; more than one over sockets that are used again."""
        asked = {"port": port, "address": address, "times": times, "changes": changes}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the prober ended: see its standard error"
        return [
            Result(Outcome(outcome), Reason(reason), *rest)
            for outcome, reason, *rest in json.loads(line)
        ]


def answer(port: int, address: str, times: int, changes: dict[str, Any]) -> list[Result]:
    where = subject(port, address, **changes)
    if times == 1:
        return [probe(where)]
    with a_row_of(where) as row:
        return [row.probe() for _ in range(times)]


if __name__ == "__main__":
    for line in sys.stdin:
        results = answer(**json.loads(line))
        found = [(one.outcome.value, one.reason, one.detail, one.valid_until) for one in results]
        print(json.dumps(found), flush=True)  # noqa: T201
