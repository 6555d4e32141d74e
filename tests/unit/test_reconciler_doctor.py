"""Facts about a host, and which findings follow: a row for each, beside what is well and yields none."""

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from reconciler import config as configuration
from reconciler.commands.doctor import document, text
from reconciler.doctor import findings
from reconciler.model import Config, Node
from reconciler.symptoms import Device, Facts, Finding, Level, Reach

NODE = Node({"wan": "auto", "lan": "auto"})
FULLNAT = replace(NODE, nat_source={4: ip_address("10.1.2.2")})


def config(forward: str, backend: str = "10.1.2.101", service: str = "192.0.2.10") -> Config:
    return configuration.load(
        f"""\
apiVersion: evenkeel/v1
pools: {{web: {{backends: {{web1: {{address: "{backend}", port: 80}}}}}}}}
services:
  www: {{addresses: ["{service}"], ports: [80/tcp], pools: [web], forward: {forward}}}
"""
    )


VIA = configuration.load(
    """\
apiVersion: evenkeel/v1
checks: {alive: {type: tcp, via: service}}
pools: {web: {check: alive, backends: {web1: {address: 10.1.2.101}}}}
services:
  www: {addresses: [192.0.2.10], ports: [80/tcp], pools: [web], forward: dsr}
"""
)
WAN = Device("wan", driver="mlx5_core", mode="native", queues=4, most_queues=8, redirect=True)
LAN = replace(WAN, name="lan")
REACH = Reach("web/web1", ip_address("10.1.2.101"), "lan", mtu=1500, redirect=True)
WELL = Facts(
    NODE,
    config("nat"),
    kernel="6.18.0",
    loaded=True,
    cpus=4,
    keepalive=60,
    devices=(WAN, LAN),
    reaches=(REACH,),
)


def with_wan(**changes: Any) -> Facts:
    return replace(WELL, devices=(replace(WAN, **changes), LAN))


def with_reach(forward: str = "nat", **changes: Any) -> Facts:
    backend = str(changes.get("address", REACH.address))
    service = "2001:db8::10" if forward == "nat" and ":" in backend else "192.0.2.10"
    reach = replace(REACH, **changes)
    return replace(WELL, config=config(forward, backend, service), reaches=(reach,))


def on(feature: str, **changes: Any) -> Facts:
    return with_wan(features={feature: True}, **changes)


