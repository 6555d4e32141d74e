"""The ways that a packet can take through a lab's balancer, each set up as its users set it up.

Evenkeel by `reconciler --once` on two files, nftables by `nft`, IPVS by `ipvsadm`. None is tuned beyond
what its files here say, and nothing here measures.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path

from bpf import kernel
from bpf.abi import Verdict
from tests.bench.objects import BenchError
from tests.bench.rate_report import BARE, FLOOR, FORWARDING, NFTABLES
from tests.bench.rate_stream import Towards
from tests.bench.rate_wire import Entry, Wire
from tests.support.checksums import problems
from tests.support.lab import ROOT, SERVICE, Lab

SERVED = SERVICE[4]
B1, B2 = "10.1.2.101", "10.1.2.102"
REWRITTEN = 8080
FRONTENDS = (80, 81, 82, 83)
QUEUES = 2
NEEDED = ("nft", "ipvsadm", "haproxy", "wrk")

CONFIG = """\
apiVersion: evenkeel/v1
pools:
  web:
    backends:
      b1: {{address: 10.1.2.101{port}}}
      b2: {{address: 10.1.2.102{port}}}
services:
  www:
    addresses: [192.0.2.10]
    ports: [80/udp, 81/udp, 82/udp, 83/udp, 80/tcp, 81/tcp, 82/tcp, 83/tcp]
    pools: [web]
    forward: {forward}
...
"""
# Room for as many half-open connections as for flows, and as nftables has for both.
NODE = """\
apiVersion: evenkeel/v1
interfaces: {{wan: {{mode: {mode}}}, lan: {{mode: {mode}}}}}
tunnel-source: {{ipv4: 10.1.2.1}}
nat-source: {{ipv4: 10.1.2.2}}
nat-ports: 1024-65535
sizes: {{opening4: 262144}}
listen: "off"
"""
RULES = """\
table ip balancer {
	chain services {
		type nat hook prerouting priority dstnat; policy accept;
		ip daddr 192.0.2.10 udp dport 80-83 dnat to jhash ip saddr . udp sport mod 2 map { 0 : 10.1.2.101, 1 : 10.1.2.102 }:8080
		ip daddr 192.0.2.10 tcp dport 80-83 dnat to jhash ip saddr . tcp sport mod 2 map { 0 : 10.1.2.101, 1 : 10.1.2.102 }:8080
	}
}
"""


IPVS = "IPVS masquerading"


class NotHere(Exception):
    """This kernel has not got it: the way's name, and what was found when it was tried."""


@dataclass(frozen=True, slots=True)
class Way:
    """A way that is set up: where to send, and how what comes out must look."""

    name: str
    lab: Lab
    entry: Entry
    addresses: frozenset[str]
    ports: frozenset[int] = frozenset()  # none: the frame is in a tunnel
    forwarded: Callable[[], int] | None = None  # how many the balancer says it has
    sink: str = "balancer"  # the switch's port

    @property
    def balances(self) -> bool:
        """Whether flows go to more than one place."""
        return self.name not in (FLOOR, BARE, FORWARDING)

    def check(self, frame: bytes) -> None:
        """One of the frames that arrived, against what this way is to make of it."""
        address = str(IPv4Address(frame[30:34]))
        port = struct.unpack_from("!H", frame, 36)[0]
        if address not in self.addresses or (self.ports and port not in self.ports):
            raise BenchError(f"{self.name}: a frame came out to {address}, port {port}")
        if wrong := problems(frame):
            raise BenchError(f"{self.name}: a frame came out with {', '.join(wrong)}")


def needs() -> None:
    if missing := [tool for tool in NEEDED if not shutil.which(tool)]:
        raise BenchError(
            f"missing: {', '.join(missing)}: make bench installs them (scripts/setup bench)"
        )


# ---- yardsticks


@contextmanager
def dropped(wire: Wire) -> Iterator[Way]:
    """The floor: a link, and the sink at its end."""
    with _lab() as lab:
        wire.attach("sink", lab.balancer, "wan")
        entry = replace(_entry(lab, SERVED), receivers=(lab.balancer.mac("wan"),))
        yield Way(FLOOR, lab, entry, frozenset({SERVED}), frozenset(FRONTENDS), sink="")


@contextmanager
def redirected(wire: Wire) -> Iterator[Way]:
    """Other MAC addresses and out: the least that any XDP program can do on two links."""
    with _lab() as lab:
        wire.attach("bare", lab.balancer, "wan")
        backend = lab.backends[0].mac
        wire.set_hop(backend, lab.balancer.mac("lan"), lab.balancer.ifindex("lan"))
        yield Way(BARE, lab, _entry(lab, SERVED), frozenset({SERVED}), frozenset(FRONTENDS))


