"""Checkers, neighbours and targets of the health bench, each a process on its own core."""

import ctypes
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.objects import BenchError
from tests.support.certificates import Certificate
from tests.support.wait import until

CLONE_NEWNET = 0x40000000
CHECKER, TARGET = 0, 1  # cores
HAPROXY = "/usr/sbin/haproxy"
PLAIN, SECURE = 18080, 18443  # ports of the target
IDLE, CLOSED = 18999, 18998

COMMON = "global\n  nbthread 1\n  maxconn 15000\n  no strict-limits\n{more}"
DEFAULTS = "defaults\n  mode {mode}\n  timeout connect 1s\n  timeout client 5s\n  timeout server 5s\n  timeout check 1s\n"
ANSWER = '  http-request return status 200 content-type text/plain string "ready"\n'


def address(number: int) -> str:
    return f"127.{1 + number // 62500}.{number // 250 % 250}.{1 + number % 250}"


def needs() -> None:
    if not Path(HAPROXY).exists():
        raise BenchError("the neighbour is missing: apt-get install haproxy (or make bench)")
    if (os.cpu_count() or 1) <= TARGET:
        raise BenchError("needs two processors: one for the checker, one for the targets")


def alone() -> None:
    """In a network namespace of our own from here on: nobody else's connections are counted."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise BenchError(f"a network namespace: {os.strerror(ctypes.get_errno())}: sudo make bench")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def cpu_of(process: int) -> float:
    """Seconds on a processor, of the first thread: there is one."""
    return int(Path(f"/proc/{process}/schedstat").read_text().split()[0]) / 1e9


def opened() -> int:
    """TCP connections that this machine has begun."""
    names, values = (
        line.split()
        for line in Path("/proc/self/net/snmp").read_text().splitlines()
        if line.startswith("Tcp:")
    )
    return int(values[names.index("ActiveOpens")])


@contextmanager
def haproxy(directory: Path, name: str, text: str, core: int) -> Iterator[int]:
    file = directory / f"{name}.cfg"
    file.write_text(text)
    command = ["taskset", "-c", str(core), HAPROXY, "-db", "-q", "-f", str(file)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait(10)


@contextmanager
def targets(directory: Path, certificate: Certificate) -> Iterator[None]:
    """Whatever the address, HTTP on one port and HTTPS on the other."""
    pem = directory / "target.pem"
    pem.write_text(certificate.chain.read_text() + certificate.key.read_text())
    text = (
        COMMON.format(more="")
        + DEFAULTS.format(mode="http")
        + "  timeout http-keep-alive 60s\n"
        + f"listen plain\n  bind :{PLAIN} backlog 16384\n{ANSWER}"
        + f"listen secure\n  bind :{SECURE} ssl crt {pem} backlog 4096\n{ANSWER}"
    )
    with haproxy(directory, "target", text, TARGET):
        until(lambda: _listens(PLAIN) and _listens(SECURE), what="targets")
        yield


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def neighbour(directory: Path, kind: str, count: int, every: float, ca: Path) -> Iterator[int]:
    """HAProxy, doing nothing but checks."""
    option = {
        "tcp": "",
        "http": "  option httpchk GET /\n  http-check expect status 200-399\n",
        "tls": "  option httpchk GET /\n  http-check expect status 200-399\n",
    }[kind]
    port = SECURE if kind == "tls" else PLAIN
    secure = (
        f" check-ssl verify required ca-file {ca} check-sni www.example verifyhost www.example"
        if kind == "tls"
        else ""
    )
    servers = "".join(
        f"  server s{n} {address(n)}:{port} check inter {int(every * 1000)}ms{secure}\n"
        for n in range(count)
    )
    text = (
        COMMON.format(more="  spread-checks 5\n")
        + DEFAULTS.format(mode="tcp")
        + f"frontend idle\n  bind 127.0.0.1:{IDLE}\n"  # without a listener it does not run
        + f"backend all\n{option}{servers}"
    )
    with haproxy(directory, "neighbour", text, CHECKER) as process:
        yield process


class Checker:
    """Ours, as a process that answers `mark`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def mark(self) -> dict[str, Any]:
        pipes = self._process.stdin, self._process.stdout
        if pipes[0] is None or pipes[1] is None:
            raise BenchError("the checker has no pipes")
        pipes[0].write("mark\n")
        pipes[0].flush()
        line = pipes[1].readline()
        if not line:
            raise BenchError("the checker ended: its message is above")
        figures: dict[str, Any] = json.loads(line)
        return figures


@contextmanager
def ours(directory: Path, backends: list[dict[str, Any]], *options: str) -> Iterator[Checker]:
    pin = directory / "health"
    pin.touch()
    document = {
        "format_version": "1.1",
        "instance": "bench",
        "health_map": str(pin),
        "backends": backends,
    }
    file = directory / "targets.json"
    file.write_text(json.dumps(document))
    command = [sys.executable, "-m", "tests.bench.health_child", str(file), str(CHECKER), *options]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield Checker(process)
    finally:
        process.kill()
        process.communicate()
