"""Next hops: out of which interface, and to which MAC. Reads netlink and asks for neighbours.

What is remembered is what the kernel said last, and only for as long as nothing
was heard to change. A neighbour that has vanished is simply not in the answer, and
what that means is for others to say. Neighbours that are asked for stay `managed`:
the kernel goes on probing them until they are no longer wanted.
"""

import errno
import struct
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from pyroute2 import IPRoute

from bpf import abi
from reconciler import netlink
from reconciler.model import Address
from reconciler.netlink import Changed, Listener, Netlink
from reconciler.pieces import NextHop

# Neighbour states in which the kernel itself would send to the address.
_KNOWN = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80  # reachable, stale, delay, probe, noarp, permanent
_FAILED = 0x20
_FIXED = 0x40 | 0x80  # noarp, permanent: asking would unfix them
_USE = 0x01  # NTF_USE: resolve it now, as if there were a packet for it
_MANAGED = 0x01  # NTF_EXT_MANAGED, from Linux 5.16 on; older kernels skip the attribute
_NEIGH, _ROUTE = struct.Struct("=B3xiHBB"), struct.Struct("=BBBBBBBBI")
_DST, _LLADDR, _FLAGS_EXT = 1, 2, 15  # NDA_*
_RTA_DST, _OIF, _GATEWAY, _METRICS, _VIA = 1, 4, 5, 8, 18
_METRIC_MTU = 2
_UNICAST = 1
_FAMILY = {4: 2, 6: 10}
_FAMILY_OF = {4: 2, 16: 10}  # by the length of an address
_NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL)
_CANNOT_ASK = (errno.ENETDOWN, errno.EINVAL, errno.ENODEV, errno.ENOBUFS)
POLL = 0.02
PACE = 1.0  # seconds between two questions for a neighbour that does not answer
STALE = 10.0  # seconds after which even a silent kernel is read anew
DOUBT = 5.0  # seconds between two doubts about the same backend
SHARE = 10  # the listener rests for so many times what reading took
NO_MAC = bytes(6)
DOWN = int(abi.HealthState.DOWN)  # plain: arithmetic of enums is slow, and there are many
_NOBODY = bytes(4)

V = TypeVar("V")
Place = tuple[int, bytes]  # interface, packed address: unlike an address, its hash is quick


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
    place: Place


class Neighbour(NamedTuple):
    mac: bytes
    fixed: bool
    managed: bool


class Changes(NamedTuple):
    """Counters. `look`: something about a next hop is new; `forget`: hops towards clients may be wrong."""

    look: int
    forget: int


