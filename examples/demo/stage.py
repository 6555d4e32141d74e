"""Where the demo plays: the lab, a git repository with lb.yaml in it, and the real daemons, run as their units say.

Decides nothing about the story. Whatever happens, nothing of it stays behind.
"""

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import board
import yaml
from clients import Clients

from bpf import kernel
from tests.support.lab import ROOT, Backend, Lab
from tests.support.repository import Repository
from tests.support.unit import open_folder, unit
from tests.support.wait import until

RUN_DIRS = Path("/run/evenkeel")
EXAMPLES = ROOT / "examples"
ADDRESS, PORT, BACKEND_PORT = "192.0.2.10", 80, 8080
PATIENCE = 30.0
REFRESH = 0.5  # seconds


class Unexpected(Exception):
    """The demo showed something else than it says."""


class Stage(contextlib.ExitStack):
    """The lab with both daemons running in the balancer's namespace, and what can be done to them."""

    def __init__(self, example: str, backends: int, *, hurry: bool = False) -> None:
        super().__init__()
        self.example = EXAMPLES / example
        self.backends = backends
        self.hurry = hurry
        self.screen = board.Screen()
        self.names = names_by_address(self.example / "lb.yaml")
        self.logs: dict[str, IO[bytes]] = {}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            self._set_up()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception):
            self._show_logs()
        super().__exit__(kind, error, trace)

    def _set_up(self) -> None:
        self.lab = self.enter_context(Lab(self.backends))
        for backend in self.lab.backends:
            self.lab.serve(backend, BACKEND_PORT)
        self.name = self.lab.prefix
        self.callback(forget, self.name)
        self.folder = self.enter_context(open_folder())
        self._directories()
        self.repository = Repository(self.folder / "lb")
        self.node = self.folder / "node.yaml"
        self.node.write_text((self.example / "node.yaml").read_text())
        self.source = ("--from-git", self.repository.url, "--every", "1")
        self.place = ("--instance", self.name, "--state-dir", str(self.folder / "state"))

    def _directories(self) -> None:
        """The repository is root's, as an operator's might be; these are the daemons', as their units have it."""
        RUN_DIRS.mkdir(exist_ok=True)
        reconciler = unit("reconciler")
        reconciler.own(RUN_DIRS / self.name, reconciler.mode("RuntimeDirectory"))
        reconciler.own(self.folder / "state", reconciler.mode("StateDirectory"))

    # ---- the file

    @property
    def file(self) -> Path:
        """lb.yaml in the repository's work tree."""
        return self.repository.folder / "lb.yaml"

    def edit(self, old: str, new: str) -> None:
        """Change lb.yaml in the work tree; nobody but a dry run looks there."""
        text = self.file.read_text()
        if old not in text:
            raise Unexpected(f"lb.yaml does not say {old!r}")
        self.file.write_text(text.replace(old, new))

    def commit(self, subject: str) -> str:
        return self.repository.commit(self.file.read_text(), subject)

    # ---- the daemons

    def start(self) -> None:
        self.daemon("reconciler", *self.source, "--node", str(self.node), *self.place)
        self.daemon("healthcheck", "--instance", self.name)
        self.instance = until(self._opened, PATIENCE, what="the reconciler's first pass")
        self.callback(self.instance.close)
        self.wait_for_health(dict.fromkeys(self.names.values(), "up"))

    def daemon(self, program: str, *arguments: str) -> None:
        log = self.logs[program] = self.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 -- entered here
        process = subprocess.Popen(
            self._inside(program, *arguments), stdout=log, stderr=log, cwd=ROOT,
            umask=unit(program).umask, start_new_session=True,
        )  # fmt: skip
        self.daemons[program] = process
        self.callback(stop, process)

    def run(self, program: str, *arguments: str) -> str:
        """What a command says on the balancer, errors included."""
        done = subprocess.run(
            self._inside(program, *arguments), cwd=ROOT, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, check=False, timeout=PATIENCE,
        )  # fmt: skip
        return done.stdout

    def status(self) -> Mapping[str, Any]:
        """What the daemon says of itself."""
        found: Mapping[str, Any] = json.loads(
            self.run("reconciler", "status", "--output", "json", *self.place)
        )
        return found

    def program(self) -> int:
        """The number of what runs."""
        with kernel.Instance.open(self.name, read_only=True) as instance:
            return instance.program_info().id

    def wait_for_status(self, what: str, wanted: str) -> None:
        """Until the last commit that was offered came to this."""
        until(
            lambda: self.running()
            and self._outcome() == (self.repository.git("rev-parse", "HEAD"), wanted),
            PATIENCE,
            what=what,
            interval=0.2,
        )

    def _outcome(self) -> tuple[str, str]:
        attempted = self.status()["attempted"]
        return (attempted["commit"], attempted["result"]) if attempted else ("", "")

    def wait_for_health(self, wanted: dict[str, str]) -> None:
        """Until the health map says this of these backends."""
        until(
            lambda: self.running()
            and wanted.items() <= board.health(self.instance, self.names).items(),
            PATIENCE,
            what=f"health {wanted}",
        )

    def running(self) -> bool:
        for program, process in self.daemons.items():
            if process.poll() is not None:
                raise Unexpected(f"{program} ended with exit code {process.returncode}")
        return True

    def _inside(self, program: str, *arguments: str) -> tuple[str, ...]:
        """As the unit's user, with its capabilities: daemons, and commands, which root would type and do as that user."""
        return self.lab.balancer.inside(*unit(program).command(*arguments))

    def _opened(self) -> kernel.Instance | None:
        self.running()
        with contextlib.suppress(kernel.NotLoaded):
            return kernel.Instance.open(self.name)
        return None

    def _show_logs(self) -> None:
        for program, log in self.logs.items():
            log.seek(0)
            print(f"---- {program} said:\n{log.read().decode()[-2000:]}", file=sys.stderr)

    # ---- what is seen of it

    def clients(self, visitors: int) -> Clients:
        names = {b.name: self.names[b.addresses[4]] for b in self.lab.backends}
        return Clients(self.lab.client, ADDRESS, PORT, names, visitors=visitors)

    def backend(self, name: str) -> Backend:
        return next(b for b in self.lab.backends if self.names[b.addresses[4]] == name)

    def show(self, clients: Clients, seconds: float, *, keep: bool = True) -> Counter[str]:
        """Refresh the board for so long; what was answered meanwhile."""
        clients.fresh()
        answers: Counter[str] = Counter()
        for _ in range(max(1, round((1 if self.hurry else seconds) / REFRESH))):
            self.screen.rest(REFRESH)
            self.running()
            latest = clients.fresh()
            answers += latest
            self.screen.draw(board.table(board.rows(self.instance, self.names), latest))
        self.screen.draw(board.table(board.rows(self.instance, self.names), answers), keep=keep)
        return answers


def names_by_address(config: Path) -> dict[str, str]:
    pools = yaml.safe_load(config.read_text())["pools"].values()
    return {b["address"]: name for pool in pools for name, b in pool["backends"].items()}


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def forget(name: str) -> None:
    """What stays pinned on purpose when the daemons stop."""
    with contextlib.suppress(kernel.NotLoaded):
        kernel.Instance.open(name).teardown()
    shutil.rmtree(RUN_DIRS / name, ignore_errors=True)


def expect(what: bool, message: str) -> None:
    print(f"  {'ok' if what else 'NOT OK'}: {message}", flush=True)
    if not what:
        raise Unexpected(message)
