"""What stands in the way at an interface: its driver, modes, offloads, queues, and the kernel behind it. Pure."""

from collections.abc import Iterator

from reconciler.symptoms import Device, Facts, Finding, in_sysctl, note, warning

STRICT = 1  # rp_filter
VETH = "veth"


def device_findings(device: Device, facts: Facts) -> Iterator[Finding]:
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
            f"sysctl -w net.ipv4.conf.{in_sysctl(name)}.rp_filter=2",
        )
    key = {4: "net.ipv4.conf", 6: "net.ipv6.conf"}
    for family in sorted(families - device.forwards):
        yield warning(
            f"forwarding{family}",
            name,
            f"does not forward IPv{family}: the kernel then tells the program no next hop to"
            " clients, and their answers are dropped",
            f"sysctl -w {key[family]}.{in_sysctl(name)}.forwarding=1 {key[family]}.all.forwarding=1",
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


def _translated(facts: Facts) -> frozenset[int]:
    """Families in which replies come back through us; when nobody knows, IPv4."""
    if facts.config is None:
        return frozenset((4, *facts.node.nat_source))
    services = facts.config.services.values()
    return frozenset(a.version for s in services if s.forward.translates for a in s.addresses)
