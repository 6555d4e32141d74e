"""Reads the `tests:` of lb.yaml: packets, and what is expected of them. Runs none.

What a packet meets is for expect.py to find out; here it only has to be one.
"""

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from reconciler.model import Address, Expectation, Packet, Pool, Proto, Service, Test
from reconciler.problems import Mark, did_you_mean
from reconciler.yamlpos import Map

Complain = Callable[[Mark, str, str], None]
MAX_PORT = 65535


def read(
    listed: Iterable[Map],
    services: Mapping[str, Service],
    pools: Mapping[str, Pool],
    complain: Complain,
) -> tuple[Test, ...]:
    backends = {f"{pool.name}/{name}" for pool in pools.values() for name in pool.backends}
    known: dict[str, Any] = {"service": services, "pool": pools, "backend": backends}
    tests = (_test(at, known, complain) for at in listed)
    return tuple(test for test in tests if test is not None)


def _test(at: Map, known: Mapping[str, Any], complain: Complain) -> Test | None:
    where, expect = f"tests[{at['name']}]", at["expect"]
    for what, names in known.items():
        if expect.get(what) and expect[what] not in names:
            message = f"{where}: there is no {what} {expect[what]!r}"
            complain(expect.values_at[what], message, did_you_mean(expect[what], names))
    packet = packet_of(at["packet"])
    if isinstance(packet, str):
        complain(at.values_at["packet"], f"{where}: {packet}", "as in " + EXAMPLE)
        return None
    mark = at.values_at["expect"]
    return Test(at["name"], packet, Expectation(**expect), (mark.line, mark.column))


EXAMPLE = '"198.51.100.7:41000 -> 192.0.2.10:443/tcp", IPv6 addresses in brackets'


def packet_of(text: str) -> Packet | str:
    """The packet, or what is wrong with it."""
    sender, _, rest = text.partition("->")
    target, _, proto = rest.strip().rpartition("/")
    source, destination = _place(sender.strip()), _place(target)
    for place, said in ((source, sender.strip()), (destination, target)):
        if place is None:
            return f"{said!r} is no address and port"
    assert source is not None  # noqa: S101 -- both were looked at
    assert destination is not None  # noqa: S101
    if source[0].version != destination[0].version:
        return f"{source[0]} and {destination[0]} are of two families"
    if proto.upper() not in Proto.__members__:
        return f"{proto!r} is no protocol: tcp or udp"
    return Packet(*source, *destination, Proto[proto.upper()])


def _place(text: str) -> tuple[Address, int] | None:
    host, _, port = text.rpartition(":")
    if (":" in host) != (host[:1] == "[" and host[-1:] == "]"):
        return None
    try:
        address, number = ipaddress.ip_address(host.strip("[]")), int(port)
    except ValueError:
        return None
    return (address, number) if 0 < number <= MAX_PORT else None