@contextmanager
def routed(_wire: Wire) -> Iterator[Way]:
    with _lab() as lab:
        yield Way(FORWARDING, lab, _entry(lab, B1), frozenset({B1}), frozenset(FRONTENDS))


# ---- balancers


@contextmanager
def nftables(_wire: Wire) -> Iterator[Way]:
    with _lab() as lab, _written("rules.nft", RULES) as file:
        lab.balancer.run("nft", "-f", str(file))
        yield _translated(NFTABLES, lab)


@contextmanager
def ipvs(_wire: Wire) -> Iterator[Way]:
    with _lab() as lab:
        try:
            lab.balancer.run("ipvsadm", "-L", "-n")
        except RuntimeError as error:
            raise NotHere(IPVS, _said(error)) from None
        lab.balancer.ip(f"addr add {SERVED}/32 dev lo\n")  # it takes what is for this machine
        for kind in ("-u", "-t"):
            for port in FRONTENDS:
                service = (kind, f"{SERVED}:{port}")
                lab.balancer.run("ipvsadm", "-A", *service, "-s", "mh", "-b", "mh-port")
                for backend in (B1, B2):
                    target = f"{backend}:{REWRITTEN}"
                    lab.balancer.run("ipvsadm", "-a", *service, "-r", target, "-m")
        yield _translated(IPVS, lab)


def evenkeel(forward: str, mode: str = "native") -> Callable[[Wire], Iterator[Way]]:
    @contextmanager
    def way(_wire: Wire) -> Iterator[Way]:
        with _lab() as lab, _reconciled(lab, forward, mode) as instance:
            yield _evenkeel(forward, mode, lab, instance)

    return way


def _evenkeel(forward: str, mode: str, lab: Lab, instance: kernel.Instance) -> Way:
    def forwarded() -> int:
        cpu = instance.maps.cpus.get(0)
        return int(cpu.verdict[Verdict.FORWARDED].packets) if cpu else 0

    made = _translated(f"Evenkeel {forward}" + f", {mode}" * (mode != "native"), lab)
    made = replace(made, forwarded=forwarded)
    if forward == "fullnat":
        return replace(made, ports=frozenset(FRONTENDS))
    if forward == "dsr":
        return replace(made, addresses=frozenset({SERVED}), ports=frozenset(FRONTENDS))
    return replace(made, ports=frozenset()) if forward == "ipip" else made


@contextmanager
def _reconciled(lab: Lab, forward: str, mode: str) -> Iterator[kernel.Instance]:
    with tempfile.TemporaryDirectory(prefix="ekbench") as name:
        folder = Path(name)
        port = f", port: {REWRITTEN}" if forward == "nat" else ""
        (folder / "lb.yaml").write_text(CONFIG.format(port=port, forward=forward))
        (folder / "node.yaml").write_text(NODE.format(mode=mode))
        command = [str(ROOT / ".venv/bin/python"), "-m", "reconciler", "--once"]
        command += ["--config", str(folder / "lb.yaml"), "--node", str(folder / "node.yaml")]
        command += ["--instance", lab.prefix, "--run-dir", name, "--state-dir", f"{name}/state"]
        try:
            lab.balancer.run(*command)
            with kernel.Instance.open(lab.prefix, read_only=True) as instance:
                yield instance
        finally:
            with suppress(kernel.NotLoaded):
                kernel.teardown(lab.prefix)


def _said(error: RuntimeError) -> str:
    """ipvsadm's own words, without modprobe's before and the question after them."""
    words = [line for line in str(error).splitlines() if "ipvs:" in line]
    return f"not in this kernel ({words[0].strip() if words else error})"


# ---- what they share


def _translated(name: str, lab: Lab) -> Way:
    """As destination translation has to come out."""
    return Way(name, lab, _entry(lab, SERVED), frozenset({B1, B2}), frozenset({REWRITTEN}))


def _entry(lab: Lab, address: str) -> Entry:
    towards = Towards(address, lab.balancer.mac("wan"), FRONTENDS[0], len(FRONTENDS))
    return Entry(lab.client, "eth0", towards, tuple(backend.mac for backend in lab.backends))


def _lab() -> Lab:
    return Lab(2, queues=QUEUES)


@contextmanager
def _written(name: str, text: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ekbench") as folder:
        path = Path(folder) / name
        path.write_text(text)
        yield path
