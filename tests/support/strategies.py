"""Hypothesis strategies: configurations of the data plane, and conversations with it. Sends nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from bpf.abi import BackendFlag, Balance, Forward, HashFields, ServiceFlag, SettingFlag
from tests.support.scenes import NETS, Net
from tests.support.steps import (
    CLIENTS,
    LIES,
    STORES,
    TAMPERS,
    Again,
    Age,
    Back,
    Complaint,
    Evict,
    Mangled,
    Ping,
    Raw,
    Reload,
    Shape,
    Step,
    Sweep,
    Tamper,
    Towards,
)
from tests.support.world import Backend, Health, Pool, Service, Settings, World

POOLS = (("web", 7, 3), ("app", 13, 5), ("last", 2, 1))  # name, size, step of the walk
PORTS = (80, 53, None)
PROTOCOLS = ("tcp", "udp")
IDLE = {"tcp_idle": 20, "udp_idle": 10}
PAYLOADS = (0, 1, 10, 37, 100, 600, 1300, 1440, 1472, 1480)
FLAGS = ("S", "S", "A", "A", "A", "PA", "FA", "R", "RA", "SA", "", "F")
TAGS = ((), (), (), ((0x8100, 5),), ((0x88A8, 7), (0x8100, 5)))


def mostly(usual: Any, *others: Any) -> st.SearchStrategy[Any]:
    """`usual` three times out of four; shrinks towards it."""
    return st.sampled_from((usual,) * 3 * len(others) + others)


def rarely(usual: Any, *others: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from((usual,) * 15 * len(others) + others)


# ---- configurations ----


def backends(net: Net, number: int) -> st.SearchStrategy[Backend]:
    return st.builds(
        Backend,
        name=st.just(f"b{number}"),
        address=mostly(net.backends[number % 8], net.backends[0]),
        port=mostly(8080, 0, 80),
        weight=mostly(1, 0, 3),
        mtu=mostly(1500, 700, 1400),
        ifindex=rarely(None, 10, 10, 0),
        dmac=st.just(f"02:00:00:00:0b:{number:02x}"),
        flags=rarely(0, BackendFlag.ASSUME_UP, BackendFlag.FORCED_UP, *BackendFlag),
        health=rarely(Health.UP, Health.UNKNOWN, *Health),
        ramp=mostly(255, 100, 0),
        incarnation=mostly(1, 2),
    )


def pools(number: int, version: int) -> st.SearchStrategy[Pool]:
    """Of the world's family, mostly: others make their services MISCONFIGURED or tunnels mixed."""
    name, size, step = POOLS[number]

    def filled(version: int) -> st.SearchStrategy[Pool]:
        counts = st.sampled_from((2, 2, 1, 1, 3, 2, 1, 0))
        members = counts.flatmap(
            lambda n: st.tuples(*(backends(NETS[version], number * 3 + i) for i in range(n)))
        )
        return st.builds(
            Pool,
            name=st.just(name),
            backends=members,
            size=st.just(size),
            step=st.just(step),
            no_table=mostly(False, True) if number == 2 else st.just(False),
            no_spares=mostly(False, True) if number == 2 else st.just(False),
            known_as=mostly(None, 9) if number == 1 else st.none(),
        )

    return st.sampled_from((version,) * 7 + (10 - version,)).flatmap(filled)


def services(number: int, listed: tuple[Pool, ...], version: int) -> st.SearchStrategy[Service]:
    """A service with one to three of the pools, in any order."""

    def at(version: int) -> st.SearchStrategy[Service]:
        vip = (NETS[version].vip, NETS[version].vip2)[number]
        ends = st.tuples(st.just(vip), st.sampled_from(PORTS), st.sampled_from(PROTOCOLS))
        some = st.lists(ends, min_size=1, max_size=3, unique=True)
        return st.builds(
            Service,
            name=st.just(f"s{number}"),
            frontends=some.map(tuple),
            pools=st.permutations(listed).flatmap(
                lambda order: st.integers(1, len(order)).map(lambda n: tuple(order[:n]))
            ),
            forward=st.sampled_from(Forward),
            balance=st.sampled_from((Balance.HASH, Balance.HASH, *Balance)),
            hash=st.sampled_from(HashFields),
            flags=mostly(0, *ServiceFlag, 1 | 2, 1 | 8, 4 | 8),
            gate=mostly(0, 1, 3),
            short_pools=rarely((), (0,), (0, 1)),
            echo=st.booleans(),
            **{name: st.just(ticks) for name, ticks in IDLE.items()},
        )

    return st.sampled_from((version,) * 5 + (10 - version,)).flatmap(at)


