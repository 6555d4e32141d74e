"""From the text of node.yaml to a Node, or to everything that is wrong with it."""

import ipaddress
import math
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from reconciler.checks import seconds
from reconciler.config import MAX_PORT, parse, unfit
from reconciler.model import Address, DriftPolicy, Node, PeerNode
from reconciler.problems import Problem, Rejected
from reconciler.yamlpos import Map

LISTEN = "127.0.0.1:9160"
MIN_NAT_PORT = 1024


def load(text: str, file: str = "node.yaml") -> Node:
    root = parse(text, file, "node")
    found: list[Problem] = []
    node = Node(
        interfaces={name: at.get("mode", "auto") for name, at in root["interfaces"].items()},
        table_size=_prime(root, found),
        sizes=dict(root.get("sizes", {})),
        tunnel_source=_sources(root, "tunnel-source", found),
        nat_source=_sources(root, "nat-source", found),
        nat_ports=_ports(root, found),
        gue_port=root.get("gue-port", 6080),
        icmp_rate=root.get("icmp-rate", 1000),
        latency_sample=_power_of_two(root, found),
        listen=_listen(root, found),
        control_group=root.get("control-group", ""),
        drift=DriftPolicy(root.get("drift", "restore")),
        vrrp_fifo=root.get("vrrp", {}).get("fifo", ""),
        peers=tuple(_peers(root.get("peers", {}), found)),
    )
    if found:
        raise Rejected(file, found, text)
    return node


def _listen(root: Map, found: list[Problem]) -> str:
    listen: str = root.get("listen", LISTEN)
    host, _, port = listen.rpartition(":")
    try:
        if listen != "off":
            ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        if listen == "off" or 0 < int(port) <= MAX_PORT:
            return listen
    except ValueError:
        pass
    message = f"listen: {listen!r} is no address and port"
    found.append(Problem(root.values_at["listen"], message, f"write {LISTEN}, [::1]:9160 or off"))
    return LISTEN


def _peers(peers: Map | Mapping[str, Any], found: list[Problem]) -> Iterator[PeerNode]:
    for name, at in peers.items():
        if not _is_status_page(at["status"]):
            message = f"peers[{name}].status: {at['status']!r} is not where a status page is"
            hint = "write http:// and the address and port of its `listen:`"
            found.append(Problem(at.values_at["status"], message, hint))
        yield PeerNode(name, at["status"], seconds(at.get("patience", "60s")))


def _is_status_page(url: str) -> bool:
    try:
        place = urlsplit(url)
        return place.scheme == "http" and bool(place.hostname) and place.port != 0
    except ValueError:
        return False


def is_prime(number: int) -> bool:
    return number > 1 and all(number % i for i in range(2, math.isqrt(number) + 1))


def _prime(root: Map, found: list[Problem]) -> int:
    size: int = root.get("table-size", 16381)
    if not is_prime(size):
        near = next(n for n in range(size, 2 * size) if is_prime(n))
        mark = root.values_at["table-size"]
        found.append(Problem(mark, f"table-size: {size} is no prime number", f"use {near}"))
    return size


def _power_of_two(root: Map, found: list[Problem]) -> int:
    sample: int = root.get("latency-sample", 1024)
    if sample & (sample - 1):
        message = f"latency-sample: {sample} is no power of two"
        hint = f"use {1 << sample.bit_length()}"
        found.append(Problem(root.values_at["latency-sample"], message, hint))
    return sample


def _ports(root: Map, found: list[Problem]) -> tuple[int, int]:
    low, _, high = root.get("nat-ports", "20000-29999").partition("-")
    if int(low) < MIN_NAT_PORT:
        message = f"nat-ports: {low}-{high} begins below {MIN_NAT_PORT}"
        found.append(Problem(root.values_at["nat-ports"], message, "services have those ports"))
    elif not int(low) <= int(high) <= MAX_PORT:
        message = f"nat-ports: {low}-{high} is no range of ports"
        found.append(Problem(root.values_at["nat-ports"], message, "lowest first, 65535 at most"))
    return int(low), int(high)


def _sources(root: Map, key: str, found: list[Problem]) -> dict[int, Address]:
    sources: dict[int, Address] = {}
    at = root.get(key, {})
    for name, kind in (("ipv4", ipaddress.IPv4Address), ("ipv6", ipaddress.IPv6Address)):
        try:
            if name in at:
                sources[int(name[-1])] = kind(at[name])
        except ValueError:
            message = f"{key}.{name}: {at[name]!r} is no {name.upper()} address"
            found.append(Problem(at.values_at[name], message))
    for version, source in sources.items():
        if wrong := unfit(source):
            name = f"ipv{version}"
            message = f"{key}.{name}: {source} is {wrong.name}"
            found.append(Problem(at.values_at[name], message, wrong.hint))
    return sources
