"""Two balancers that follow one git repository, and the real keepalived on each: as examples/keepalived has it, only faster.

    client == front == lb1, lb2 == switch == backends
      ====================================

Clients ask on the front; backends answer nat through whoever is master, and dsr and ipip directly: the client's
namespace has a leg on their side, as an upstream router would. Nothing here judges what comes of it.
"""

import contextlib
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Self

import pytest

from tests.support import lab as labs
from tests.support.balancer import Balancer
from tests.support.lab import ROOT, Lab
from tests.support.namespace import Namespace
from tests.support.repository import Repository
from tests.support.wait import until

EXAMPLE = ROOT / "examples/keepalived"
NAT, DSR, IPIP = "192.0.2.10", "192.0.2.11", "192.0.2.12"
NAT6 = "2001:db8::10"
UPSTREAM = "10.1.2.250"
FAMILIES = ("edge", "edge6")  # keepalived's instances: IPv4, IPv6
STALE = 2  # seconds: how old the heartbeat may be for `control`
CONFIG = f"""\
apiVersion: evenkeel/v1
checks:
  open: {{type: tcp, every: 1s, timeout: 500ms}}
  direct: {{type: tcp, port: 80, every: 1s, timeout: 500ms}}
pools:
  web:
    check: open
    backends:
      b1: {{address: 10.1.2.101, port: 8080}}
      b2: {{address: 10.1.2.102, port: 8080}}
      b3: {{address: 10.1.2.103, port: 8080, weight: 50}}
  web6:
    check: open
    backends:
      b1: {{address: "fd01:2::101", port: 8080}}
      b2: {{address: "fd01:2::102", port: 8080}}
      b3: {{address: "fd01:2::103", port: 8080, weight: 50}}
  own:
    check: direct
    backends: {{b1: {{address: 10.1.2.101}}, b2: {{address: 10.1.2.102}}, b3: {{address: 10.1.2.103}}}}
services:
  nat: {{addresses: [{NAT}], ports: [80/tcp], pools: [web], forward: nat, balance: {{method: maglev}}}}
  nat6: {{addresses: ["{NAT6}"], ports: [80/tcp], pools: [web6], forward: nat, balance: {{method: maglev}}}}
  dsr: {{addresses: [{DSR}], ports: [80/tcp], pools: [own], forward: dsr, balance: {{method: maglev}}}}
  ipip: {{addresses: [{IPIP}], ports: [80/tcp], pools: [own], forward: ipip}}
...
"""
NODE = """\
apiVersion: evenkeel/v1
interfaces: {{wan: {{mode: native}}, lan: {{mode: native}}}}
table-size: 1021
sizes: {{flows4: 16384, flows6: 16384, returns4: 16384, returns6: 16384, opening4: 8192, opening6: 8192}}
tunnel-source: {{ipv4: {own}}}
listen: 0.0.0.0:9160
vrrp: {{fifo: {run_dir}/vrrp.fifo}}
peers: {{{peer}: {{status: "http://{other}:9160", patience: 2s}}}}
"""
needs_keepalived = pytest.mark.skipif(
    shutil.which("keepalived") is None, reason="needs keepalived: sudo make setup"
)


class PairLab(Lab):
    """Lab's client and backends around two balancers."""

    def _build(self) -> None:
        self.front, self.switch = self._add("front"), self._add("switch")
        for bridge in (self.front, self.switch):
            bridge.ip("link add br0 type bridge\nlink set br0 up\n")
        self.client = self._add("client")
        self._connect(self.client, "eth0", self.front, "client")
        self._connect(self.client, "eth1", self.switch, "client")
        self.client.ip(f"addr add 10.1.1.2/24 dev eth0\naddr add {UPSTREAM}/24 dev eth1\n")
        self.client.ip("addr add fd01:1::2/64 dev eth0\n")
        self.client.ip("".join(f"route add {vip} dev eth0\n" for vip in (NAT, DSR, IPIP, NAT6)))
        self.balancers = [self._balancer(number) for number in (1, 2)]
        self.backends = [self._backend(number) for number in range(self.backend_count)]
        for backend in self.backends:
            self._answers_directly(backend)

    def _balancer(self, number: int) -> Namespace:
        place = self._add(f"lb{number}")
        self._forward(place)
        for interface, switch in (("wan", self.front), ("lan", self.switch)):
            self._connect(place, interface, switch, f"lb{number}")
        for net, interface in ((1, "wan"), (2, "lan")):
            place.ip(
                f"addr add 10.1.{net}.1{number}/24 dev {interface}\n"
                f"addr add fd01:{net}::1{number}/64 dev {interface}\n"
            )
        # Answers that the program has translated and passes to the kernel are from a local address.
        place.sysctl("net.ipv4.conf.lan.accept_local=1")
        return place

    def _answers_directly(self, backend: labs.Backend) -> None:
        self.decapsulate(backend)
        backend.namespace.sysctl(
            "net.ipv4.conf.all.arp_ignore=1", "net.ipv4.conf.all.arp_announce=2"
        )
        for vip in (DSR, IPIP):
            backend.namespace.ip(f"addr add {vip}/32 dev lo\nrule add from {vip} table 100\n")
        backend.namespace.ip(f"route add default via {UPSTREAM} table 100\n")
        self.serve(backend, 80, 8080)