class Neighbours:
    """Netlink sockets in the network namespace in which it was opened."""

    def __init__(self) -> None:
        self._links: Any = IPRoute()
        self._netlink = Netlink()
        self._listener: Listener | None = None
        self._routed: dict[Address, Via | None] = {}
        self._wanted: dict[Address, Via] = {}
        self._known: dict[Place, Neighbour] = {}
        self._managed: set[Place] = set()  # by us
        self._told: dict[Place, bytes] = {}  # the MACs that `hops` told, or would
        self._asked_at = self._checked_at = -STALE
        self._routed_at = time.monotonic()
        self._rota: list[Address] = []  # whose ways are to be looked at once more
        self._doubted: dict[Address, float] = {}
        self._asking = False
        self._look = self._forget = 0
        self._answer: dict[Address, NextHop] = {}  # callers must not change it
        self._answered: tuple[set[Address], object, int, bool] = (set(), None, 0, False)

    def close(self) -> None:
        if self._listener:
            self._listener.close()
        self._links.close()
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
        found = (_link(message) for message in self._links.get_links())
        return {link.index: link for link in found}

    # ---- next hops

    def hops(self, addresses: Iterable[Address], wait: float | None = 0) -> dict[Address, NextHop]:
        """The next hop of each address that has one, after asking for those that are missing.

        The answers are waited for no longer than `wait` seconds; None: nobody is asked.
        """
        self._refresh()
        wanted = set(addresses)
        self._asking = wait is not None
        if self._is_answered(wanted) and not (wait and self._missing()):
            return self._answer
        asked = self._answered[0] if self._stands() else set()
        gone, fresh = asked - wanted, self._ways(wanted - asked)
        self._wanted = _changed(self._wanted if asked else {}, gone, fresh)
        if self._asking:
            self._release()
            self._ask_for(via for via in self._wanted.values() if self._unkept(via))
            self._await(time.monotonic() + (wait or 0))
        self._told = self._heard_of()
        if asked and self._stands():
            self._answer = _changed(self._answer, gone, self._found(fresh))
        else:
            self._answer = self._found(self._wanted)
        self._answered = (wanted, self._known, self._look, self._asking)
        return self._answer

    def _is_answered(self, wanted: set[Address]) -> bool:
        return self._stands() and self._answered[0] == wanted

    def _stands(self) -> bool:
        """Whether the last answer is right as far as it goes: nothing was read since."""
        _, known, look, asking = self._answered
        return known is self._known and look == self._look and asking == self._asking

    def _found(self, ways: Mapping[Address, Via]) -> dict[Address, NextHop]:
        return {
            address: self._hop(address, via)
            for address, via in ways.items()
            if via.place in self._known
        }

    def _hop(self, address: Address, via: Via) -> NextHop:
        """The same object as in the last answer if it says the same."""
        hop, before = _hop(via, self._known[via.place]), self._answer.get(address)
        return before if before == hop else hop

    def vias(self, addresses: Iterable[Address]) -> dict[Address, Via]:
        """Whom to ask for, of those addresses that there is a route to."""
        self._refresh()
        return self._ways(set(addresses))

    def doubt(self, addresses: Iterable[Address]) -> None:
        """Forget who has them, so that the kernel asks everybody on the link at once.

        It would first believe for up to a minute what it knows. For backends that fail
        their checks: perhaps they have another MAC and told nobody.
        """
        now = time.monotonic()
        direct = {a for a in addresses if (via := self._wanted.get(a)) and via.address == a}
        self._doubted = {a: at for a, at in self._doubted.items() if a in direct}
        for address in direct if self._asking else ():
            via = self._wanted[address]
            known = self._known.get(via.place)
            if known and not known.fixed and now >= self._doubted.get(address, -DOUBT) + DOUBT:
                self._doubted[address] = now
                self._tell(via.place, _FAILED, 0, managed=False)
                self._ask(via.place, managed=True)

    def _await(self, deadline: float) -> None:
        while time.monotonic() < deadline and self._missing():
            time.sleep(POLL)
            self._known = self._neighbours()

    def _missing(self) -> list[Via]:
        return [via for via in self._wanted.values() if via.place not in self._known]

    def _unkept(self, via: Via) -> bool:
        """Whether the kernel would let it go stale, or does not know it."""
        known = self._known.get(via.place)
        return known is None or not (known.fixed or known.managed)

    # ---- what changes

    def follow(self, wake: Callable[[], None]) -> None:
        """From now on: wake the loop when something changes, which then asks for `changes`."""
        self._listener = Listener(wake)

    def changes(self) -> Changes:
        """Also asks again for neighbours that have not answered."""
        self._refresh()
        now = time.monotonic()
        if self._asking and now >= self._asked_at + PACE:
            self._ask_for(self._missing())
        return Changes(self._look, self._forget)

    def _refresh(self) -> None:
        """Read what was heard to have changed; all of it when nobody listens, or after a while."""
        heard = self._listener.heard() if self._listener else Changed.ROUTES | Changed.NEIGHBOURS
        began = time.monotonic()
        if began >= self._checked_at + STALE:
            self._checked_at = began
            heard |= Changed.NEIGHBOURS
        if heard & Changed.ROUTES or self._has_missed_some(began):
            self._routed.clear()
            self._look += 1
            self._forget += 1
        if heard & Changed.NEIGHBOURS:
            self._meet(self._neighbours())
            if self._listener:
                self._listener.rest = SHARE * (time.monotonic() - began)

    def _has_missed_some(self, now: float) -> bool:
        """Looks at the ways that were taken once more, each after a while: events may have been lost."""
        share = int(len(self._routed) * (now - self._routed_at) / STALE)
        if not share or now < self._routed_at + PACE:
            return False
        self._routed_at = now
        self._rota = self._rota or list(self._routed)
        some, self._rota = self._rota[:share], self._rota[share:]
        links = self.links()
        known = (address for address in some if address in self._routed)
        return any(self._route(address, links) != self._routed[address] for address in known)

    def _meet(self, known: dict[Place, Neighbour]) -> None:
        """Of backends' neighbours silence says nothing: only another MAC is news."""
        if known == self._known:
            return
        before, self._known = self._known, known
        told = self._told
        self._told = self._heard_of()
        if self._told != told:
            self._look += 1
        moved = any(self._told.get(place, mac) != mac for place, mac in told.items())
        others = (place for place in before if place not in self._told)
        if moved or any(_mac(known, place) != before[place].mac for place in others):
            self._forget += 1

    def _heard_of(self) -> dict[Place, bytes]:
        """The last MAC of each that is wanted, if it ever had one."""
        places = {via.place for via in self._wanted.values()}
        found = {place: _mac(self._known, place) or self._told.get(place) for place in places}
        return {place: mac for place, mac in found.items() if mac}

    # ---- what the kernel says

    def _ways(self, addresses: Iterable[Address]) -> dict[Address, Via]:
        unknown = [address for address in addresses if address not in self._routed]
        links = self.links() if unknown else {}
        for address in unknown:
            self._routed[address] = self._route(address, links)
        return {address: via for address in addresses if (via := self._routed[address])}

    def _route(self, address: Address, links: Mapping[int, Link]) -> Via | None:
        body = _ROUTE.pack(_FAMILY[address.version], address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
        body += netlink.attribute(_RTA_DST, address.packed)
        try:
            found = self._netlink.ask(netlink.GET_ROUTE, 0, body)
        except OSError as error:
            if error.errno in _NO_WAY:
                return None
            raise
        return _via(found[0], address, links) if found else None

    def _neighbours(self) -> dict[Place, Neighbour]:
        known = {}
        for family in _FAMILY.values():
            body = _NEIGH.pack(family, 0, 0, 0, 0)
            for answer in self._netlink.ask(netlink.GET_NEIGH, netlink.DUMP, body):
                _, ifindex, state, _, _ = _NEIGH.unpack_from(answer)
                if not state & _KNOWN:
                    continue
                found = netlink.attributes(answer, _NEIGH.size)
                mac, managed = found.get(_LLADDR, b""), found.get(_FLAGS_EXT, bytes(4))
                packed = found.get(_DST, _NOBODY)
                if len(mac) == len(NO_MAC) and not _is_multicast(packed):
                    known[ifindex, packed] = Neighbour(
                        mac, bool(state & _FIXED), bool(_number(managed) & _MANAGED)
                    )
        return known

    # ---- what we ask of it

    def _ask_for(self, vias: Iterable[Via]) -> None:
        """Let the kernel resolve them, and keep them resolved."""
        self._asked_at = time.monotonic()
        for place in {via.place for via in vias}:
            self._ask(place, managed=True)
            self._managed.add(place)

    def _release(self) -> None:
        """Neighbours of backends that are no longer there need no probes."""
        for place in self._managed - {via.place for via in self._wanted.values()}:
            known = self._known.get(place)
            if known and not known.fixed:
                self._ask(place, managed=False)
            self._managed.discard(place)

    def _ask(self, place: Place, *, managed: bool) -> None:
        self._tell(place, 0, _USE, managed=managed)

    def _tell(self, place: Place, state: int, use: int, *, managed: bool) -> None:
        ifindex, packed = place
        body = _NEIGH.pack(_FAMILY_OF[len(packed)], ifindex, state, use, 0)
        body += netlink.attribute(_DST, packed)
        body += netlink.attribute(_FLAGS_EXT, struct.pack("=I", _MANAGED if managed else 0))
        flags = netlink.ACK | netlink.CREATE | netlink.REPLACE
        try:
            self._netlink.ask(netlink.NEW_NEIGH, flags, body)
        except OSError as error:
            if error.errno not in _CANNOT_ASK:
                raise


def failing(backends: Mapping[int, abi.Backend], health: Mapping[int, abi.Health]) -> set[Address]:
    """Addresses of those that are down by their checks."""
    down = {entry.id for entry in health.values() if entry.state == DOWN}
    if not down:
        return set()
    return {
        ip_address(bytes(entry.addr.v6)[: 4 if entry.family == 4 else 16])  # noqa: PLR2004
        for entry in backends.values()
        if entry.id in down and entry.family
    }


def _link(message: Any) -> Link:  # noqa: ANN401 -- pyroute2 has no types
    info = message.get_attr("IFLA_LINKINFO")
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        mac=_octets(message.get_attr("IFLA_ADDRESS") or ""),
        mtu=message.get_attr("IFLA_MTU"),
        kind=(info.get_attr("IFLA_INFO_KIND") if info else "") or "",
    )


