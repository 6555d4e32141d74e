"""A lab in which the real reconciler runs, on files of the test's own: what its users have, and no more."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Self

from bpf import kernel
from tests.support.lab import ROOT, SERVICE, Lab
from tests.support.traffic import Connection
from tests.support.wait import until

PORT, BACKEND_PORT = 80, 8080
CONFIG = """\
apiVersion: evenkeel/v1
pools:
  web:
    backends:
      web1: {address: 10.1.2.101, port: 8080}
      web2: {address: 10.1.2.102, port: 8080}
services:
  www:
    addresses: [192.0.2.10]
    ports: [80/tcp]
    pools: [web]
    forward: nat
"""
NODE = """\
apiVersion: evenkeel/v1
interfaces: {wan: {mode: native}, lan: {mode: native}}
table-size: 1021
sizes: {flows4: 8192, flows6: 8192, returns4: 8192, returns6: 8192, opening4: 4096, opening6: 4096}
"""
NAMES = {"b1": "web1", "b2": "web2"}


class Balancer(contextlib.ExitStack):
    """Two backends, a client, and a daemon between them; all of it gone afterwards."""

    def __enter__(self) -> Self:
        super().__enter__()
        with contextlib.ExitStack() as undo:
            undo.push(self.__exit__)
            self._build()
            undo.pop_all()
        return self

    def _build(self) -> None:
        self.lab = self.enter_context(Lab(2))
        self.name = self.lab.prefix
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
        self.run_dir, self.state_dir = self.folder / "run", self.folder / "state"
        self.run_dir.mkdir()
        self.process: subprocess.Popen[bytes] | None = None
        self.callback(self._forget)
        for backend in self.lab.backends:
            self.lab.serve(backend, BACKEND_PORT)
        self.config, self.node = self.folder / "lb.yaml", self.folder / "node.yaml"
        self.config.write_text(CONFIG)
        self.node.write_text(NODE)

    def _forget(self) -> None:
        self.stop(signal.SIGKILL)
        with contextlib.suppress(kernel.NotLoaded):
            kernel.Instance.open(self.name).teardown()
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- the daemon

    def start(self) -> None:
        """Returns when the daemon is ready."""
        assert self.process is None
        log = self.enter_context((self.folder / "log").open("ab"))
        command = (sys.executable, "-m", "reconciler", "--config", str(self.config))
        self.process = subprocess.Popen(
            self.lab.balancer.inside(*command, "--node", str(self.node), *self.place),
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )
        until(self.ready, 30, what="the daemon to be ready")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(15)
            self.process = None

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"the reconciler ended: {self.log}")
        return self.http("/readyz", check=False)[0] == 200  # noqa: PLR2004 -- HTTP's word for it

    # ---- as its users

    @property
    def place(self) -> tuple[str, ...]:
        folders = ("--run-dir", str(self.run_dir), "--state-dir", str(self.state_dir))
        return ("--instance", self.name, *folders)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`reconciler ...`, as an operator types it."""
        return subprocess.run(
            (sys.executable, "-m", "reconciler", *arguments, *self.place),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def http(self, path: str, *, check: bool = True) -> tuple[int, str]:
        """Status code and body, asked from within the balancer."""
        answer = self.lab.balancer.run(
            "curl", "--silent", "--max-time", "10", "--write-out", "\n%{http_code}",
            f"http://127.0.0.1:9160{path}", check=False,
        )  # fmt: skip
        body, _, code = answer.rpartition("\n")
        if check and code != "200":
            raise RuntimeError(f"{path}: {code}: {body}")
        return int(code), body

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.http("/status")[1])
        return found

    def request(self) -> str:
        """Who answers a client."""
        with Connection(self.lab.client, SERVICE[4], PORT) as connection:
            return NAMES[connection.get().backend]

    def answering(self, requests: int = 12) -> set[str]:
        return {self.request() for _ in range(requests)}
