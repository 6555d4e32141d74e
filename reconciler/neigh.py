"""Next hops: out of which interface, and to which MAC. Reads netlink and asks for neighbours.

Nothing is configured here and nothing is remembered: a neighbour that has
vanished is simply not in the answer, and what that means is for others to say.
"""

import errno
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from types import TracebackType
from typing import Any, Self

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from reconciler.compile import NextHop
from reconciler.model import Address

# Neighbour states in which the kernel itself would send to the address.
_KNOWN = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80  # reachable, stale, delay, probe, noarp, permanent
_USE = 0x01  # NTF_USE: resolve it now
_FAMILY = {4: 2, 6: 10}
POLL = 0.02
NO_MAC = bytes(6)


@dataclass(frozen=True, slots=True)
class Link:
    index: int
    name: str
    mac: bytes
    mtu: int
    kind: str


@dataclass(frozen=True, slots=True)
class Via:
    """Whom to ask for: the address itself, or the gateway towards it."""

    link: Link
    address: Address
    mtu: int


class Neighbours:
    """A netlink socket in the network namespace in which it was opened."""

    def __init__(self) -> None:
        self._netlink: Any = IPRoute()

    def close(self) -> None:
        self._netlink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def links(self) -> dict[int, Link]:
        found = (_link(message) for message in self._netlink.get_links())
        return {link.index: link for link in found}

    def hops(self, addresses: Iterable[Address], wait: float | None = 0) -> dict[Address, NextHop]:
        """The next hop of each address that has one, after asking for those that are missing.

        The answers are waited for no longer than `wait` seconds; None: nobody is asked.
        """
        links = self.links()
        routes = {address: self._route(address, links) for address in set(addresses)}
        vias = {address: via for address, via in routes.items() if via}
        deadline = time.monotonic() + (wait or 0)
        asked: set[Address] = set()
        while True:
            known = self._known()
            missing = {via.address: via for via in vias.values() if not _mac(via, known)}
            for address in missing.keys() - asked if wait is not None else ():
                self._ask(missing[address])
            asked |= missing.keys()
            if not missing or time.monotonic() >= deadline:
                break
            time.sleep(POLL)
        return {address: _hop(via, known) for address, via in vias.items() if _mac(via, known)}

    def fingerprint(self) -> int:
        """Changes when a route or a neighbour does: next hops towards clients are then stale."""
        routes = frozenset(repr(sorted(m["attrs"], key=repr)) for m in self._netlink.get_routes())
        links = frozenset(self.links().values())
        return hash((routes, links, frozenset(self._known().items())))

    def _route(self, address: Address, links: Mapping[int, Link]) -> Via | None:
        try:
            routes = self._netlink.route("get", dst=str(address))
            found = next(iter(routes), None)
        except NetlinkError as error:
            if error.code in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL):
                return None
            raise
        if found is None or found.get("type") != 1:  # unicast; not local, not a blackhole
            return None
        link = links.get(found.get_attr("RTA_OIF"))
        gateway = found.get_attr("RTA_GATEWAY") or _gateway(found.get_attr("RTA_VIA"))
        metrics = found.get_attr("RTA_METRICS")
        mtu = metrics.get_attr("RTAX_MTU") if metrics else None
        if link is None:
            return None
        return Via(link, ip_address(gateway) if gateway else address, mtu or link.mtu)

    def _known(self) -> dict[tuple[int, Address], bytes]:
        known = {}
        for version in _FAMILY.values():
            for message in self._netlink.get_neighbours(family=version):
                mac, address = message.get_attr("NDA_LLADDR"), message.get_attr("NDA_DST")
                if mac and address and message["state"] & _KNOWN:
                    known[message["ifindex"], ip_address(address)] = _octets(mac)
        return known

    def _ask(self, via: Via) -> None:
        """Let the kernel resolve the address, as if it had a packet for it."""
        try:
            self._netlink.neigh(
                "replace",
                dst=str(via.address),
                ifindex=via.link.index,
                family=_FAMILY[via.address.version],
                state=0,
                flags=_USE,
            )
        except NetlinkError as error:
            if error.code not in (errno.ENETDOWN, errno.EINVAL, errno.ENODEV):
                raise


def _link(message: Any) -> Link:  # noqa: ANN401 -- pyroute2 has no types
    info = message.get_attr("IFLA_LINKINFO")
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        mac=_octets(message.get_attr("IFLA_ADDRESS") or ""),
        mtu=message.get_attr("IFLA_MTU"),
        kind=(info.get_attr("IFLA_INFO_KIND") if info else "") or "",
    )


def _gateway(via: Any) -> str | None:  # noqa: ANN401 -- pyroute2 has no types
    return via["addr"] if via else None


def _octets(mac: str) -> bytes:
    octets = bytes.fromhex(mac.replace(":", ""))
    return octets if len(octets) == len(NO_MAC) else NO_MAC


def _mac(via: Via, known: Mapping[tuple[int, Address], bytes]) -> bytes | None:
    return known.get((via.link.index, via.address))


def _hop(via: Via, known: Mapping[tuple[int, Address], bytes]) -> NextHop:
    mac = known[via.link.index, via.address]
    return NextHop(via.link.index, mac, via.link.mac, min(via.mtu, 0xFFFF))
