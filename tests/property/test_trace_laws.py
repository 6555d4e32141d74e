"""Laws of `explain`: the shadow does what the live program would do next; the account of the way agrees
with it; and asking changes nothing that forwards."""

import os
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bpf import kernel
from bpf.abi import BackendFlag, Balance, HealthState, Verdict
from reconciler import shadows
from reconciler.explaining import Question, World, ask
from reconciler.maps import PinnedMaps
from reconciler.model import Config, Packet, Proto
from reconciler.names import Names
from reconciler.packet.build import flags_of, frame
from reconciler.packet.decode import decode
from reconciler.shadows import Watched
from tests.support import themes
from tests.support.bed import BACKENDS, CLIENTS, Bed
from tests.support.bed import bed as make_bed
from tests.support.scenes import NETS
from tests.support.world import Health
from tests.support.world import World as Setting

DEEP = os.environ.get("PROFILE") == "deep"
FLAGS = ("syn", "syn", "ack", "ack", "psh,ack", "fin,ack", "rst", "none")
pytestmark = pytest.mark.bpf  # needs what the tests of that kind do


class Rig(NamedTuple):
    bed: Bed
    shadow: kernel.Instance


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """One shadow for all worlds: it sees every configuration that is loaded."""
    try:
        with make_bed(f"ek{os.getpid()}trace") as bed, shadows.of_live(bed.instance) as shadow:
            yield Rig(bed, shadow)
    except (kernel.NotPermitted, kernel.Unsupported) as error:
        pytest.skip(str(error))


class Sent(NamedTuple):
    """A packet in terms of its world; `back`: from a backend, else to a frontend."""

    back: bool
    which: int
    client: int
    sport: int
    flags: str
    age: int = 0  # ticks before it
    trouble: tuple[int, HealthState] | None = None  # a backend's health changes before it


SENT = st.builds(
    Sent,
    back=st.sampled_from((False, False, False, True)),
    which=st.integers(0, 5),
    client=st.sampled_from((0, 0, 0, 1)),
    sport=st.sampled_from((41000, 41000, 41000, 41001)),
    flags=st.sampled_from(FLAGS),
    age=st.sampled_from((0, 0, 0, 0, 1, 15, 100)),
    trouble=st.sampled_from((None,) * 9 + tuple((i, h) for i in range(4) for h in HealthState)),
)
SCRIPTS = ("syn ack rst syn", "syn ack fin,ack ack syn", "ack ack syn", "syn syn rst syn")


def scripted(which: int, sport: int, script: str, trouble: tuple[int, HealthState]) -> list[Sent]:
    """A client's whole conversation; at the end a backend's health changes."""
    sents = [Sent(False, which, 0, sport, flags) for flags in script.split()]
    return [*sents[:-1], sents[-1]._replace(trouble=trouble)]


CONVERSATIONS = st.one_of(
    st.lists(SENT, min_size=3, max_size=10),
    st.builds(
        scripted,
        st.integers(0, 5),
        st.integers(41000, 41020),
        st.sampled_from(SCRIPTS),
        st.tuples(st.integers(0, 4), st.sampled_from(HealthState)),
    ),
)


@st.composite
def troubled(draw: st.DrawFn) -> Setting:
    """Worlds in which hardly a backend is just healthy."""
    world = draw(themes.THEMES["flows of all modes"].worlds)
    states = st.builds(
        dict,
        health=st.sampled_from(Health),
        ramp=st.sampled_from((255, 100, 0)),
        flags=st.sampled_from((0, 0, *BackendFlag)),
    )
    pools = {
        pool.name: replace(
            pool, backends=tuple(replace(one, **draw(states)) for one in pool.backends)
        )
        for pool in world.pools
    }
    return replace(
        world,
        services=tuple(
            replace(one, pools=tuple(pools[pool.name] for pool in one.pools))
            for one in world.services
        ),
    )


WORLDS = {
    "flows": themes.THEMES["flows"].worlds,
    "collisions": themes.THEMES["collisions"].worlds,
    "anything": themes.THEMES["anything"].worlds,
    "trouble": troubled(),
}


def question(setting: Setting, sent: Sent, out: bytes | None) -> Question | None:
    ends = [end for service in setting.services for end in service.frontends]
    vip, port, proto = ends[sent.which % len(ends)]
    net = NETS[ip_address(vip).version]
    client = ip_address((net.client, net.client2)[sent.client])
    if sent.back:
        packet = answer_to(out) if out else None
    else:
        packet = Packet(client, sent.sport, ip_address(vip), port or 1234, Proto[proto.upper()])
    if packet is None:
        return None
    flags = flags_of(sent.flags) or 0
    at = BACKENDS if sent.back else CLIENTS
    return Question(packet, frame(packet, flags), flags, at)


def answer_to(out: bytes) -> Packet | None:
    """What the backend would send back for a frame that went out to it, if that is not in a tunnel."""
    ends = decode(out).tuple
    if ends is None or ends.protocol not in tuple(Proto) or not ends.sport:
        return None
    here, there = ip_address(ends.destination), ip_address(ends.source)
    return Packet(here, ends.dport, there, ends.sport, Proto(ends.protocol))


def everything(bed: Bed) -> list[object]:
    names = [*shadows.FLOWS, "service_state", "live", "service_counts", "backend_counts", "hops"]
    return [dict(bed.maps[name].items()) for name in names] + [bytes(bed.cpu().verdict)]


def lots(setting: Setting, packet: Packet) -> bool:
    """Whether the two programs may draw differently."""
    return any(s.balance in (Balance.RANDOM, Balance.LEAST_CONNECTIONS) for s in setting.services)


EXAMPLES = 2000 if DEEP else 50


@pytest.mark.parametrize("theme", WORLDS)
def test_the_account_the_shadow_and_the_live_program_agree(rig: Rig, theme: str) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=not DEEP,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(setting=WORLDS[theme], sents=CONVERSATIONS)
    def agree(setting: Setting, sents: list[Sent]) -> None:
        converse(rig, setting, sents)

    agree()


def converse(rig: Rig, setting: Setting, sents: list[Sent]) -> None:
    bed = rig.bed
    bed.load(setting)
    state = PinnedMaps(bed.instance).read()
    names = Names.of((None, Config({}, {})), 0, state)
    world = World(state, lambda: dict(bed.maps.health.items()), names, live=bed.instance)
    watched = Watched(rig.shadow, state)
    members = [f"{pool.name}/{one.name}" for pool in setting.pools for one in pool.backends]
    out: bytes | None = None
    for sent in sents:
        bed.age(sent.age)
        if sent.trouble and members:
            bed.set_health(members[sent.trouble[0] % len(members)], sent.trouble[1])
        asked = question(setting, sent, out)
        if asked is None:
            continue

        def both(asked: Question = asked) -> tuple[Any, Any]:
            before = everything(bed)
            with bed.namespace.entered():
                told = ask(asked, world, watched)
            assert everything(bed) == before
            return told, bed.send(asked.frame, at=asked.ifindex)

        answer, live = bed.within_one_tick(both)
        assert answer.differences == (), (asked.packet, sent.flags, answer.trace.steps)
        assert answer.seen is not None
        if not lots(setting, asked.packet):
            assert (answer.seen.verdict, answer.seen.action) == (live.verdict, live.action)
            if live.verdict is not Verdict.RETURN_PASSED:
                assert answer.seen.frame == live.frame
        if live.verdict is Verdict.FORWARDED:
            out = live.frame
