"""A client, a balancer and some backends, each a network namespace. Programs no maps and loads no balancer.

    client -- balancer -- switch == backends          arms=2
    client ==   switch == balancer, backends          arms=1: one interface for both sides

With `router=True` (arms=2 only) a router with a narrow link stands before the client: whoever sends the client
large packets must learn of it. Addresses are the same in every lab: namespaces keep them apart.

    python -m tests.support.lab --clean     removes what killed test runs left behind
"""

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support import namespace
from tests.support.namespace import Namespace, run

ROOT = Path(__file__).parents[2]
BPFFS = Path("/sys/fs/bpf/evenkeel")
RUN_DIR = Path("/run/evenkeel")

CLIENT = {4: "10.1.1.2", 6: "fd01:1::2"}
BALANCER = {4: "10.1.2.1", 6: "fd01:2::1"}  # on the backends' side: where tunnels and fullnat start
SERVICE = {4: "192.0.2.10", 6: "2001:db8::10"}
NAT_SOURCE = {4: "10.1.2.2", 6: "fd01:2::2"}  # fullnat's: on the backends' link, the balancer's
NARROW = 1400  # the router's link to the client

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Backend:
    name: str
    namespace: Namespace
    addresses: dict[int, str]  # by family

    def address(self, family: int) -> IPv4Address | IPv6Address:
        return ip_address(self.addresses[family])

    @property
    def mac(self) -> bytes:
        return self.namespace.mac("eth0")


class Lab:
    """Use it as a context manager: whatever happens, nothing of it stays behind."""

    def __init__(
        self, backends: int = 3, *, arms: int = 2, router: bool = False, queues: int = 1
    ) -> None:
        self.prefix = f"ek{os.getpid()}n{next(_numbers)}"
        self.arms = arms
        self.with_router = router
        self.backend_count = backends
        self.queues = f"numtxqueues {queues} numrxqueues {queues}"  # of every link
        self.namespaces: list[Namespace] = []
        self.servers: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        for place in reversed(self.namespaces):
            place.delete()
        self.namespaces.clear()

    # ---- what tests change on the way

    def serve(self, backend: Backend, *ports: int, service: bool = False) -> None:
        """HTTP and UDP echo in a backend; with `service` on the service's address too."""
        addresses = [*backend.addresses.values(), *(SERVICE.values() if service else ())]
        server = backend.namespace.spawn(
            sys.executable,
            str(ROOT / "tests/support/server.py"),
            backend.name,
            ",".join(map(str, ports)),
            *addresses,
        )
        assert server.stdout is not None
        if server.stdout.readline() != "ready\n":
            raise RuntimeError(f"{backend.name}: the server on ports {ports} did not start")
        self.servers[backend.name] = server

    def kill_server(self, backend: Backend) -> None:
        namespace.end(self.servers.pop(backend.name))

    def own_service_address(self, backend: Backend) -> None:
        """For modes that leave the destination alone: the address on lo, and nobody asks for it by ARP."""
        backend.namespace.sysctl(
            "net.ipv4.conf.all.arp_ignore=1", "net.ipv4.conf.all.arp_announce=2"
        )
        backend.namespace.ip("".join(f"addr add {a} dev lo\n" for a in SERVICE.values()))

    def decapsulate(self, backend: Backend) -> None:
        """Takes the headers of ipip and gue off: kernels without tunnel devices need a program for it."""
        backend.namespace.run(
            "ip", "link", "set", "dev", "eth0", "xdp", "obj", str(decap_object()), "sec", "xdp"
        )

    def forget_routes(self, backend: Backend) -> None:
        """No way back to clients: what fullnat is for."""
        backend.namespace.ip("route del default\nroute del ::/0\n")

    # ---- how it is built

    def _build(self) -> None:
        self.client = self._add("client")
        self.balancer = self._add("balancer")
        self.switch = self._add("switch")
        self.switch.ip("link add br0 type bridge\nlink set br0 up\n")
        self._forward(self.balancer)
        self._connect(self.balancer, "lan", self.switch, "balancer")
        addresses = [*BALANCER.values(), *NAT_SOURCE.values()]
        if self.arms == 1:
            self._connect(self.client, "eth0", self.switch, "client")
            addresses += ["10.1.1.1", "fd01:1::1"]
        elif self.with_router:
            self._build_router()
        else:
            self._link(self.client, "eth0", self.balancer, "wan")
            _address(self.balancer, "wan", "10.1.1.1", "fd01:1::1")
        _address(self.balancer, "lan", *addresses)
        _address(self.client, "eth0", *CLIENT.values())
        _default(self.client, "10.1.1.1", "fd01:1::1")
        self.backends = [self._backend(number) for number in range(self.backend_count)]
        self._meet()

    def _build_router(self) -> None:
        self.router = self._add("router")
        self._forward(self.router)
        self._link(self.client, "eth0", self.router, "narrow")
        self._link(self.router, "eth0", self.balancer, "wan")
        _address(self.router, "narrow", "10.1.1.1", "fd01:1::1")
        _address(self.router, "eth0", "10.1.3.2", "fd01:3::2")
        _address(self.balancer, "wan", "10.1.3.1", "fd01:3::1")
        _default(self.router, "10.1.3.1", "fd01:3::1")
        self.router.ip(
            f"route replace 10.1.1.0/24 dev narrow mtu lock {NARROW}\n"
            f"route replace fd01:1::/64 dev narrow metric 256 mtu lock {NARROW}\n"
        )
        self.balancer.ip(
            "route add 10.1.1.0/24 via 10.1.3.2\nroute add fd01:1::/64 via fd01:3::2\n"
        )

    def _backend(self, number: int) -> Backend:
        name = f"b{number + 1}"
        place = self._add(name)
        self._connect(place, "eth0", self.switch, name)
        addresses = {4: f"10.1.2.{101 + number}", 6: f"fd01:2::{101 + number}"}
        _address(place, "eth0", *addresses.values())
        _default(place, *BALANCER.values())
        return Backend(name, place, addresses)

    def _add(self, role: str) -> Namespace:
        place = Namespace(f"{self.prefix}-{role}")
        self.namespaces.append(place)
        place.ip("link set lo up\n")
        place.sysctl(
            "net.ipv4.conf.all.rp_filter=0",
            "net.ipv4.conf.default.rp_filter=0",
            "net.ipv4.conf.default.send_redirects=0",
            "net.ipv4.conf.all.send_redirects=0",
            "net.ipv6.conf.default.accept_dad=0",
            "net.ipv6.conf.default.accept_ra=0",
            "net.ipv6.conf.default.router_solicitations=0",
        )
        return place

    def _forward(self, place: Namespace) -> None:
        place.sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")

    def _connect(self, place: Namespace, interface: str, switch: Namespace, port: str) -> None:
        self._link(place, interface, switch, port)
        switch.ip(f"link set {port} master br0\n")

    def _link(self, one: Namespace, interface: str, other: Namespace, peer: str) -> None:
        """A veth as native XDP needs it: real checksums from senders, and NAPI where frames are redirected to."""
        one.ip(
            f"link add {interface} {self.queues} type veth"
            f" peer name {peer} {self.queues} netns {other.name}\n"
        )
        ends = ((one, interface), (other, peer))
        for place, device in ends:
            place.ip(f"link set {device} up\n")
        for place, device in ends:  # once both are up: else the other end stays no redirect target
            place.run("ethtool", "-K", device, "tx", "off", "gro", "on")

    def _meet(self) -> None:
        """Everybody's neighbours are known before the first packet that matters."""
        for family, address in CLIENT.items():
            _greet(self.balancer, family, address)
            for backend in self.backends:
                _greet(self.balancer, family, backend.addresses[family])


