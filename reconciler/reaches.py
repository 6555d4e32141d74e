"""What stands in the way to backends: routes, neighbours, the size of packets, and how long they are silent. Pure."""

from collections.abc import Iterable, Iterator

from reconciler.model import Config, Forward, Service
from reconciler.symptoms import Facts, Finding, Reach, note, warning

ETHERNET = 1500  # what clients send when nothing says otherwise
NO_XMIT = ("bridge", "vlan", "macvlan", "ipvlan", "vrf", "vxlan", "dummy", "ifb")
OVERHEAD = {Forward.IPIP: {4: 20, 6: 40}, Forward.GUE: {4: 28, 6: 48}}


def backend_findings(facts: Facts) -> Iterator[Finding]:
    yield from _reaches(facts)
    yield from _timeouts(facts)


def _reaches(facts: Facts) -> Iterator[Finding]:
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


def _by_pool(config: Config | None) -> dict[str, list[Service]]:
    found: dict[str, list[Service]] = {}
    for service in config.services.values() if config else ():
        for pool in service.pools:
            found.setdefault(pool, []).append(service)
    return found
