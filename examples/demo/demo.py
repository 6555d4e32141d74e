"""A client, a balancer and its backends in namespaces of this machine, run by the real programs.

    demo.py [--once] [--two-targets]

Shows requests spreading, a backend that dies and comes back, and the program replaced under load; then goes on
until Ctrl-C, or ends with --once: exit code 0 if everything shown was as it should be. Leaves nothing behind.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO

import board
import yaml

from bpf import kernel
from tests.support.lab import ROOT, Backend, Lab
from tests.support.traffic import Connection
from tests.support.wait import until

EXAMPLES = ROOT / "examples"
ADDRESS, PORT, BACKEND_PORT = "192.0.2.10", 80, 8080
REFRESH = 0.5  # seconds
LOOK = 1.5  # seconds that each stage is shown for
PATIENCE = 30.0
CURLS = 40


class Unexpected(Exception):
    """The demo showed something else than it says."""


class Clients:
    """One request after the other, each on a connection of its own, for as long as the demo lasts."""

    def __init__(self, lab: Lab, names: dict[str, str]) -> None:
        self._lab = lab
        self._names = {b.name: names[b.addresses[4]] for b in lab.backends}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answers: Counter[str] = Counter()
        self.failures = 0

    def __enter__(self) -> "Clients":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def fresh(self) -> Counter[str]:
        """Answers since this was last asked."""
        answers, self.answers = self.answers, Counter()
        return answers

    def _run(self) -> None:
        while not self._stop.wait(0.002):
            try:
                with Connection(self._lab.client, ADDRESS, PORT) as connection:
                    self.answers[self._names[connection.get("/bytes/2000").backend]] += 1
            except OSError:
                self.failures += 1


class Demo(contextlib.ExitStack):
    """The lab with both daemons running in the balancer's namespace."""

    def __init__(self, example: str, backends: int) -> None:
        super().__init__()
        self.folder = EXAMPLES / example
        self.backends = backends
        self.screen = board.Screen()
        self.names = names_by_address(self.folder / "lb.yaml")
        self.logs: dict[str, IO[bytes]] = {}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Demo":
        try:
            self._start()
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

    def _start(self) -> None:
        self.screen.say(f"a client, a balancer and {self.backends} backends, each in a namespace")
        self.lab = self.enter_context(Lab(self.backends))
        for backend in self.lab.backends:
            self.lab.serve(backend, BACKEND_PORT)
        self.name = self.lab.prefix
        self.callback(forget, self.name)
        self.screen.say(
            f"reconciler --config {self.folder.relative_to(ROOT)}/lb.yaml ...; healthcheck"
        )
        state = self.enter_context(tempfile.TemporaryDirectory(prefix=self.name))
        files = ("--config", f"{self.folder}/lb.yaml", "--node", f"{self.folder}/node.yaml")
        self._daemon("reconciler", *files, "--state-dir", state)
        self._daemon("healthcheck")
        self.instance = until(self._opened, PATIENCE, what="the reconciler's first pass")
        self.callback(self.instance.close)
        self.wait_for(dict.fromkeys(self.names.values(), "up"))

    def _daemon(self, program: str, *arguments: str) -> None:
        log = self.logs[program] = self.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 -- entered here
        command = (sys.executable, "-m", program, *arguments, "--instance", self.name)
        process = subprocess.Popen(
            self.lab.balancer.inside(*command),
            stdout=log,
            stderr=log,
            cwd=ROOT,
            start_new_session=True,
        )
        self.daemons[program] = process
        self.callback(stop, process)

    def _show_logs(self) -> None:
        for program, log in self.logs.items():
            log.seek(0)
            print(f"---- {program} said:\n{log.read().decode()[-2000:]}", file=sys.stderr)

    def _running(self) -> bool:
        for program, process in self.daemons.items():
            if process.poll() is not None:
                raise Unexpected(f"{program} ended with exit code {process.returncode}")
        return True

    def _opened(self) -> kernel.Instance | None:
        self._running()
        with contextlib.suppress(kernel.NotLoaded):
            return kernel.Instance.open(self.name)
        return None

    # ---- what happens in it

    def backend(self, name: str) -> Backend:
        return next(b for b in self.lab.backends if self.names[b.addresses[4]] == name)

    def wait_for(self, wanted: dict[str, str]) -> None:
        """Until the health map says this of these backends."""
        until(
            lambda: self._running()
            and wanted.items() <= board.health(self.instance, self.names).items(),
            PATIENCE,
            what=f"health {wanted}",
        )

    def show(self, clients: Clients, seconds: float = LOOK, *, keep: bool = True) -> Counter[str]:
        """Refresh for so long; what was answered meanwhile."""
        clients.fresh()
        answers: Counter[str] = Counter()
        pause = threading.Event()
        for _ in range(round(seconds / REFRESH)):
            pause.wait(REFRESH)
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
    shutil.rmtree(f"/run/evenkeel/{name}", ignore_errors=True)


# ---- the two stories


def quickstart(*, once: bool) -> None:
    with Demo("quickstart", 3) as demo, Clients(demo.lab, demo.names) as clients:
        say = demo.screen.say
        say(f"requests to http://{ADDRESS}/ spread by weight; web3 has half a share")
        expect(set(demo.show(clients)) == {"web1", "web2", "web3"}, "all three answer")
        say("web3's server is killed; after three failed checks it is down")
        demo.lab.kill_server(demo.backend("web3"))
        demo.wait_for({"web3": "DOWN"})
        expect(set(demo.show(clients)) == {"web1", "web2"}, "the other two answer")
        say("web3's server is back; after two good checks it is up")
        demo.lab.serve(demo.backend("web3"), BACKEND_PORT)
        demo.wait_for({"web3": "up"})
        expect("web3" in demo.show(clients), "web3 answers again")
        say("the program is replaced under load")
        failures = clients.failures
        demo.instance.replace()
        demo.show(clients)
        expect(clients.failures == failures, "no request was lost")
        if not once:
            say("on and on, until Ctrl-C")
            while True:
                demo.show(clients, 10, keep=not demo.screen.live)


def two_targets(*, once: bool) -> None:
    with Demo("two-targets", 2) as demo:
        say = demo.screen.say
        while True:
            say(f"{CURLS} times: curl http://{ADDRESS}/")
            answers = Counter(curl(demo) for _ in range(CURLS))
            demo.screen.draw(board.table(board.rows(demo.instance, demo.names), answers), keep=True)
            fair = CURLS / 4 <= answers["A"] <= CURLS * 3 / 4 and answers.total() == CURLS
            expect(fair, "A and B answer half of them each, give or take chance")
            if once:
                return


def curl(demo: Demo) -> str:
    name = demo.lab.client.run("curl", "--silent", "--max-time", "5", f"http://{ADDRESS}/").strip()
    backend = next(b for b in demo.lab.backends if b.name == name)
    return demo.names[backend.addresses[4]]


def expect(what: bool, message: str) -> None:
    print(f"  {'ok' if what else 'NOT OK'}: {message}", flush=True)
    if not what:
        raise Unexpected(message)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--once", action="store_true", help="end after the last stage")
    arguments.add_argument("--two-targets", action="store_true", help="the router with two targets")
    options = arguments.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("demo: namespaces and BPF need root: sudo make demo")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    stories: list[Callable[..., None]] = [quickstart, two_targets]
    if not options.once:
        stories = [two_targets if options.two_targets else quickstart]
    try:
        for story in stories:
            story(once=options.once)
    except KeyboardInterrupt:
        print("\ntaken down")
    except (Unexpected, OSError, RuntimeError, kernel.KernelError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