def _address(place: Namespace, interface: str, *addresses: str) -> None:
    lengths = ((address, 64 if ":" in address else 24) for address in addresses)
    place.ip("".join(f"addr add {a}/{n} dev {interface}\n" for a, n in lengths))


def _default(place: Namespace, via4: str, via6: str) -> None:
    place.ip(f"route add default via {via4}\nroute add default via {via6}\n")


def _greet(place: Namespace, family: int, address: str) -> None:
    place.run("ping", f"-{family}", "-c1", "-W5", address)


def decap_object() -> Path:
    """Compiled when it is not there or older than its source."""
    source = Path(__file__).with_name("decap.bpf.c")
    made = ROOT / "build/decap.bpf.o"
    if not made.exists() or made.stat().st_mtime < source.stat().st_mtime:
        made.parent.mkdir(exist_ok=True)
        new = made.with_suffix(f".{os.getpid()}")
        flags = ("-O2", "-g", "-target", "bpf", f"-I/usr/include/{os.uname().machine}-linux-gnu")
        run("clang", *flags, "-c", str(source), "-o", str(new))
        new.rename(made)
    return made


def leftovers() -> list[str]:
    """Namespaces, pinned instances and folders of labs whose process is gone."""
    folders = (namespace.FOLDER, BPFFS, *_folders())
    names = [path.name for folder in folders if folder.is_dir() for path in folder.iterdir()]
    return sorted({name for name in names if _is_orphan(name)})


def _is_orphan(name: str) -> bool:
    digits = "".join(itertools.takewhile(str.isdigit, name.removeprefix("ek")))
    return name.startswith("ek") and bool(digits) and not Path("/proc", digits).exists()


def clean(names: Iterable[str]) -> None:
    for name in names:
        if (namespace.FOLDER / name).exists():
            namespace.kill_everything_in(name)
            run("ip", "netns", "delete", name)
        for folder in (BPFFS, *_folders()):
            shutil.rmtree(folder / name, ignore_errors=True)


def _folders() -> tuple[Path, ...]:
    return RUN_DIR, Path(tempfile.gettempdir())


if __name__ == "__main__":
    if sys.argv[1:] != ["--clean"]:
        sys.exit("usage: python -m tests.support.lab --clean")
    orphans = leftovers()
    clean(orphans)
    print("removed:", *(orphans or ["nothing, nothing was left"]))  # noqa: T201
