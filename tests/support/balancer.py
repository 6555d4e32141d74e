"""A lab in which the real reconciler runs, on files of the test's own: what its users have, and no more.

The daemons run as their units say (tests/support/unit.py): as users of their own, with their few capabilities.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

from bpf import kernel
from reconciler import cli
from tests.support.lab import ROOT, SERVICE, Lab
from tests.support.traffic import Connection
from tests.support.unit import owned_by, unit
from tests.support.wait import PATIENCE, until

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


def forked(action: Callable[[], Done]) -> Done:
    """What it comes to in a child of this process: one that may become another user."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with os.fdopen(theirs, "w") as answer:
                json.dump(action(), answer)
        except BaseException:  # noqa: BLE001 -- nothing of a test's may run on in the child
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as answers:
        said = answers.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        return Done(code, "", "")
    return Done(*json.loads(said))


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
        self.folder.chmod(0o755)  # the files of a node are for its daemons to read
        self.home = self.folder / "var"
        unit("reconciler").own(self.home, 0o755)
        self.run_dir, self.state_dir = self.home / "run", self.home / "state"
        self._directories()
        self.process: subprocess.Popen[bytes] | None = None
        self.callback(self._forget)
        self.config, self.node = self.folder / "lb.yaml", self.folder / "node.yaml"
        self.config.write_text(CONFIG)
        self.source: tuple[str, ...] = ("--config", str(self.config))
        self.node.write_text(NODE)

    def _directories(self) -> None:
        """As the unit has them made before the daemon starts."""
        reconciler = unit("reconciler")
        reconciler.own(self.run_dir, reconciler.mode("RuntimeDirectory"))
        reconciler.own(self.state_dir, reconciler.mode("StateDirectory"))

    def _forget(self) -> None:
        self.stop(signal.SIGKILL)
        kernel.teardown(self.name)
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- the daemon

    def start(self, *, ready: bool = True) -> None:
        """Returns when the daemon is ready, or at least serves."""
        if self.process is not None:
            return
        self.launch()
        until(self.ready if ready else self.serves, 30, what="the daemon")

    def launch(self) -> None:
        """Does not wait."""
        self._directories()
        arguments = (*self.source, "--node", str(self.node), *self.place)
        self.process = self.started("reconciler", "log", *arguments)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(15 * PATIENCE)
            self.process = None

    @contextlib.contextmanager
    def checker(self) -> Iterator[subprocess.Popen[bytes]]:
        """healthcheck beside it."""
        process = self.start_healthcheck()
        try:
            yield process
        finally:
            process.terminate()
            process.wait(15 * PATIENCE)

    def start_healthcheck(self) -> subprocess.Popen[bytes]:
        where = ("--instance", self.name, "--run-dir", str(self.run_dir))
        return self.started("healthcheck", "checker.log", *where)

    def started(self, daemon: str, log: str, *arguments: str) -> subprocess.Popen[bytes]:
        """As its unit has it; in a session of its own, so that Ctrl-C is for whoever runs the tests."""
        command = self.host.inside(*unit(daemon).command(*arguments))
        with (self.folder / log).open("ab") as heard:
            return subprocess.Popen(
                command, cwd=ROOT, stdout=heard, stderr=heard,
                umask=unit(daemon).umask, start_new_session=True,
            )  # fmt: skip

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
        """`reconciler ...`, as root types it; in a fork of this process, which has imported it all.

        Ended by a signal, its exit code is negative.
        """
        return forked(lambda: self._command(*arguments))

    def _command(self, *arguments: str) -> Done:
        owned_by(self.home)
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

    def condition(self, kind: str) -> dict[str, Any]:
        return next(one for one in self.status()["conditions"] if one["type"] == kind)

    def applied(self) -> str:
        """The commit whose content is in the maps."""
        return str(self.status()["applied"]["commit"])

    def beat(self) -> int:
        """When the loop last said that it goes on: seconds since the machine started."""
        lines = (self.run_dir / "heartbeat").read_text().splitlines()
        return int(lines[1].removeprefix("at "))

    def request(self) -> str:
        """Who answers a client."""
        with Connection(self.lab.client, SERVICE[4], PORT) as connection:
            return NAMES[connection.get().backend]

    def answering(self, requests: int = 12) -> set[str]:
        return {self.request() for _ in range(requests)}
