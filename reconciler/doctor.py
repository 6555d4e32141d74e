"""What on this host stands in the way of packets, from facts. Pure: reads nothing and mends nothing.

A warning loses packets, slows them down or will; a note is what cannot be seen from
here, or only matters in some networks. Each says which command mends it.
"""

from collections.abc import Iterable, Iterator

from reconciler.devices import device_findings
from reconciler.reaches import backend_findings
from reconciler.symptoms import Facts, Finding, Level, warning

OLDEST = (6, 1)
CGROUP_MEMORY = (5, 11)  # from here on maps are not counted by memlock
CGROUP_MEMORY = (5, 11)  # from here on maps are not counted by memlock


def findings(facts: Facts) -> tuple[Finding, ...]:
    """Warnings first; within a level, the host before its interfaces before its backends."""
    found = [*_host(facts), *_ports(facts), *_neighbour_limit(facts), *_sideway(facts)]
    for device in facts.devices:
        found += device_findings(device, facts)
    found += backend_findings(facts)
    return in_order(found)


def in_order(found: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(found, key=lambda finding: finding.level is not Level.WARNING))


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


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}-{high}"


def _dotted(release: tuple[int, int]) -> str:
    return ".".join(map(str, release))
