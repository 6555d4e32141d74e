"""`reconciler doctor` where each setting that a namespace has is broken, and mended by the command it names."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from bpf.link import detach
from bpf.pins import Pins
from tests.support.balancer import CONFIG, Balancer, Done
from tests.support.lab import ROOT, decap_object
from tests.support.namespace import Namespace

NODE = """\
apiVersion: evenkeel/v1
interfaces: {wan: {mode: native}, lan: {mode: auto}}
table-size: 1021
nat-source: {ipv4: 10.1.2.2}
"""
TUNNEL = CONFIG.replace("forward: nat", "forward: ipip")
SIX = CONFIG.replace("192.0.2.10", '"2001:db8::10"').replace("10.1.2.10", "fd01:2::10")
SIX = SIX.replace("fd01:2::101", '"fd01:2::101"').replace("fd01:2::102", '"fd01:2::102"')
CLIENT_END = "eth0"


@dataclass(frozen=True, slots=True)
class Fault:
    """How to break it, what doctor then says, and about what."""

    breaks: str
    name: str
    about: str
    config: str = CONFIG
    mends: str = ""  # where the finding cannot name the whole command
    where: str = "balancer"


FAULTS = {
    "rp_filter": Fault("sysctl -w net.ipv4.conf.lan.rp_filter=1", "rp-filter", "lan"),
    "rp_filter of all": Fault("sysctl -w net.ipv4.conf.all.rp_filter=1", "rp-filter", "wan"),
    "forwarding": Fault("sysctl -w net.ipv4.conf.lan.forwarding=0", "forwarding4", "lan"),
    "IPv6 forwarding": Fault(
        "sysctl -w net.ipv6.conf.wan.forwarding=0", "forwarding6", "wan", config=SIX
    ),
    "local ports": Fault(
        "sysctl -w net.ipv4.ip_local_port_range='1024 60999'", "ports", "fullnat"
    ),
    "down": Fault("ip link set dev wan down", "down", "wan"),
    "other end without NAPI": Fault(
        f"ethtool -K {CLIENT_END} gro off",
        "veth-napi",
        "wan",
        mends=f"ethtool -K {CLIENT_END} gro on",
        where="client",
    ),
    "no route": Fault(
        "ip route add unreachable 10.1.2.101/32",
        "route",
        "web/web1",
        mends="ip route del unreachable 10.1.2.101/32",
    ),
    "neighbour": Fault("ip neigh del 10.1.2.101 dev lan", "neighbour", "web/web1"),
    "interface renamed": Fault(
        "ip link set lan name lan9", "missing", "lan", mends="ip link set lan9 name lan"
    ),
    "MTU for ipip": Fault(
        "true", "mtu", "web/web1", config=TUNNEL, mends="ip link set dev lan mtu 1520"
    ),
}  # fmt: skip


class Host(Balancer):
    """Nothing runs on it, unless a test starts it; its doctor is called in a process of its own."""

    def _build(self) -> None:
        super()._build()
        self.node.write_text(NODE)

    def doctor(
        self, *before: str, config: str = CONFIG, code: int | None = None
    ) -> list[dict[str, Any]]:
        self.config.write_text(config)
        arguments = ("--node", str(self.node), "--config", str(self.config), "--output", "json")
        done = self.prefixed(before, arguments) if before else self.here(*arguments)
        assert done.returncode in ({0, 2} if code is None else {code}), done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        assert bool(said["warnings"]) == (done.returncode == 2)
        found: list[dict[str, Any]] = said["findings"]
        return [one for one in found if one["level"] == "warning"]

    def here(self, *arguments: str) -> Done:
        with self.lab.balancer.entered():
            return self.command("doctor", *arguments)

    def prefixed(self, before: tuple[str, ...], arguments: tuple[str, ...]) -> Done:
        """In a process of its own, by way of another program."""
        own = (sys.executable, "-m", "reconciler", "doctor", *self.place, *arguments)
        done = subprocess.run(
            self.lab.balancer.inside(*before, *own),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def place_of(self, where: str) -> Namespace:
        return self.lab.client if where == "client" else self.lab.balancer


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host() as made:
        yield made


def test_a_host_that_is_as_it_should_be_has_no_warnings(host: Host) -> None:
    assert host.doctor(code=0) == []


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_what_is_broken_is_found_and_its_command_mends_it(host: Host, fault: Fault) -> None:
    place = host.place_of(fault.where)
    place.run("sh", "-c", fault.breaks)
    found = host.doctor(config=fault.config, code=2)
    assert (fault.name, fault.about) in {(one["name"], one["about"]) for one in found}
    if fault.mends:
        place.run("sh", "-c", fault.mends)
    for one in found if not fault.mends else ():
        place.run("sh", "-c", one["mend"].partition("   (")[0])
    assert host.doctor(config=fault.config, code=0) == []
    put_back(host)


def put_back(host: Host) -> None:
    """As the lab made it: mending is not undoing, and `down` takes routes along."""
    host.lab.balancer.sysctl(
        "net.ipv4.conf.all.rp_filter=0", "net.ipv4.ip_local_port_range=32768 60999"
    )
    host.lab.balancer.ip("link set lan mtu 1500\n")
    host.lab.balancer.run("ping", "-c1", "-W5", "10.1.2.101")


def notes(host: Host) -> dict[tuple[str, str], str]:
    done = host.here("--node", str(host.node), "--output", "json")
    found = json.loads(done.stdout)["findings"]
    return {(one["name"], one["about"]): one["mend"] for one in found if one["level"] == "note"}


@pytest.mark.parametrize(
    ("name", "undo"),
    [("rx-vlan", "ethtool -K wan rxvlan on"), ("queues", "ethtool -L wan rx 1 tx 1")],
)
def test_what_a_note_names_is_mended_by_its_command_too(host: Host, name: str, undo: str) -> None:
    before = notes(host)
    if (name, "wan") not in before:
        pytest.skip(f"needs an interface with something to note about {name}: this one has not")
    host.lab.balancer.run("sh", "-c", before[name, "wan"])
    assert notes(host).keys() == before.keys() - {(name, "wan")}
    host.lab.balancer.run("sh", "-c", undo)
    assert notes(host) == before


def test_gro_is_in_the_way_of_a_program_in_generic_mode_only(host: Host) -> None:
    assert host.doctor(code=0) == []
    host.node.write_text(NODE.replace("mode: native", "mode: generic"))
    try:
        (found,) = host.doctor(code=2)
        assert (found["name"], found["about"]) == ("gro", "wan")
        host.lab.balancer.run("sh", "-c", found["mend"])
        assert host.doctor(code=0) == []
    finally:
        host.node.write_text(NODE)
        host.lab.balancer.run("ethtool", "-K", "wan", "gro", "on")


def test_a_mount_namespace_without_the_bpf_file_system_is_told(host: Host) -> None:
    inside = 'umount --recursive /sys/fs/bpf; exec "$@"'
    found = host.doctor("unshare", "--mount", "sh", "-c", inside, "sh", code=2)
    assert [one["name"] for one in found] == ["bpffs"]
    assert found[0]["mend"] == "mount -t bpf bpf /sys/fs/bpf"


def test_a_process_without_capabilities_is_told_which(host: Host) -> None:
    without = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-all")
    found = host.doctor(*without, code=2)
    assert [one["name"] for one in found] == ["capabilities"]
    assert "CAP_NET_ADMIN" in found[0]["what"]


def test_what_is_attached_and_by_whom(host: Host) -> None:
    balancer = host.lab.balancer
    host.start()
    assert host.doctor(code=0) == []
    host.stop()
    detach(Pins.of(host.name).link("lan"))
    assert [(one["name"], one["about"]) for one in host.doctor(code=2)] == [("detached", "lan")]
    balancer.run("ip", "link", "set", "dev", "lan", "xdp", "obj", str(decap_object()), "sec", "xdp")
    assert [(one["name"], one["about"]) for one in host.doctor(code=2)] == [("foreign", "lan")]
    balancer.run("ip", "link", "set", "dev", "lan", "xdp", "off")
    host.start()
    assert host.doctor(code=0) == []


def test_without_node_yaml_it_cannot_look(host: Host) -> None:
    done = host.command("doctor", "--node", str(host.folder / "absent.yaml"))
    assert done.returncode == 1
    assert "absent.yaml" in done.stderr
    host.node.write_text("apiVersion: evenkeel/v1\ninterfaces: {}\n")
    assert host.command("doctor", "--node", str(host.node)).returncode == 1
    host.node.write_text(NODE)


def test_what_it_says_to_people(host: Host) -> None:
    done = host.here("--node", str(host.node))
    assert done.returncode == 0
    assert "ethtool -K wan rxvlan off" in done.stdout
    assert done.stdout.rstrip().splitlines()[-1].startswith("0 warnings, ")