def settings() -> st.SearchStrategy[Settings]:
    return st.builds(
        Settings,
        flags=mostly(0, SettingFlag.REDIRECT_ALWAYS),
        closing=st.just(3),
        rest=st.just(5),
        icmp_rate=mostly(0, 1000),
        port_low=st.just(40000),
        port_high=mostly(40002, 40000, 49999),
        tunnel_source4=rarely("10.9.0.1", "0.0.0.0"),
        tunnel_source6=rarely("fd00:9::1", "::"),
        nat_source4=rarely("10.8.0.1", "0.0.0.0"),
        nat_source6=rarely("fd00:8::1", "::"),
    )


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Up to two services over three pools. A service without frontends lists the pools first, so
    that each has the same index, and the same table size, in every world.
    """
    version = draw(st.sampled_from((4, 6)))
    all_pools = tuple(draw(pools(number, version)) for number in range(len(POOLS)))
    count = draw(mostly(1, 2))
    shown = tuple(draw(services(number, all_pools, version)) for number in range(count))
    holder = Service("all", (), all_pools, forward=Forward.DSR)
    return World((holder, *shown), draw(settings()), backend_ifindex=20)


# ---- steps ----


def shapes() -> st.SearchStrategy[Shape]:
    plain = st.builds(Shape, payload=st.sampled_from(PAYLOADS))
    odd = st.builds(
        Shape,
        payload=st.sampled_from(PAYLOADS),
        ttl=mostly(64, 0, 1, 2, 255),
        tos=mostly(0, 0xB8, 3),
        tags=st.sampled_from(TAGS),
        options=mostly(0, 8, 16, 48, 56),
        df=st.booleans(),
        piece=mostly("whole", "first", "later"),
        checksum=mostly(None, 0, 0xFFFF, 0x1234),
        padding=mostly(0, 6),
    )
    return st.one_of(plain, odd)


def towards() -> st.SearchStrategy[Towards]:
    return st.builds(
        Towards,
        service=st.integers(0, 1),
        frontend=st.integers(0, 2),
        client=mostly(0, *range(1, len(CLIENTS))),
        sport=mostly(41000, 41001, 41002, 0),
        flags=st.sampled_from(FLAGS),
        shape=shapes(),
        astray=mostly(False, False, False, True),
    )


def backs() -> st.SearchStrategy[Back]:
    return st.builds(Back, pick=st.integers(0, 3), flags=st.sampled_from(FLAGS), shape=shapes())


def complaints() -> st.SearchStrategy[Complaint]:
    return st.builds(
        Complaint,
        pick=st.integers(0, 3),
        about_reply=st.booleans(),
        kind=st.sampled_from((0, 1, 2)),
        by_router=st.booleans(),
        quoted=mostly(1000, 24, 28, 44, 48, 60),
        shape=shapes(),
    )


def pings() -> st.SearchStrategy[Ping]:
    return st.builds(
        Ping,
        service=st.integers(0, 1),
        frontend=st.integers(0, 2),
        shape=shapes(),
        code=mostly(0, 1),
    )


def packets() -> st.SearchStrategy[Step]:
    again = st.builds(Again, pick=st.integers(0, 3))
    return st.one_of(towards(), towards(), backs(), backs(), again, complaints(), pings())


def mangled() -> st.SearchStrategy[Step]:
    by = st.sampled_from((-1, 1, -2, 2, -4, 4, -8, 8, 37, 100))
    lies = st.lists(st.tuples(st.sampled_from(tuple(LIES)), by), min_size=1, max_size=2)
    changes = st.lists(st.tuples(st.integers(12, 110), st.integers(0, 255)), max_size=2)
    return st.one_of(
        st.builds(Mangled, step=packets(), lies=lies.map(tuple)),
        st.builds(Mangled, step=packets(), lies=lies.map(tuple), changes=changes.map(tuple)),
        st.builds(Mangled, step=packets(), keep=st.integers(14, 110)),
    )


def hostile() -> st.SearchStrategy[Step]:
    kinds = st.sampled_from((b"\x08\x00\x45", b"\x86\xdd\x60", b"\x81\x00", b"\x08\x06"))
    return st.builds(
        lambda kind, rest: Raw((b"\x02" * 12 + kind + rest).ljust(14, b"\0")),
        kinds,
        st.binary(max_size=120),
    )


def reloads() -> st.SearchStrategy[Reload]:
    changes = st.one_of(
        st.tuples(st.just("health"), st.sampled_from(Health)),
        st.tuples(st.just("flags"), st.sampled_from((0, *BackendFlag))),
        st.tuples(st.just("incarnation"), st.integers(1, 3)),
        st.tuples(st.just("ramp"), st.sampled_from((0, 100, 255))),
        st.tuples(st.just("ifindex"), st.sampled_from((None, 0))),
    )
    return st.builds(
        lambda pool, backend, change: Reload(pool, backend, *change),
        st.integers(0, len(POOLS) - 1),
        st.integers(0, 2),
        changes,
    )


def steps() -> st.SearchStrategy[Step]:
    ages = st.builds(Age, ticks=st.sampled_from((1, 2, 4, 6, 11, 21)))
    trouble = st.one_of(mangled(), mangled(), hostile())
    evictions = st.builds(Evict, store=st.sampled_from(STORES))
    tampers = st.builds(Tamper, what=st.sampled_from(TAMPERS))
    rest = st.one_of(ages, ages, reloads(), evictions, tampers, st.builds(Sweep))
    return st.one_of(packets(), packets(), packets(), trouble, trouble, rest)


SCRIPTS = (
    (">S", "<SA", ">A"),
    (">S", ">A", "<A", ">FA", "<FA", ">A"),
    (">A", "<A", ">RA"),
    (">S", "<SA", ">A", "<RA", ">S"),
    (">A", "<FA", ">FA"),
)


def episodes() -> st.SearchStrategy[list[Step]]:
    """A connection from one client, as it should be."""
    plain = st.builds(
        Towards,
        service=st.integers(0, 1),
        frontend=st.integers(0, 2),
        client=mostly(0, 1, 2),
        sport=mostly(41000, 41001),
        flags=st.just("S"),
        shape=st.just(Shape(payload=0)),
    )
    return st.builds(_played, plain, st.sampled_from(SCRIPTS))


def _played(first: Towards, script: tuple[str, ...]) -> list[Step]:
    return [
        replace(first, flags=line[1:])
        if line[0] == ">"
        else Back(pick=0, flags=line[1:], shape=first.shape)
        for line in script
    ]


def conversations() -> st.SearchStrategy[list[Step]]:
    """Connections and single packets, one after the other."""
    single = st.lists(steps(), min_size=1, max_size=5)
    parts = st.lists(st.one_of(single, single, episodes()), min_size=3, max_size=9)
    return parts.map(lambda lists: [step for part in lists for step in part])
