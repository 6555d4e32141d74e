"""The configuration that is wanted, as a value, and every change that may be made to it. Pure.

Never lets a pool go without a few backends that serve: what happens then is the guardrails' and panic's
business, which have tests of their own.
"""

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from enum import StrEnum

from tests.support.lab import SERVICE

HOSTS = ("b1", "b2", "b3", "b4", "b5")
SERVING = 2  # hosts that stay usable in each pool
WEIGHTS = (50, 100, 200)
EXTRAS = {"extra1": 9001, "extra2": 9002}
BACKEND_PORT = 8080
CHECK = "{type: http, path: /, port: 8080, every: 500ms, timeout: 500ms, rise: 1, fall: 6}"


@dataclass(frozen=True, slots=True)
class Offer:
    """A service as clients know it."""

    name: str
    pool: str
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Kept:
    """What becomes of a pool's flows when a backend drains: after so many seconds, or never."""

    grace: float
    flush: bool

    def __str__(self) -> str:
        return f"{{grace: {self.grace:g}s, then: {'flush' if self.flush else 'keep'}}}"


POOLS = {"web": Kept(4, True), "own": Kept(4, False), "six": Kept(8, True)}
OFFERS = {
    one.name: one
    for one in (
        Offer("nat", "web", SERVICE[4], 8001),
        Offer("fullnat", "web", SERVICE[4], 8002),
        Offer("dsr", "own", SERVICE[4], 80),
        Offer("ipip", "own", SERVICE[4], 81),
        Offer("gue", "own", SERVICE[4], 82),
        Offer("six", "six", SERVICE[6], 8001),
        *(Offer(name, "web", SERVICE[4], port) for name, port in EXTRAS.items()),
    )
}
HOW = {
    "nat": "forward: nat",
    "fullnat": "forward: fullnat, balance: {method: round-robin}",
    "dsr": "forward: dsr, balance: {method: maglev}",
    "ipip": "forward: ipip",
    "gue": "forward: gue",
    "six": "forward: nat, balance: {method: least-connections}",
    **dict.fromkeys(EXTRAS, "forward: nat, balance: {method: random}"),
}
HASHED = frozenset(
    {"dsr", "ipip", "gue"}
)  # which know nothing of a connection before its handshake is over

OPENING = frozenset(OFFERS) - HASHED  # which remember handshakes


@dataclass(frozen=True, slots=True)
class Member:
    weight: int = 100
    state: str = "up"

    @property
    def serves(self) -> bool:
        return self.state == "up" and self.weight > 0


@dataclass(frozen=True, slots=True)
class Wish:
    pools: Mapping[str, Mapping[str, Member]] = field(
        default_factory=lambda: {name: dict.fromkeys(HOSTS, Member()) for name in POOLS}
    )
    extras: frozenset[str] = frozenset()

    def having(self, pool: str, host: str, member: Member | None) -> "Wish":
        """With this member; without any if it is None."""
        members = {name: one for name, one in self.pools[pool].items() if name != host}
        if member is not None:
            members[host] = member
        return replace(self, pools={**self.pools, pool: dict(sorted(members.items()))})

    def serving(self, pool: str, without: AbstractSet[str]) -> set[str]:
        return {name for name, one in self.pools[pool].items() if one.serves} - without

    def offers(self) -> list[Offer]:
        return [one for one in OFFERS.values() if one.name not in EXTRAS or one.name in self.extras]


class Does(StrEnum):
    WEIGH = "weighs"
    DRAIN = "drains"
    DOWN = "is down"
    REMOVE = "is removed"
    RETURN = "is back"
    ADD = "is added"
    OPEN = "service opens"
    CLOSE = "service closes"


AWAY = (Does.DRAIN, Does.DOWN, Does.REMOVE)


@dataclass(frozen=True, slots=True)
class Edit:
    does: Does
    wish: Wish
    pool: str
    host: str = ""
    service: str = ""

    def __str__(self) -> str:
        return f"{self.service or f'{self.pool}/{self.host}'} {self.does}"


def edits(wish: Wish, sick: AbstractSet[str]) -> list[Edit]:
    """Every change that may be made now; the sick are hosts that cannot be counted on."""
    found = [edit for pool in wish.pools for edit in _in_pool(wish, pool)]
    safe = [edit for edit in found if len(edit.wish.serving(edit.pool, sick)) >= SERVING]
    return [*safe, *_of_services(wish)]


def _in_pool(wish: Wish, pool: str) -> Iterator[Edit]:
    for host in HOSTS:
        member = wish.pools[pool].get(host)
        for does, after in _fates(member):
            yield Edit(does, wish.having(pool, host, after), pool, host)


def _fates(member: Member | None) -> Iterator[tuple[Does, Member | None]]:
    if member is None:
        yield Does.ADD, Member()
        return
    yield Does.REMOVE, None
    if member.state != "up":
        yield Does.RETURN, replace(member, state="up")
        return
    yield Does.DRAIN, replace(member, state="drain")
    yield Does.DOWN, replace(member, state="down")
    for weight in {0, *WEIGHTS} - {member.weight}:
        yield Does.WEIGH, replace(member, weight=weight)


def _of_services(wish: Wish) -> Iterator[Edit]:
    for name in EXTRAS:
        does = Does.CLOSE if name in wish.extras else Does.OPEN
        yield Edit(does, replace(wish, extras=wish.extras ^ {name}), "web", service=name)


def text(wish: Wish, number: int) -> str:
    """lb.yaml; the number tells two that say the same apart."""
    pools = "".join(_pool(name, members) for name, members in wish.pools.items())
    services = "".join(map(_service, wish.offers()))
    return (
        f"# change {number}\napiVersion: evenkeel/v1\nchecks:\n  alive: {CHECK}\n"
        f"pools:\n{pools}services:\n{services}...\n"
    )


def _pool(name: str, members: Mapping[str, Member]) -> str:
    lines = "".join(_member(name, host, one) for host, one in members.items())
    return f"  {name}:\n    check: alive\n    drain: {POOLS[name]}\n    backends:\n{lines}"


def _member(pool: str, host: str, one: Member) -> str:
    port = "" if pool == "own" else f", port: {BACKEND_PORT}"
    why = "" if one.state == "up" else f", state: {one.state}, reason: soak"
    return f'      {host}: {{address: "{address(pool, host)}"{port}, weight: {one.weight}{why}}}\n'


def address(pool: str, host: str) -> str:
    number = 100 + int(host[1:])
    return f"fd01:2::{number}" if pool == "six" else f"10.1.2.{number}"


def client(offer: Offer) -> str:
    """Where it is asked from."""
    number = 20 + list(OFFERS).index(offer.name)
    return f"fd01:1::{number}" if ":" in offer.address else f"10.1.1.{number}"


def _service(offer: Offer) -> str:
    return (
        f'  {offer.name}: {{addresses: ["{offer.address}"],'
        f" ports: [{offer.port}/tcp, {offer.port}/udp], pools: [{offer.pool}], {HOW[offer.name]}}}\n"
    )
