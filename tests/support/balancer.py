"""A lab in which the real reconciler runs, on files of the test's own: what its users have, and no more."""

import contextlib
import io
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

from bpf import kernel
from reconciler import cli
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


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


class Balancer(contextlib.ExitStack):
    """Some backends, a client, and a daemon between them; all of it gone afterwards."""

    backends = 2
    arms = 2

    def __enter__(self) -> Self:
        super().__enter__()
        with contextlib.ExitStack() as undo:
            undo.push(self.__exit__)
            self._build()
            undo.pop_all()
        return self

    def _build(self) -> None:
        self.lab = self.enter_context(Lab(self.backends, arms=self.arms))
        self.name, self.host = self.lab.prefix, self.lab.balancer
        for backend in self.lab.backends:
            self.lab.serve(backend, BACKEND_PORT)
        self._settle()

    def _settle(self) -> None:
        """Files of its own, and nothing left of them or of the maps."""
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
        self.run_dir, self.state_dir = self.folder / "run", self.folder / "state"
        self.run_dir.mkdir()
        self.process: subprocess.Popen[bytes] | None = None
        self.callback(self._forget)
        self.config, self.node = self.folder / "lb.yaml", self.folder / "node.yaml"
        self.config.write_text(CONFIG)
        self.source: tuple[str, ...] = ("--config", str(self.config))
        self.node.write_text(NODE)

    def _forget(self) -> None:
        self.stop(signal.SIGKILL)
        with contextlib.suppress(kernel.NotLoaded):
            kernel.Instance.open(self.name).teardown()
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- the daemon

    def start(self, *, ready: bool = True) -> None:
        """Returns when the daemon is ready, or at least serves."""
        if self.process is not None:
            return
        log = self.enter_context((self.folder / "log").open("ab"))
        command = (sys.executable, "-m", "reconciler", *self.source)
        self.process = subprocess.Popen(
            self.host.inside(*command, "--node", str(self.node), *self.place),
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )
        until(self.ready if ready else self.serves, 30, what="the daemon")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(15)
            self.process = None

    @contextlib.contextmanager
    def checker(self) -> Iterator[subprocess.Popen[bytes]]:
        """healthcheck beside it."""
        command = (sys.executable, "-m", "healthcheck", "--instance", self.name)
        process = subprocess.Popen(
            self.host.inside(*command, "--run-dir", str(self.run_dir)),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(15)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def serves(self) -> bool:
        return self.http("/healthz", check=False)[0] == 200

    def ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"the reconciler ended: {self.log}")
        return self.http("/readyz", check=False)[0] == 200

    # ---- as its users

    @property
    def place(self) -> tuple[str, ...]:
        folders = ("--run-dir", str(self.run_dir), "--state-dir", str(self.state_dir))
        return ("--instance", self.name, *folders)

    def command(self, *arguments: str) -> Done:
        """`reconciler ...`, as an operator types it; in this process, which has imported it all."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = cli.main([*arguments, *self.place])
            except SystemExit as end:
                code = int(end.code or 0)
        return Done(code, out.getvalue(), err.getvalue())

    def http(self, path: str, *, check: bool = True) -> tuple[int, str]:
        """Status code and body, asked from within the balancer."""
        answer = self.host.run(
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
