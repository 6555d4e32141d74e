"""Commands that change something, from the socket's thread to the loop's and back.

One request is one line of JSON, and so is its answer. Whoever may open the socket
may command: its mode and group are the permission. Nothing is changed here: the
loop takes the requests, and answers when their effect is in the maps.
"""

import json
import queue
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FORMAT = "1.0"
SOCKET = "control.sock"
LONGEST_LINE = 64 << 10
PATIENCE = 60.0  # seconds: a pass over a large configuration takes its time

Document = dict[str, Any]


class NotRunning(Exception):
    """No daemon listens there."""


class Refused(Exception):
    """The daemon understood, and does not do it: the message says why."""


@dataclass(frozen=True, slots=True)
class Request:
    command: str
    arguments: Mapping[str, Any]
    by: str = ""
    answer: "Future[Document]" = field(default_factory=Future, compare=False)

    def text(self, name: str) -> str:
        """An argument that must be there."""
        value = self.arguments.get(name)
        if not isinstance(value, str) or not value:
            raise Refused(f"{self.command}: {name} is missing")
        return value

    def number(self, name: str) -> float:
        value = self.arguments.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Refused(f"{self.command}: {name} is no number")
        return float(value)


class Requests:
    """Put in by the socket's thread, taken out by the loop's."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._waiting: queue.SimpleQueue[Request] = queue.SimpleQueue()

    def put(self, request: Request) -> None:
        self._waiting.put(request)
        self._wake()

    def take(self) -> list[Request]:
        taken = []
        while not self._waiting.empty():
            taken.append(self._waiting.get())
        return taken


# ---- lines


def parse(line: bytes, by: str = "") -> Request:
    try:
        content = json.loads(line)
        version, command = content["format_version"], content["command"]
        arguments = content.get("arguments", {})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"not a request: {error!r}") from error
    if str(version).partition(".")[0] != FORMAT.partition(".")[0]:
        raise Refused(f"format {version} is not spoken here, {FORMAT} is")
    if not isinstance(command, str) or not isinstance(arguments, dict):
        raise Refused("not a request: a command and its arguments are wanted")
    return Request(command, arguments, by)


def answered(result: Mapping[str, Any]) -> bytes:
    return _line({"format_version": FORMAT, "ok": True, "result": result})


def refused(message: str) -> bytes:
    return _line({"format_version": FORMAT, "ok": False, "error": message})


def _line(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


# ---- the other end


def ask(path: Path, command: str, arguments: Mapping[str, Any] | None = None) -> Document:
    """What the daemon answers. NotRunning, Refused, or OSError when it may not be asked."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NotRunning(
                f"{path}: no reconciler listens here; start it, or do one pass with `reconciler --once`"
            ) from error
        except PermissionError as error:
            raise PermissionError(
                error.errno, f"{path}: not permitted; be root, or in the group of the socket"
            ) from error
        request = {"format_version": FORMAT, "command": command, "arguments": arguments or {}}
        connection.sendall(_line(request))
        with connection.makefile("rb") as answers:
            line = answers.readline()
    if not line:
        raise NotRunning(f"{path}: the reconciler ended before it answered")
    answer = json.loads(line)
    if not answer["ok"]:
        raise Refused(str(answer["error"]))
    result: Document = answer["result"]
    return result