class Member(Balancer):
    """One of the two: its reconciler, its healthcheck, its keepalived."""

    def __init__(self, lab: PairLab, number: int, upstream: Repository, script: Path) -> None:
        super().__init__()
        self.lab, self.number, self._upstream, self._script = lab, number, upstream, script

    def _build(self) -> None:
        self.host = self.lab.balancers[self.number - 1]  # type: ignore[attr-defined]
        self.name = f"{self.lab.prefix}-lb{self.number}"
        self._settle()
        self.source = ("--from-git", self._upstream.url, "--every", "1")
        other = 3 - self.number
        text = NODE.format(
            own=f"10.1.2.1{self.number}", run_dir=self.run_dir, peer=f"lb{other}", other=f"10.1.2.1{other}"
        )  # fmt: skip
        self.node.write_text(text)
        self.keepalived: subprocess.Popen[bytes] | None = None
        self.callback(self.stop_keepalived)

    def start_keepalived(self) -> None:
        """Reads the example, with this lab's places and a quicker pace."""
        path = self.folder / "keepalived.conf"
        path.write_text(self._hurried((EXAMPLE / f"lb{self.number}/keepalived.conf").read_text()))
        pids = ("-p", str(self.folder / "keepalived.pid"), "-r", str(self.folder / "vrrp.pid"))
        command = ("keepalived", "--dont-fork", "--log-console", "--vrrp", "-f", str(path), *pids)
        log = self.enter_context((self.folder / "keepalived.log").open("ab"))
        self.keepalived = subprocess.Popen(self.host.seeing(*command), stdout=log, stderr=log)

    def guard(self) -> None:
        """The example's firewall, for this lab's services."""
        text = (EXAMPLE / "nftables.conf").read_text()
        assert f"daddr {NAT} " in text
        text = text.replace(f"daddr {NAT} ", f"daddr {{ {NAT}, {DSR}, {IPIP} }} ")
        path = self.folder / "nftables.conf"
        path.write_text(text)
        self.host.run("nft", "--file", str(path))

    def stop_keepalived(self) -> None:
        if self.keepalived is not None:
            self.keepalived.terminate()
            self.keepalived.wait(15)
            self.keepalived = None

    def _hurried(self, text: str) -> str:
        """interval in whole seconds is as quick as keepalived 2.2 can look."""
        check = f"{self._script} --heartbeat {self.run_dir}/heartbeat"
        for was, now in (
            ("/usr/libexec/evenkeel/evenkeel-check", check),
            ("control 10", f"control {STALE}"),
            ("/run/evenkeel/default", str(self.run_dir)),
            ("interval 2", "interval 1"),
            ("fall 3", "fall 2"),
            ("rise 3", "rise 2"),
            ("advert_int 1", "advert_int 0.2"),
            (f"{NAT}/32 dev wan", "".join(f"{vip}/32 dev wan\n" for vip in (NAT, DSR, IPIP))),
        ):
            assert was in text, was
            text = text.replace(was, now)
        return text

    @property
    def said(self) -> str:
        """keepalived's log."""
        return (self.folder / "keepalived.log").read_text()

    def role(self) -> tuple[str, int | None]:
        """As the daemon shows it, with keepalived's priority now: of both families, once they are the same."""
        instances = self.status()["vrrp"]["instances"]
        found = {(one["role"], one["priority"]) for one in instances}
        return found.pop() if len(found) == 1 and len(instances) == len(FAMILIES) else ("", None)

    def check(self, signal_: str) -> str:
        """What the script says to it, or nothing when all is well."""
        command = (str(self._script), "--heartbeat", str(self.run_dir / "heartbeat"), signal_)
        return subprocess.run(
            self.host.seeing(*command), capture_output=True, text=True, check=False
        ).stderr

    def transitions(self, instance: str) -> list[str]:
        """Every state that keepalived entered, in order."""
        return re.findall(rf"\({instance}\) Entering (\w+) STATE", self.said)


class Pair(contextlib.ExitStack):
    """Both, their checkers and their keepaliveds, with lb1 in charge."""

    def __enter__(self) -> Self:
        super().__enter__()
        with contextlib.ExitStack() as undo:
            undo.push(self.__exit__)
            self._build()
            undo.pop_all()
        return self

    def _build(self) -> None:
        self.lab = self.enter_context(PairLab(3))
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
        self.folder.chmod(0o755)  # for both daemons to read
        self.upstream = Repository(self.folder / "upstream")
        self.commit(CONFIG)
        made = [Member(self.lab, number, self.upstream, self._secured()) for number in (1, 2)]
        self.one, self.two = (self.enter_context(member) for member in made)
        for member in (self.one, self.two):
            member.start(ready=False)
            self.enter_context(member.checker())
        for member in (self.one, self.two):
            until(member.ready, 30, what=f"lb{member.number} is ready")
            member.guard()
            member.start_keepalived()
        self.settled()

    def commit(self, text: str, subject: str = "change") -> str:
        """What both are to follow from now on; which commit that is."""
        self.content = text
        return self.upstream.commit(text, subject)

    def _secured(self) -> Path:
        """The script where nobody but root may write, which keepalived insists on."""
        folder = Path(tempfile.mkdtemp(prefix=self.lab.prefix, dir="/var/lib"))
        self.callback(shutil.rmtree, folder)
        folder.chmod(0o755)
        return Path(shutil.copy(ROOT / "libexec/evenkeel-check", folder))

    def settled(self) -> None:
        """lb1 is master, lb2 its backup, and both are well."""
        wanted = [("master", 150), ("backup", 120)]
        until(lambda: [self.one.role(), self.two.role()] == wanted, 30, what="lb1 in charge")


def suspended(process: subprocess.Popen[str]) -> contextlib.AbstractContextManager[None]:
    """Stopped meanwhile: its kernel goes on taking what comes."""

    @contextlib.contextmanager
    def stopped() -> Any:
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    return stopped()
