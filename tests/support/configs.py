"""Random configurations, small enough that they collide: few names, few addresses, few ports."""

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
