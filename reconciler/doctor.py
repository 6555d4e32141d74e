"""What on this host stands in the way of packets, from facts. Pure: reads nothing and mends nothing.

A warning loses packets, slows them down or will; a note is what cannot be seen from
here, or only matters in some networks. Each says which command mends it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from reconciler.model import Address, Config, Forward, Node, Service

OLDEST = (6, 1)
CGROUP_MEMORY = (5, 11)  # from here on maps are not counted by memlock
STRICT = 1  # rp_filter
VETH = "veth"
ETHERNET = 1500  # what clients send when nothing says otherwise
NO_XMIT = ("bridge", "vlan", "macvlan", "ipvlan", "vrf", "vxlan", "dummy", "ifb")
OVERHEAD = {Forward.IPIP: {4: 20, 6: 40}, Forward.GUE: {4: 28, 6: 48}}


class Level(StrEnum):
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Device:
    """An interface that node.yaml names, as the host has it."""

    name: str
    wanted: str = "auto"
    present: bool = True
    up: bool = True
    kind: str = ""  # veth, bridge, ...; empty: hardware
    driver: str = ""
    mtu: int = 1500
    mode: str = ""  # in which our program runs; empty: not attached
    foreign: str = ""  # somebody else's program
    features: Mapping[str, bool] = field(default_factory=dict)  # ethtool -k, by kernel name
    queues: int = 1
    most_queues: int = 1
    native: bool | None = None  # whether the driver has XDP; None: the kernel does not say
    redirect: bool | None = None  # whether frames redirected to it are sent
    rp_filter: int = 0
    forwards: frozenset[int] = frozenset((4, 6))  # families
    vlans: tuple[str, ...] = ()  # VLAN devices on top of it
    filtered: bool | None = None  # whether checks with `via: service` are turned there


@dataclass(frozen=True, slots=True)
class Reach:
    """How packets get to a backend."""

    backend: str  # pool/name
    address: Address
    out: str = ""  # interface; empty: there is no route
    kind: str = ""
    mtu: int = 0
    via: Address | None = None
    resolved: bool = True
    redirect: bool | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    node: Node
    config: Config | None = None
    release: tuple[int, int] = (6, 18)
    kernel: str = ""
    lacking: tuple[str, ...] = ()  # capabilities
    bpffs: bool = True
    loaded: bool | None = None  # the instance; None: not permitted to know
    jit: int | None = 1  # None: the kernel does not say here
    memlock: int | None = None  # bytes; None: unlimited
    cpus: int = 1
    local_ports: tuple[int, int] = (32768, 60999)
    reserved: tuple[tuple[int, int], ...] = ()
    keepalive: int = 7200  # seconds
    most_neighbours: int | None = None
    clsact: bool | None = None  # whether the kernel has it, and cls_bpf; None: it does not say
    devices: tuple[Device, ...] = ()
    reaches: tuple[Reach, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    level: Level
    name: str  # for scripts: never changes
    about: str
    what: str
    mend: str  # a command, or what to write where

    def document(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def findings(facts: Facts) -> tuple[Finding, ...]:
    """Warnings first; within a level, the host before its interfaces before its backends."""
    found = [*_host(facts), *_ports(facts), *_neighbour_limit(facts), *_sideway(facts)]
    for device in facts.devices:
        found += _device(device, facts)
    found += [*_backends(facts), *_timeouts(facts)]
    return in_order(found)


def in_order(found: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(found, key=lambda finding: finding.level is not Level.WARNING))


def warning(name: str, about: str, what: str, mend: str) -> Finding:
    return Finding(Level.WARNING, name, about, what, mend)


def note(name: str, about: str, what: str, mend: str) -> Finding:
    return Finding(Level.NOTE, name, about, what, mend)


# ---- the host


def _host(facts: Facts) -> Iterator[Finding]:
    if facts.release < OLDEST:
        yield warning(
            "kernel",
            "kernel",
            f"{facts.kernel} is older than {_dotted(OLDEST)}, the oldest that this was tested with",
            f"install and boot a kernel of {_dotted(OLDEST)} or later",
        )
    if facts.lacking:
        yield warning(
            "capabilities",
            "process",
            f"lacks {', '.join(facts.lacking)}: neither program nor maps can be loaded so",
            "run it as root, or in its unit: AmbientCapabilities=CAP_BPF CAP_NET_ADMIN CAP_PERFMON",
        )
    if not facts.bpffs:
        yield warning(
            "bpffs",
            "/sys/fs/bpf",
            "is no BPF file system: nothing can stay pinned there",
            "mount -t bpf bpf /sys/fs/bpf",
        )
    if facts.jit == 0:
        yield warning(
            "jit",
            "kernel",
            "interprets BPF programs: every packet costs several times as much",
            "sysctl -w net.core.bpf_jit_enable=1",
        )
    if facts.release < CGROUP_MEMORY and facts.memlock is not None:
        yield warning(
            "memlock",
            "process",
            f"may lock {facts.memlock} bytes, and this kernel counts maps by that",
            "ulimit -l unlimited, or in its unit: LimitMEMLOCK=infinity",
        )


def _ports(facts: Facts) -> Iterator[Finding]:
    """Where fullnat takes source ports, the host must not: the kernel would get our replies, or we its."""
    low, high = facts.node.nat_ports
    first, last = max(low, facts.local_ports[0]), min(high, facts.local_ports[1])
    if not facts.node.nat_source or first > last:
        return
    if any(one <= first and last <= other for one, other in facts.reserved):
        return
    kept = [_range(*one) for one in facts.reserved]
    yield warning(
        "ports",
        "fullnat",
        f"ports {first}-{last} of nat-ports {low}-{high} are also given to this host's own"
        " connections (net.ipv4.ip_local_port_range): their answers are dropped",
        f"sysctl -w net.ipv4.ip_local_reserved_ports={','.join([*kept, _range(low, high)])}",
    )


def _neighbour_limit(facts: Facts) -> Iterator[Finding]:
    wanted = len({reach.via or reach.address for reach in facts.reaches})
    most = facts.most_neighbours
    if most is not None and wanted * 2 > most:
        yield warning(
            "neighbours",
            "kernel",
            f"keeps {most} neighbours at most (gc_thresh3), and the backends alone are {wanted}",
            f"sysctl -w net.ipv4.neigh.default.gc_thresh3={wanted * 4}"
            f" net.ipv6.neigh.default.gc_thresh3={wanted * 4}",
        )


def _sideway(facts: Facts) -> Iterator[Finding]:
    """What checks with `via: service` need."""
    pools = facts.config.pools.values() if facts.config else ()
    if not any(pool.check and pool.check.via_service for pool in pools):
        return
    if facts.clsact is False:
        yield warning(
            "clsact",
            "kernel",
            "was built without clsact or cls_bpf: checks with `via: service` tell nothing",
            "a kernel with CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF, or checks without `via`",
        )
    for device in facts.devices:
        if facts.loaded and device.present and device.filtered is False:
            yield warning(
                "unfiltered",
                device.name,
                "has no filter for checks with `via: service`: probes that leave there go to the"
                " backend's own address",
                f"reconciler --once   (tc filter show dev {device.name} egress)",
            )


# ---- interfaces


def _device(device: Device, facts: Facts) -> Iterator[Finding]:
    if not device.present:
        yield warning(
            "missing",
            device.name,
            "is not in this network namespace: nothing is attached there",
            "ip link   (lists those that are; then mend `interfaces` in node.yaml)",
        )
        return
    if not device.up:
        mend = f"ip link set dev {device.name} up"
        yield warning("down", device.name, "is down: no packet comes in or goes out", mend)
    yield from _attachment(device, facts)
    yield from _offloads(device)
    yield from _queues(device, facts)
    yield from _stack(device, facts)
    yield from _veth(device)


def _attachment(device: Device, facts: Facts) -> Iterator[Finding]:
    name = device.name
    if device.foreign:
        yield warning(
            "foreign",
            name,
            f"{device.foreign} is attached there: ours cannot be",
            f"ip link set dev {name} xdp off   (or stop the service that owns it)",
        )
    elif facts.loaded and not device.mode:
        yield warning(
            "detached",
            name,
            "is named in node.yaml, and our program is not attached there",
            "reconciler --once   (or start the service that runs the reconciler)",
        )
    if device.mode == "generic" and device.wanted != "generic":
        driver = "" if device.native else f": the driver {device.driver} has no XDP"
        yield warning(
            "generic",
            name,
            f"runs in generic mode, which costs several times as much{driver}",
            f"reconciler teardown and a start, once the driver can (ethtool -i {name});"
            f" to accept it, `{name}: {{mode: generic}}` in node.yaml",
        )
    if device.wanted == "native" and device.native is False:
        yield warning(
            "driver",
            name,
            f"the driver {device.driver} has no XDP, and node.yaml wants native mode",
            f"`{name}: {{mode: auto}}` in node.yaml",
        )


def _offloads(device: Device) -> Iterator[Finding]:
    name, on = device.name, device.features
    if on.get("rx-lro"):
        yield warning(
            "lro",
            name,
            "LRO merges packets before the program sees them, beyond the MTU; most drivers then"
            " refuse native mode",
            f"ethtool -K {name} lro off",
        )
    if on.get("rx-gro-hw"):
        yield warning(
            "gro-hw",
            name,
            "the hardware merges packets (rx-gro-hw) before the program sees them",
            f"ethtool -K {name} rx-gro-hw off",
        )
    if on.get("rx-gro") and _runs_generic(device):
        yield warning(
            "gro",
            name,
            "GRO merges packets before a program in generic mode sees them: they fit no next hop",
            f"ethtool -K {name} gro off",
        )
    if on.get("rx-vlan-hw-parse") and not _runs_generic(device):
        tagged = f"packets of {', '.join(device.vlans)}" if device.vlans else "tagged packets"
        make = warning if device.vlans else note
        yield make(
            "rx-vlan",
            name,
            f"the driver takes VLAN tags off: to the program {tagged} look untagged",
            f"ethtool -K {name} rxvlan off",
        )


def _runs_generic(device: Device) -> bool:
    return "generic" in (device.mode, device.wanted)


def _queues(device: Device, facts: Facts) -> Iterator[Finding]:
    could = min(facts.cpus, device.most_queues)
    if device.queues >= could:
        return
    veth = device.kind == VETH
    make = note if veth else warning
    how = f"rx {could} tx {could}" if veth else f"combined {could}"
    yield make(
        "queues",
        device.name,
        f"has {device.queues} receive queue{'s' * (device.queues > 1)} for {facts.cpus} CPUs:"
        " the others get no packets to forward",
        f"ethtool -L {device.name} {how}",
    )


def _stack(device: Device, facts: Facts) -> Iterator[Finding]:
    """What the kernel does with packets, and what the program asks it."""
    name, families = device.name, _translated(facts)
    if device.rp_filter == STRICT and families:
        yield warning(
            "rp-filter",
            name,
            "rp_filter is strict: replies that are passed to the kernel, while it looks for a"
            " client's neighbour, are dropped for their source",
            f"sysctl -w net.ipv4.conf.{name}.rp_filter=2",
        )
    key = {4: "net.ipv4.conf", 6: "net.ipv6.conf"}
    for family in sorted(families - device.forwards):
        yield warning(
            f"forwarding{family}",
            name,
            f"does not forward IPv{family}: the kernel then tells the program no next hop to"
            " clients, and their answers are dropped",
            f"sysctl -w {key[family]}.{name}.forwarding=1 {key[family]}.all.forwarding=1",
        )


def _veth(device: Device) -> Iterator[Finding]:
    if device.kind != VETH or _runs_generic(device):
        return
    if device.redirect is False:
        yield warning(
            "veth-napi",
            device.name,
            "its other end does not take redirected frames: they are lost silently",
            "at the other end: ethtool -K DEVICE gro on",
        )
    yield note(
        "veth-checksums",
        device.name,
        "a veth: packets whose sender leaves checksums to the hardware arrive broken, which"
        " cannot be seen from here",
        "where the packets come from: ethtool -K DEVICE tx off",
    )


# ---- backends


def _backends(facts: Facts) -> Iterator[Finding]:
    named = {device.name for device in facts.devices}
    services = _by_pool(facts.config)
    for reach in facts.reaches:
        own = services.get(reach.backend.partition("/")[0], [])
        if not reach.out:
            yield warning(
                "route",
                reach.backend,
                f"there is no route to {reach.address}",
                f"ip route add {reach.address} via GATEWAY   (ip route get {reach.address})",
            )
            continue
        yield from _neighbour(reach)
        yield from _way_out(reach, named, own)
        yield from _room(reach, facts, own)


def _neighbour(reach: Reach) -> Iterator[Finding]:
    if reach.resolved:
        return
    whom = reach.via or reach.address
    yield warning(
        "neighbour",
        reach.backend,
        f"{whom} does not answer on {reach.out}: packets for it are dropped as NO_NEXT_HOP",
        f"ping -c1 -I {reach.out} {whom}   (ip neigh show {whom})",
    )


def _way_out(reach: Reach, named: Iterable[str], services: Iterable[Service]) -> Iterator[Finding]:
    back = any(service.forward.translates for service in services)
    if back and reach.out not in named:
        yield warning(
            "replies",
            reach.backend,
            f"is behind {reach.out}, where no program is attached: its replies are not translated",
            f"`{reach.out}: {{}}` under interfaces in node.yaml",
        )
    if reach.redirect is False and reach.kind in NO_XMIT:
        yield warning(
            "redirect",
            reach.backend,
            f"is behind {reach.out}, a {reach.kind}: XDP cannot send there in native mode",
            f"put its address on the device below {reach.out}, or use mode: generic",
        )


def _room(reach: Reach, facts: Facts, services: Iterable[Service]) -> Iterator[Finding]:
    family = reach.address.version
    overhead = max((OVERHEAD.get(s.forward, {}).get(family, 0) for s in services), default=0)
    others = (d.mtu for d in facts.devices if d.present and d.name != reach.out)
    largest = max(others, default=ETHERNET)
    if overhead and reach.mtu < largest + overhead:
        yield warning(
            "mtu",
            reach.backend,
            f"the way to it takes {reach.mtu} bytes; clients' packets of {largest} and"
            f" {overhead} of encapsulation do not fit, and each sender must first be told so",
            f"ip link set dev {reach.out} mtu {largest + overhead}   (and all devices up to the"
            f" backend; or clamp the MSS at the backend to {reach.mtu - overhead - 40})",
        )


def _timeouts(facts: Facts) -> Iterator[Finding]:
    for service in facts.config.services.values() if facts.config else ():
        if service.flows and service.forward.translates and service.tcp_idle < facts.keepalive:
            yield note(
                "idle",
                service.name,
                f"forgets TCP connections that are silent for {service.tcp_idle:g} s; hosts set"
                f" like this one send keep-alives after {facts.keepalive} s only",
                "on clients or backends: sysctl -w"
                f" net.ipv4.tcp_keepalive_time={int(service.tcp_idle / 2)}; or raise `idle`",
            )


# ---- what is used


def _translated(facts: Facts) -> frozenset[int]:
    """Families in which replies come back through us; when nobody knows, IPv4."""
    if facts.config is None:
        return frozenset((4, *facts.node.nat_source))
    services = facts.config.services.values()
    return frozenset(a.version for s in services if s.forward.translates for a in s.addresses)


def _by_pool(config: Config | None) -> dict[str, list[Service]]:
    found: dict[str, list[Service]] = {}
    for service in config.services.values() if config else ():
        for pool in service.pools:
            found.setdefault(pool, []).append(service)
    return found


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}-{high}"


def _dotted(release: tuple[int, int]) -> str:
    return ".".join(map(str, release))
