"""Where the soak plays: the lab, the servers, both daemons, and what can be done to them. Chooses nothing by itself."""

import contextlib
import json
import signal
import subprocess
import threading
from collections.abc import Callable
from hashlib import sha256
from typing import ClassVar

from bpf import kernel
from tests.soak import consequences, wishes
from tests.soak.clients import Clients
from tests.soak.journal import Journal, now
from tests.soak.live import Live
from tests.soak.watch import Member, Watch
from tests.soak.wishes import Edit, Wish
from tests.support.balancer import Balancer, Done
from tests.support.lab import BALANCER, NAT_SOURCE, ROOT, Backend, Lab
from tests.support.objects import SAME, changed
from tests.support.unit import unit
from tests.support.wait import until

NODE = f"""\
apiVersion: evenkeel/v1
interfaces: {{wan: {{mode: native}}, lan: {{mode: native}}}}
table-size: 1021
tunnel-source: {{ipv4: {BALANCER[4]}}}
nat-source: {{ipv4: {NAT_SOURCE[4]}}}
"""
DAEMONS = ("reconciler", "healthcheck")
PROBE = 2.0  # seconds: more than one takes, with all that comes of it
SETTLES = 120.0  # seconds, when everybody is there


class Stage(Balancer):
    """Left alone, nothing changes here and nobody is disappointed."""

    backends = len(wishes.HOSTS)
    FIRST: ClassVar[dict[str, int]] = {
        "frontends": 64, "services": 64, "pools": 64, "backends": 128, "flows4": 65536, "flows6": 16384,
        "returns4": 65536, "returns6": 16384, "opening4": 16384, "opening6": 16384,
    }  # fmt: skip

    def __init__(self, journal: Journal, seed: int) -> None:
        super().__init__()
        self.journal, self.seed = journal, seed
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.wish, self.changes = Wish(), 0
        self.ill: set[str] = set()  # hosts
        self.cured: dict[str, float] = {}
        self.forced: set[Member] = set()
        self.sizes = dict(self.FIRST)

    def _build(self) -> None:
        self.lab = self.enter_context(Lab(self.backends))
        self.name, self.host = self.lab.prefix, self.lab.balancer
        for backend in self.lab.backends:
            self.lab.own_service_address(backend)
            self.lab.decapsulate(backend)
            self.serve(backend)
        for offer in wishes.OFFERS.values():
            length = 64 if ":" in offer.address else 24
            self.lab.client.ip(f"addr add {wishes.client(offer)}/{length} dev eth0\n")
        self._settle()
        self._write_node()
        self.same = changed(self.folder, "same", SAME)
        self.callback(self._end_daemons)
        self.write(self.wish)
        self.run_daemon("reconciler")
        found = until(self._opened, SETTLES, what="the first pass")
        assert found is not None
        self.live = found
        self.callback(self.live.close)
        self.run_daemon("healthcheck")
        self.watch = self.enter_context(Watch(self.live.now, self.journal, self._fell))
        self.await_settled()
        self.clients = self.enter_context(Clients(self.lab.client, self.journal, self.seed))
        self.clients.ask(self.wish.offers())

    # ---- the daemons

    def run_daemon(self, name: str) -> None:
        place = (
            self.place
            if name == "reconciler"
            else ("--instance", self.name, "--run-dir", str(self.run_dir))
        )
        files = (*self.source, "--node", str(self.node)) if name == "reconciler" else ()
        self.daemons[name] = self.started(name, f"{name}.log", *files, *place)

    def kill_daemon(self, name: str) -> None:
        process = self.daemons.pop(name)
        process.kill()
        process.wait(15)

    def look_after_daemons(self) -> None:
        """One that ended by itself is a complaint, and is started again."""
        for name, process in list(self.daemons.items()):
            if process.poll() is not None:
                self.journal.complain(f"{name} ended by itself with code {process.returncode}")
                self.run_daemon(name)

    def heal(self) -> None:
        for name in DAEMONS:
            if name not in self.daemons:
                self.run_daemon(name)
        for host in sorted(self.ill):
            self.cure(host)
        if self.forced:
            self.clear_overrides()

    def words(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def _end_daemons(self) -> None:
        for name in list(self.daemons):
            self.kill_daemon(name)

    def _opened(self) -> Live | None:
        self.look_after_daemons()
        with contextlib.suppress(kernel.NotLoaded):
            return Live(self.name)
        return None

    @property
    def instance(self) -> kernel.Instance:
        return self.live.now()

    def resize(self, name: str, entries: int) -> None:
        """In node.yaml; the maps follow when somebody upgrades."""
        self.sizes[name] = entries
        self._write_node()

    def _write_node(self) -> None:
        new = self.node.with_suffix(".new")
        new.write_text(f"{NODE}sizes: {json.dumps(self.sizes)}\n")
        new.rename(self.node)

    def reconciler(self, *arguments: str) -> "subprocess.Popen[str]":
        """The command, as somebody types it on the balancer, who has become the daemon's user."""
        return subprocess.Popen(
            self.host.inside(*unit("reconciler").command(*arguments, *self.place)),
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def told(self, *arguments: str) -> Done:
        process = self.reconciler(*arguments)
        said, _ = process.communicate(timeout=SETTLES)
        return Done(process.returncode, said, "")

    # ---- the file

    def edit(self, edit: Edit) -> None:
        """The troubles that it may be an excuse for begin before it is written."""
        at = now()
        settles = list(consequences.until_settled(edit, at))
        stays = list(consequences.until_returned(edit, at))
        self.clients.extras = tuple(one for one in self.clients.extras if one.name != edit.service)
        self.write(edit.wish)
        self.journal.begin(settles, self.settled)
        self.journal.begin(stays, self._again(edit))

    def write(self, wish: Wish) -> None:
        self.wish, self.changes = wish, self.changes + 1
        text = wishes.text(wish, self.changes)
        self.digest = sha256(text.encode()).digest()
        new = self.config.with_suffix(".new")
        new.write_text(text)
        new.rename(self.config)

    def settled(self) -> bool:
        """The last file is applied, and whoever serves by it is known to be up."""
        sight, ill = self.watch.sight, set(self.ill)
        return sight.applied == self.digest and all(
            (pool, host) in sight.up
            for pool, members in self.wish.pools.items()
            for host, one in members.items()
            if one.state == "up" and host not in ill
        )

    def await_settled(self) -> None:
        until(self.settled, SETTLES, what=f"change {self.changes} applied, and everybody up")

    def open_services(self) -> None:
        if self.settled():
            self.clients.extras = tuple(o for o in self.wish.offers() if o.name in wishes.EXTRAS)

    def _again(self, edit: Edit) -> Callable[[], bool]:
        """Whether what the edit took away serves once more."""

        def again() -> bool:
            member = self.wish.pools[edit.pool].get(edit.host)
            back = (
                edit.service in self.wish.extras
                if edit.service
                else member and member.state == "up"
            )
            return bool(back) and self.settled()

        return again

    # ---- the servers

    def serve(self, backend: Backend) -> None:
        ports = sorted(
            {wishes.BACKEND_PORT, *(o.port for o in wishes.OFFERS.values() if o.pool == "own")}
        )
        self.lab.serve(backend, *ports, service=True)

    def sicken(self, host: str, how: signal.Signals) -> None:
        """Its server is killed, or stopped in the middle of what it does."""
        what, at = f"{host}'s server got {how.name}", now()
        self.ill.add(host)
        self.journal.begin([consequences.unnoticed(what, host, at)], lambda: self._noticed(host))
        self.journal.begin([consequences.illness(what, host, at)], lambda: self._healthy(host))
        if how is signal.SIGKILL:
            self.lab.kill_server(self._backend(host))
        else:
            self.lab.servers[host].send_signal(how)

    def cure(self, host: str) -> None:
        slots = [
            consequences.of_slots(f"{host}'s server is back", pool, now()) for pool in wishes.POOLS
        ]
        if host in self.lab.servers:
            self.lab.servers[host].send_signal(signal.SIGCONT)
        else:
            self._serve_again(host)
        self.cured[host] = now()
        self.ill.discard(host)
        self.journal.begin(slots, lambda: self._rested(host))

    def _rested(self, host: str) -> bool:
        """Its slots: it has them all again, or has lost them once more."""
        return self._noticed(host) if host in self.ill else self._healthy(host)

    def _serve_again(self, host: str) -> None:
        """A server opens its ports one after the other: checks may find it up a moment too early."""
        serving = threading.Event()
        what = f"{host}'s server opens its ports"
        self.journal.begin([consequences.unnoticed(what, host, now())], serving.is_set)
        self.serve(self._backend(host))
        serving.set()

    def _noticed(self, host: str) -> bool:
        """In each pool that has it, those too where the file says down: it may say up a moment later.

        By the checks, and by the reconciler, which keeps the spare tables: killed, when it is back.
        """
        at_risk = {(pool, host) for pool, members in self.wish.pools.items() if host in members}
        return at_risk <= self.watch.sight.passed_over or self._healthy(host)

    def _healthy(self, host: str) -> bool:
        """Once the last probe that it did not answer has been heard of, too."""
        well = host not in self.ill and now() > self.cured.get(host, 0.0) + PROBE
        return well and self.settled()

    def _fell(self, member: Member) -> None:
        pool, host = member
        for trouble in self.journal.troubles:
            if trouble.host == host and trouble.kind == "server failed" and trouble.end > now():
                return
        self.journal.complain(f"{pool}/{host} was found down, and nobody had touched it")

    def _backend(self, host: str) -> Backend:
        return next(one for one in self.lab.backends if one.name == host)

    # ---- overrides

    def force_down(self, pool: str, host: str) -> None:
        what = f"{pool}/{host} forced down"
        self.forced.add((pool, host))
        self.journal.begin(
            consequences.forced_down(what, pool, host, now()),
            lambda: (pool, host) not in self.forced and self.settled(),
        )
        self.expect("override", f"{pool}/{host}", "down", "--for", "10m", "--reason", "soak")

    def clear_overrides(self) -> None:
        slots = [consequences.of_slots("an override ends", pool, now()) for pool in wishes.POOLS]
        cleared = threading.Event()
        self.journal.begin(slots, lambda: cleared.is_set() and self.settled())
        self.expect("override", "--clear", "all")
        self.forced.clear()
        cleared.set()

    def expect(self, *arguments: str) -> None:
        done = self.told(*arguments)
        if done.returncode:
            self.journal.complain(
                f"reconciler {' '.join(arguments)}: code {done.returncode}: {done.stdout}"
            )

    def sick(self) -> set[str]:
        """Hosts that no pool may count on."""
        return self.ill | {host for _, host in self.forced}