def _octets(mac: str) -> bytes:
    octets = bytes.fromhex(mac.replace(":", ""))
    return octets if len(octets) == len(NO_MAC) else NO_MAC


def _via(route: bytes, address: Address, links: Mapping[int, Link]) -> Via | None:
    """None for what is local, a blackhole, or out of an interface that is gone."""
    found = netlink.attributes(route, _ROUTE.size)
    link = links.get(_number(found.get(_OIF, b"")))
    if _ROUTE.unpack_from(route)[7] != _UNICAST or link is None:
        return None
    gateway = found.get(_GATEWAY) or found.get(_VIA, b"")[2:]
    mtu = _number(netlink.attributes(found.get(_METRICS, b""), 0).get(_METRIC_MTU, b""))
    whom = ip_address(gateway) if gateway else address
    return Via(link, whom, min(mtu or link.mtu, link.mtu), (link.index, whom.packed))


def _number(value: bytes) -> int:
    return int.from_bytes(value, sys.byteorder)


def _mac(known: Mapping[Place, Neighbour], place: Place) -> bytes | None:
    return known[place].mac if place in known else None


def _hop(via: Via, known: Neighbour) -> NextHop:
    return NextHop(via.link.index, known.mac, via.link.mac, min(via.mtu, 0xFFFF))


def _changed(
    known: dict[Address, V], gone: Iterable[Address], more: dict[Address, V]
) -> dict[Address, V]:
    """A copy: addresses are hashed in Python, and of a copy only a few have to be."""
    changed = {**known, **more}
    for address in gone:
        changed.pop(address, None)
    return changed


def _is_multicast(packed: bytes) -> bool:
    first = packed[0]
    return first == 0xFF if len(packed) == 16 else first >> 4 == 0xE  # noqa: PLR2004
