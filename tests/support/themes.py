"""What conversations can be about. "Anything" alone meets the rare cases too rarely: each other theme
keeps most things sound, so that what it is about happens in nearly every example.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import strategies as st

from bpf.abi import BackendFlag, Balance, Forward, HashFields, ServiceFlag
from tests.support.scenes import NETS, Net
from tests.support.steps import (
    LIES,
    STORES,
    Age,
    Back,
    Evict,
    Mangled,
    Reload,
    Shape,
    Step,
    Sweep,
    Towards,
)
from tests.support.strategies import (
    IDLE,
    POOLS,
    backs,
    complaints,
    conversations,
    episodes,
    hostile,
    mangled,
    mostly,
    packets,
    pings,
    reloads,
    towards,
    worlds,
)
from tests.support.world import Backend, Health, Pool, Service, Settings, World

TRANSLATING = (Forward.NAT, Forward.NAT, Forward.FULLNAT)


@dataclass(frozen=True)
class Theme:
    worlds: st.SearchStrategy[World]
    steps: st.SearchStrategy[list[Step]]


def flat(
    parts: st.SearchStrategy[list[Step]], *, least: int, most: int
) -> st.SearchStrategy[list[Step]]:
    several = st.lists(parts, min_size=least, max_size=most)
    return several.map(lambda lists: [step for part in lists for step in part])


def alone(step: st.SearchStrategy[Step]) -> st.SearchStrategy[list[Step]]:
    return step.map(lambda one: [one])


# ---- sound configurations ----


def sound_pool(net: Net, number: int) -> st.SearchStrategy[Pool]:
    """One or two healthy backends of the right family."""
    name, size, step = POOLS[number]

    def member(at: int, port: int) -> Backend:
        mac = f"02:00:00:00:0b:{at:02x}"
        return Backend(f"b{at}", net.backends[at % 8], port, dmac=mac)

    members = st.tuples(st.integers(1, 2), mostly(8080, 0)).map(
        lambda drawn: tuple(member(number * 3 + i, drawn[1]) for i in range(drawn[0]))
    )
    return st.builds(Pool, st.just(name), members, st.just(size), st.just(step))


@st.composite
def sound_worlds(
    draw: st.DrawFn,
    forwards: tuple[Forward, ...] = tuple(Forward),
    flags: tuple[int, ...] = (0, 0, 0, 0, *ServiceFlag),
    port_high: int = 40003,
) -> World:
    """One or two services on one address each, with frontends of both protocols; nothing amiss."""
    net = NETS[draw(st.sampled_from((4, 6)))]
    all_pools = tuple(draw(sound_pool(net, number)) for number in range(len(POOLS)))
    shown = [
        Service(
            f"s{number}",
            ((vip, 80, "tcp"), (vip, 53, "udp"), draw(_third(vip))),
            all_pools[number : number + 1 + draw(st.integers(0, 1))],
            draw(st.sampled_from(forwards)),
            draw(st.sampled_from((Balance.HASH, Balance.HASH, *Balance))),
            draw(st.sampled_from(HashFields)),
            draw(st.sampled_from(flags)),
            draw(mostly(0, 0, 1, 2)),
            echo=True,
            tcp_idle=IDLE["tcp_idle"],
            udp_idle=IDLE["udp_idle"],
        )
        for number, vip in enumerate((net.vip, net.vip2)[: draw(st.integers(1, 2))])
    ]
    holder = Service("all", (), all_pools, forward=Forward.DSR)
    settings = Settings(closing=3, rest=5, port_low=40000, port_high=port_high)
    return World((holder, *shown), settings, backend_ifindex=20)


def _third(vip: str) -> st.SearchStrategy[tuple[str, int | None, str]]:
    ports = st.sampled_from((None, 443))
    return st.tuples(st.just(vip), ports, st.sampled_from(("tcp", "udp")))


@st.composite
def narrow_worlds(draw: st.DrawFn) -> World:
    """One service, few backends, two frontends and few ports: flows of one client get in each
    other's way, and wait for each other's entries to rest.
    """
    net = NETS[draw(st.sampled_from((4, 6)))]
    few = tuple(draw(sound_pool(net, number)) for number in range(len(POOLS)))
    shown = Service(
        "s0",
        ((net.vip, 80, "tcp"), (net.vip, 443, "tcp"), (net.vip, 53, "udp")),
        few[:1],
        draw(st.sampled_from(TRANSLATING)),
        draw(mostly(Balance.HASH, Balance.ROUND_ROBIN)),
        gate=draw(st.sampled_from((0, 1, 2, 3))),
        tcp_idle=IDLE["tcp_idle"],
        udp_idle=IDLE["udp_idle"],
    )
    settings = Settings(closing=3, rest=5, port_low=40000, port_high=draw(mostly(40000, 40001)))
    return World((Service("all", (), few, Forward.DSR), shown), settings, backend_ifindex=20)


# ---- calm steps ----


def calm_towards(frontend: int | None = None) -> st.SearchStrategy[Towards]:
    """Few tuples, so that they meet: on one backend, in one return entry."""
    return st.builds(
        Towards,
        service=st.integers(0, 1),
        frontend=st.integers(0, 2) if frontend is None else st.just(frontend),
        client=mostly(0, 1),
        sport=mostly(41000, 41001),
        flags=st.sampled_from(("S", "S", "A", "A", "FA", "R", "")),
        shape=st.just(Shape(payload=1)),
    )


def calm_backs() -> st.SearchStrategy[Back]:
    flags = st.sampled_from(("SA", "A", "A", "FA", "R", "S"))
    return st.builds(Back, pick=st.integers(0, 4), flags=flags, shape=st.just(Shape(payload=1)))


def time_and_loss() -> st.SearchStrategy[Step]:
    return st.one_of(
        st.builds(Age, ticks=st.sampled_from((1, -1, 2, 3, 4, 5, 6, 10, 11, 20, 21))),
        st.builds(Age, ticks=st.just(1)),
        st.builds(Evict, store=st.sampled_from(STORES)),
        st.builds(Sweep),
    )


def backend_trouble() -> st.SearchStrategy[Reload]:
    changes = st.one_of(
        st.tuples(st.just("health"), st.sampled_from(Health)),
        st.tuples(st.just("flags"), st.sampled_from(tuple(BackendFlag))),
        st.tuples(st.just("incarnation"), st.integers(1, 3)),
    )
    return st.builds(
        lambda pool, backend, change: Reload(pool, backend, *change),
        st.integers(0, 1),
        st.integers(0, 1),
        changes,
    )


def flow_steps() -> st.SearchStrategy[list[Step]]:
    one = st.one_of(calm_towards(), calm_towards(), calm_backs(), time_and_loss())
    single = st.lists(st.one_of(one, one, one, backend_trouble()), min_size=2, max_size=6)
    return flat(st.one_of(single, single, episodes()), least=3, most=7)


def meeting_steps() -> st.SearchStrategy[list[Step]]:
    towards_either = st.integers(0, 1).flatmap(calm_towards)
    times = st.builds(Age, ticks=st.sampled_from((1, 3, 4, 5, 6, 8, 20)))
    losses = st.builds(Evict, store=st.sampled_from(STORES))
    bumps = st.builds(Reload, st.just(0), st.just(0), st.just("incarnation"), st.integers(1, 3))
    one = st.one_of(
        towards_either, towards_either, towards_either, calm_backs(), times, losses, losses, bumps
    )
    return flat(st.lists(one, min_size=3, max_size=6), least=3, most=6)


def choice_steps() -> st.SearchStrategy[list[Step]]:
    plain = st.builds(
        Towards,
        service=st.integers(0, 1),
        frontend=st.integers(0, 2),
        client=mostly(0, 1, 2, 3),
        sport=st.integers(1024, 65535),
        flags=st.sampled_from(("S", "A")),
        shape=st.just(Shape(payload=0)),
    )
    many = st.lists(plain, min_size=2, max_size=6)
    return flat(st.one_of(many, many, alone(reloads())), least=4, most=8)


def lying_steps() -> st.SearchStrategy[list[Step]]:
    crooked = st.one_of(
        mangled(), mangled(), hostile(), lying_basics(), lying_basics(), lying_basics()
    )
    return flat(
        st.one_of(st.lists(crooked, min_size=8, max_size=12), alone(packets())), least=2, most=5
    )


def lying_basics() -> st.SearchStrategy[Step]:
    """One small lie in a plain packet: nothing else hides it."""
    by = st.sampled_from((-1, 1, -2, 2, -4, 4, 8))
    lies = st.tuples(st.tuples(st.sampled_from(tuple(LIES)), by))
    sound = st.one_of(calm_towards(), calm_pieces(), pings(), complaints())
    return st.one_of(st.builds(Mangled, step=sound, lies=lies), lying_lengths())


def lying_lengths() -> st.SearchStrategy[Step]:
    """Of TCP and UDP, by little, whole and in pieces."""
    by = st.sampled_from((-1, 1, -2, -8, 4))
    lies = [
        ("TCP data offset", calm_towards(frontend=0)),
        ("UDP length", calm_towards(frontend=1)),
        ("TCP data offset", calm_pieces(frontend=0)),
        ("UDP length", calm_pieces(frontend=1)),
    ]
    each = [
        st.builds(Mangled, step=step, lies=st.tuples(st.tuples(st.just(field), by)))
        for field, step in lies
    ]
    return st.one_of(*each)


def calm_pieces(frontend: int | None = None) -> st.SearchStrategy[Towards]:
    pieces = st.sampled_from(("first", "later")).map(lambda piece: Shape(payload=37, piece=piece))
    return st.builds(replace, calm_towards(frontend), shape=pieces)


def error_steps() -> st.SearchStrategy[list[Step]]:
    errors = st.lists(complaints(), min_size=1, max_size=4)
    about_pieces = st.builds(
        Mangled,
        step=complaints(),
        lies=st.just((("quoted IPv4 fragment", 1), ("quoted IPv4 flags", 1))),
    )
    crooked = st.builds(
        Mangled,
        step=complaints(),
        lies=st.tuples(
            st.tuples(
                st.sampled_from([name for name in LIES if "quoted" in name or "ICMP" in name]),
                st.sampled_from((-1, 1, 4, 8)),
            )
        ),
    )
    started = st.lists(st.one_of(calm_towards(), calm_backs()), min_size=1, max_size=3)
    rest = st.one_of(
        alone(crooked), alone(about_pieces), alone(time_and_loss()), alone(backend_trouble())
    )
    return flat(st.one_of(episodes(), started, errors, errors, rest), least=6, most=10)


def sending_steps() -> st.SearchStrategy[list[Step]]:
    odd = st.one_of(towards(), towards(), backs())
    return flat(st.one_of(st.lists(odd, min_size=2, max_size=6), episodes()), least=3, most=6)


def after_some(parts: st.SearchStrategy[list[Step]]) -> st.SearchStrategy[list[Step]]:
    """Something to refer to: one flow of each protocol."""
    tcp = Towards(0, 0, 0, 41000, "A", Shape(payload=100))
    return parts.map(lambda steps: [tcp, replace(tcp, frontend=1), *steps])


THEMES = {
    "anything": Theme(worlds(), conversations()),
    "flows": Theme(sound_worlds(TRANSLATING), flow_steps()),
    "flows of all modes": Theme(sound_worlds(), flow_steps()),
    "collisions": Theme(narrow_worlds(), meeting_steps()),
    "choice": Theme(worlds(), choice_steps()),
    "lies": Theme(sound_worlds(flags=(0, 0, ServiceFlag.FLOWS_OFF)), after_some(lying_steps())),
    "errors": Theme(sound_worlds(), after_some(error_steps())),
    "sending": Theme(sound_worlds(port_high=49999), after_some(sending_steps())),
}
