"""Random configurations, small enough that they collide: few names, few addresses, few ports."""

from dataclasses import replace
from ipaddress import ip_address

from hypothesis import strategies as st

from reconciler.model import (
    AdminState,
    Backend,
    Balance,
    Check,
    CheckType,
    Config,
    Drain,
    Forward,
    Guardrails,
    HashOn,
    Method,
    Node,
    Pool,
    Port,
    Proto,
    Service,
    Then,
)
from reconciler.overrides import Forced, Override, Overrides

NODE = Node(
    interfaces={"eth0": "auto"},
    table_size=7,
    tunnel_source={4: ip_address("10.9.9.9"), 6: ip_address("2001:db8:9::9")},
    nat_source={4: ip_address("10.9.9.8"), 6: ip_address("2001:db8:9::8")},
)
ALIVE = Check("alive", CheckType.TCP, every=2, timeout=1, rise=2, fall=3)
DRAINS = (Drain(10), Drain(1000), Drain(then=Then.KEEP))
UNLIMITED = Guardrails(100, 100, allow_empty=True)
VIPS = [ip_address("192.0.2.1"), ip_address("192.0.2.2"), ip_address("2001:db8::1")]
PORTS = [Port(80, Proto.TCP), Port(443, Proto.TCP), Port(53, Proto.UDP), Port(0, Proto.TCP)]
PLACES = [*(ip_address(f"10.0.0.{i}") for i in range(1, 5)), ip_address("2001:db8:b::1")]


def backends() -> st.SearchStrategy[dict[str, Backend]]:
    one = st.builds(
        Backend,
        name=st.just(""),
        address=st.sampled_from(PLACES),
        port=st.sampled_from([0, 8080]),
        weight=st.sampled_from([0, 1, 50, 100]),
        state=st.sampled_from(AdminState),
    )
    named = st.dictionaries(st.sampled_from("abcd"), one, min_size=1, max_size=4)
    return named.map(
        lambda found: {
            name: Backend(name, b.address, b.port, b.weight, b.state) for name, b in found.items()
        }
    )


@st.composite
def services(draw: st.DrawFn, pools: list[str]) -> dict[str, Service]:
    """No two with the same frontend: what the schema's reader refuses."""
    frontends = [(address, port) for address in VIPS for port in PORTS]
    draw(st.randoms(use_true_random=False)).shuffle(frontends)
    made = {}
    for name in draw(st.lists(st.sampled_from("fgh"), unique=True, max_size=3)):
        count = draw(st.integers(1, 2))
        address = frontends[-1][0]
        mine = [f for f in frontends if f[0] == address][:count]
        frontends = [f for f in frontends if f not in mine]
        made[name] = Service(
            name=name,
            addresses=(address,),
            ports=tuple(port for _, port in mine),
            pools=tuple(draw(st.lists(st.sampled_from(pools), unique=True, min_size=1))),
            forward=draw(st.sampled_from(Forward)),
            balance=Balance(draw(st.sampled_from(Method)), draw(st.sampled_from(HashOn))),
            panic=draw(st.sampled_from([0, 0, 50])),
            recover=draw(st.sampled_from([None, 75, 100])),
            fail_closed=draw(st.booleans()),
            echo=draw(st.booleans()),
            gate=draw(st.sampled_from([0, 10])),
        )
    return made


@st.composite
def configs(draw: st.DrawFn) -> Config:
    names = draw(st.lists(st.sampled_from("pqr"), unique=True, min_size=1))
    pools = {
        name: Pool(
            name,
            draw(backends()),
            draw(st.sampled_from([None, ALIVE])),
            draw(st.booleans()),
            draw(st.sampled_from(DRAINS)),
        )
        for name in names
    }
    return Config(draw(services(names)), pools, UNLIMITED, draw(st.sampled_from(DRAINS)))


def overrides() -> st.SearchStrategy[Overrides]:
    """What an operator forces; names that are not configured are nobody's."""
    one = st.builds(
        Override,
        pool=st.sampled_from("pqr"),
        backend=st.sampled_from("abcd"),
        state=st.sampled_from(Forced),
        reason=st.just("maintenance"),
        by=st.just("ops"),
        since=st.just(0.0),
        until=st.just(1.0),
    )
    return st.lists(one, max_size=4, unique_by=lambda found: found.name).map(tuple)


@st.composite
def edited(draw: st.DrawFn, config: Config) -> Config:
    """The same file after some of what people do to it: few changes, most of them to what is used."""
    pools, services = dict(config.pools), dict(config.services)
    for name in draw(st.lists(st.sampled_from(sorted(pools)), unique=True)):
        kept = draw(st.booleans())
        more = draw(backends())
        pools[name] = replace(
            pools[name], backends={**pools[name].backends, **more} if kept else more
        )
    if draw(st.booleans()):
        pools.setdefault(
            "s", Pool("s", draw(backends()), draw(st.sampled_from([None, ALIVE])), True)
        )
    for name, service in config.services.items():
        services[name] = replace(
            service,
            pools=draw(st.just(service.pools) | st.permutations(sorted(pools)).map(tuple)),
            panic=draw(st.sampled_from([service.panic, 0, 50])),
            recover=draw(st.sampled_from([service.recover, None, 75])),
            fail_closed=draw(st.sampled_from([service.fail_closed, not service.fail_closed])),
        )
    return replace(config, pools=pools, services=services)
