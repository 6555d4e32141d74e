"""A balancer with its interfaces, its neighbours, and a reconciler: packets go through what it wrote."""

import contextlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bpf import kernel
from reconciler import cli, node
from reconciler import config as configuration
from reconciler.dataplane import State
from reconciler.look import View
from reconciler.loop import Accepted, Place, Reconciler
from reconciler.maps import PinnedMaps
from reconciler.model import Config
from reconciler.neigh import Neighbours
from reconciler.source import Revision
from tests.support.bed import SIZES, Bed, Outcome
from tests.support.namespace import Namespace

ROOT = Path(__file__).parents[2]
LINKS = """\
link add wan type veth peer name wan-far
link add lan type veth peer name lan-far
"""
# The far ends say nothing of their own: the program is attached, and counts what comes in.
SILENCE = ("net.ipv6.conf.wan-far.disable_ipv6=1", "net.ipv6.conf.lan-far.disable_ipv6=1")
ADDRESSES = """\
link set wan up
link set wan-far up
link set lan up
link set lan-far up
addr add 10.1.1.1/24 dev wan
addr add 10.1.2.1/24 dev lan
addr add fd01:1::1/64 dev wan nodad
addr add fd01:2::1/64 dev lan nodad
neigh add 10.1.1.2 lladdr 02:00:00:00:00:07 dev wan nud permanent
neigh add fd01:1::2 lladdr 02:00:00:00:00:07 dev wan nud permanent
"""
CLIENT = {4: "10.1.1.2", 6: "fd01:1::2"}
NODELESS = {"status"}  # commands that ask for no file of this node
CONFIGLESS = {"status", "upgrade"}
WAN_LAN = f"""\
apiVersion: evenkeel/v1
interfaces: {{wan: {{}}, lan: {{}}}}
table-size: 251
sizes: {json.dumps({name: getattr(SIZES, name) for name in SIZES.__dataclass_fields__})}
"""


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@dataclass
class Box:
    bed: Bed
    namespace: Namespace
    place: Place
    client: int  # interface number

    def reconcile(self, config: str, node_text: str) -> View:
        with self.namespace.entered(), Neighbours() as neighbours:
            found = node.load(node_text)
            reconciler = Reconciler(self.bed.instance, found, self.place, neighbours)
            revision = Revision("lb.yaml", config, os.urandom(32))
            return reconciler.reconcile(Accepted(configuration.load(config), revision))

    def neighbour(self, address: str, mac: str) -> None:
        self.namespace.ip(f"neigh replace {address} lladdr {mac} dev lan nud permanent\n")

    def send(self, frame: bytes) -> Outcome:
        return self.bed.send(frame, at=self.client)

    def read(self) -> State:
        return PinnedMaps(self.bed.instance).read()

    # ---- the command

    def write(self, config: str, node_text: str = WAN_LAN) -> None:
        (self.place.run_dir / "lb.yaml").write_text(config)
        (self.place.run_dir / "node.yaml").write_text(node_text)

    def line(self, *arguments: str) -> tuple[str, ...]:
        """`reconciler` with these, as it is started in here."""
        folder = self.place.run_dir
        command = [str(ROOT / ".venv/bin/python"), "-m", "reconciler", *arguments]
        if not CONFIGLESS.intersection(arguments[:1]):
            command += ["--config", str(folder / "lb.yaml")]
        if not NODELESS.intersection(arguments[:1]):
            command += ["--node", str(folder / "node.yaml")]
        command += ["--instance", self.place.instance, "--run-dir", str(folder)]
        command += ["--state-dir", str(self.place.state_dir)]
        return self.namespace.inside(*command)

    def run(self, *arguments: str, ok: tuple[int, ...] = (0,)) -> Done:
        """The same in this process, which has imported it all."""
        words = list(self.line(*arguments))
        return self._called(words[words.index("reconciler") + 1 :], ok)

    def ask(self, command: str, *arguments: str, ok: tuple[int, ...] = (0,)) -> Done:
        """A command about this instance that is given no files but those named here."""
        place = ("--instance", self.place.instance, "--run-dir", str(self.place.run_dir))
        state = ("--state-dir", str(self.place.state_dir))
        return self._called([command, *arguments, *place, *state], ok)

    def _called(self, words: list[str], ok: tuple[int, ...]) -> Done:
        out, err = io.StringIO(), io.StringIO()
        heard = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
        with heard[0], heard[1], self.namespace.entered():
            code = cli.main(words)
        done = Done(code, out.getvalue(), err.getvalue())
        assert code in ok, done
        return done


@contextlib.contextmanager
def boxed(name: str, folder: Path) -> Iterator[Box]:
    """All of it is gone afterwards."""
    with contextlib.ExitStack() as stack:
        namespace = Namespace(name)
        stack.callback(namespace.delete)
        namespace.ip(LINKS)
        namespace.sysctl(*SILENCE)
        namespace.ip(ADDRESSES)
        namespace.sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        instance = kernel.Instance.load(name, SIZES)
        stack.callback(_gone, name)
        bed = Bed(instance, namespace)
        place = Place(name, folder, folder / "state")
        yield Box(bed, namespace, place, namespace.ifindex("wan"))
        instance.close()


def _gone(name: str) -> None:
    with contextlib.suppress(kernel.NotLoaded):
        kernel.teardown(name)


def mac_of(number: int) -> str:
    return f"02:00:00:00:0b:{number:02x}"


def acquaint(box: Box, config: Config) -> dict[str, str]:
    """A neighbour for each backend; which MAC is whose."""
    backends = [b for pool in config.pools.values() for b in pool.backends.values()]
    macs = {str(b.address): mac_of(i + 1) for i, b in enumerate(backends)}
    for address, mac in macs.items():
        box.neighbour(address, mac)
    return macs