VETH = {"kind": "veth", "driver": "veth"}
WRONG = {
    "old kernel": (replace(WELL, release=(5, 15), kernel="5.15.0"), "kernel", "6.1"),
    "no CAP_BPF": (replace(WELL, lacking=("CAP_BPF",)), "capabilities", "AmbientCapabilities"),
    "no bpffs": (replace(WELL, bpffs=False), "bpffs", "mount -t bpf bpf /sys/fs/bpf"),
    "no JIT": (replace(WELL, jit=0), "jit", "sysctl -w net.core.bpf_jit_enable=1"),
    "gc_thresh3": (replace(WELL, most_neighbours=1), "neighbours", "gc_thresh3=4"),
    "local ports": (
        replace(WELL, node=FULLNAT, local_ports=(1024, 60999), reserved=((80, 80),)),
        "ports",
        "ip_local_reserved_ports=80,20000-29999",
    ),
    "half reserved": (
        replace(WELL, node=FULLNAT, local_ports=(1024, 60999), reserved=((20000, 25000),)),
        "ports",
        "ip_local_reserved_ports=20000-25000,20000-29999",
    ),
    "no interface": (with_wan(present=False), "missing", "ip link"),
    "down": (with_wan(up=False), "down", "ip link set dev wan up"),
    "foreign": (with_wan(foreign="program id 7", mode=""), "foreign", "ip link set dev wan xdp off"),
    "detached": (with_wan(mode=""), "detached", "reconciler --once"),
    "generic": (with_wan(mode="generic", native=False), "generic", "mode: generic"),
    "no driver": (with_wan(wanted="native", native=False), "driver", "mode: auto"),
    "LRO": (on("rx-lro"), "lro", "ethtool -K wan lro off"),
    "hardware GRO": (on("rx-gro-hw"), "gro-hw", "ethtool -K wan rx-gro-hw off"),
    "generic GRO": (
        on("rx-gro", mode="generic", wanted="generic"),
        "gro",
        "ethtool -K wan gro off",
    ),
    "VLANs": (on("rx-vlan-hw-parse", vlans=("wan.7",)), "rx-vlan", "ethtool -K wan rxvlan off"),
    "queues": (with_wan(queues=1), "queues", "ethtool -L wan combined 4"),
    "rp_filter": (with_wan(rp_filter=1), "rp-filter", "net.ipv4.conf.wan.rp_filter=2"),
    "a VLAN's name": (
        replace(WELL, devices=(replace(WAN, name="wan.7", rp_filter=1), LAN)),
        "rp-filter",
        "net.ipv4.conf.wan/7.rp_filter=2",
    ),
    "IPv4 forwarding": (
        with_wan(forwards=frozenset({6})),
        "forwarding4",
        "net.ipv4.conf.wan.forwarding=1",
    ),
    "IPv6 forwarding": (
        replace(
            WELL,
            config=config("nat", "fd00::1", "2001:db8::10"),
            devices=(replace(WAN, forwards=frozenset({4})), LAN),
        ),
        "forwarding6",
        "net.ipv6.conf.wan.forwarding=1",
    ),
    "NAPI": (with_wan(**VETH, redirect=False), "veth-napi", "ethtool -K DEVICE gro on"),
    "no clsact": (replace(WELL, config=VIA, clsact=False), "clsact", "CONFIG_NET_CLS_BPF"),
    "no filter": (
        replace(with_wan(filtered=False), config=VIA),
        "unfiltered",
        "tc filter show dev wan egress",
    ),
    "no route": (with_reach(out=""), "route", "ip route add 10.1.2.101"),
    "silent": (with_reach(resolved=False), "neighbour", "ping -c1 -I lan 10.1.2.101"),
    "silent gateway": (
        with_reach(resolved=False, via=ip_address("10.1.2.7")),
        "neighbour",
        "ip neigh show 10.1.2.7",
    ),
    "unnamed interface": (with_reach(out="lan2"), "replies", "`lan2: {}` under interfaces"),
    "bridge": (with_reach(kind="bridge", redirect=False), "redirect", "below lan"),
    "ipip": (with_reach("ipip"), "mtu", "ip link set dev lan mtu 1520"),
    "gue by IPv6": (
        with_reach("gue", address=ip_address("fd00::1")),
        "mtu",
        "ip link set dev lan mtu 1548",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("facts", "name", "mend"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_one_warning_with_the_command_that_mends_it(
    facts: Facts, name: str, mend: str
) -> None:
    (found,) = (one for one in findings(facts) if one.level is Level.WARNING)
    assert found.name == name
    assert mend in found.mend


def test_before_5_11_maps_are_counted_by_memlock() -> None:
    found = findings(replace(WELL, release=(5, 10), kernel="5.10", memlock=65536))
    assert [one.name for one in found] == ["kernel", "memlock"]


FINE = {
    "no filter, and no check wants it": with_wan(filtered=False),
    "nobody says whether there is clsact": replace(WELL, config=VIA, clsact=None),
    "all is well": WELL,
    "fullnat's ports are not the host's": replace(WELL, node=FULLNAT),
    "they are, but reserved": replace(
        WELL, node=FULLNAT, local_ports=(1024, 60999), reserved=((20000, 29999),)
    ),
    "nobody uses fullnat": replace(WELL, local_ports=(1024, 60999)),
    "JIT unknown, as in a container": replace(WELL, jit=None),
    "memlock counts for nothing any more": replace(WELL, memlock=65536),
    "nothing is loaded yet": replace(with_wan(mode=""), loaded=False),
    "not permitted to know": replace(with_wan(mode=""), loaded=None),
    "generic as wanted": with_wan(mode="generic", wanted="generic"),
    "GRO in native mode": on("rx-gro"),
    "as many queues as there are": with_wan(queues=2, most_queues=2),
    "loose rp_filter": with_wan(rp_filter=2),
    "strict, but replies do not come back": replace(
        with_wan(rp_filter=1, forwards=frozenset()), config=config("dsr"), reaches=()
    ),
    "IPv6 is not forwarded, nor balanced": with_wan(forwards=frozenset({4})),
    "dsr needs no program where backends are": with_reach("dsr", out="lan2"),
    "room for ipip": with_reach("ipip", mtu=1520),
    "an old kernel that does not say": with_wan(native=None, redirect=None),
}


@pytest.mark.parametrize("facts", FINE.values(), ids=FINE)
def test_what_is_fine_is_not_mentioned(facts: Facts) -> None:
    assert findings(facts) == ()


NOTES = {
    "idle": replace(WELL, keepalive=7200),
    "rx-vlan": on("rx-vlan-hw-parse"),
    "queues": with_wan(**VETH, queues=1),
    "veth-checksums": with_wan(**VETH),
}


@pytest.mark.parametrize(("name", "facts"), NOTES.items())
def test_what_matters_in_some_networks_only_is_a_note(name: str, facts: Facts) -> None:
    assert name in {one.name for one in findings(facts)}
    assert all(one.level is Level.NOTE for one in findings(facts))


def test_without_a_configuration_ipv4_is_taken_to_be_translated() -> None:
    found = findings(replace(with_wan(forwards=frozenset()), config=None, reaches=()))
    assert [one.name for one in found] == ["forwarding4"]


def test_warnings_come_first_and_texts_name_them_all() -> None:
    facts = replace(on("rx-vlan-hw-parse", up=False), bpffs=False)
    found = findings(facts)
    assert [one.name for one in found] == ["bpffs", "down", "rx-vlan"]
    shown = text(found)
    assert all(one.what in shown and one.mend in shown for one in found)
    assert shown.endswith("2 warnings, 1 note")
    assert '"warnings": 2' in document(found)


def test_nothing_wrong_is_said_to_be_so() -> None:
    assert text(()) == "nothing is wrong"
    assert isinstance(Finding(Level.NOTE, "a", "b", "c", "d").document(), dict)
