"""Law: whatever the configuration and whatever comes in, the program does what the model does.

Same verdict, same action, same bytes, and after a conversation the same memory. Each example is one
configuration and a sequence of packets, ageing, evictions, reloads and sweeps; the themes say what
they are about. `PROFILE=deep` runs many more, and other ones each time.
"""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from bpf import kernel
from bpf.abi import Forward
from tests.support.bed import Bed
from tests.support.bed import bed as make_bed
from tests.support.comparison import Conversation
from tests.support.scenes import V4, pool
from tests.support.steps import Age, Back, Evict, Shape, Step, Towards
from tests.support.themes import THEMES
from tests.support.world import Service, World

DEEP = os.environ.get("PROFILE") == "deep"


pytestmark = pytest.mark.bpf  # needs what the tests of that kind do


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    try:
        with make_bed(f"ek{os.getpid()}model") as made:
            yield made
    except (kernel.NotPermitted, kernel.Unsupported) as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("theme", THEMES)
def test_the_program_does_what_the_model_does(bed: Bed, theme: str) -> None:
    about = THEMES[theme]

    @settings(
        max_examples=5000 if DEEP else 100,
        derandomize=not DEEP,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(world=about.worlds, steps=about.steps)
    def agree(world: World, steps: list[Step]) -> None:
        conversation = Conversation(bed, world)
        for step in steps:
            conversation.take(step)
        conversation.compare_memory()

    agree()


NARROW = Service(
    "s0",
    ((V4.vip, 80, "tcp"), (V4.vip, 443, "tcp")),
    (pool(V4, size=7, step=3),),
)


def http(flags: str) -> Towards:
    return Towards(0, 0, 0, 41000, flags, Shape())


def https(flags: str) -> Towards:
    return Towards(0, 1, 0, 41000, flags, Shape())


def reply(flags: str) -> Back:
    return Back(0, flags, Shape())


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([http("S"), http("FA"), http("A")], id="an ending while half open is kept"),
        pytest.param([http("A"), Evict("flows"), reply("R")], id="a reset closes the entry alone"),
        pytest.param(
            [https("A"), Evict("returns"), http("A"), https("R")],
            id="a reset marks nobody else's entry",
        ),
        pytest.param(
            [https("S"), Evict("answering"), http("A"), https("A")],
            id="a promoted flow takes nobody else's place",
        ),
        pytest.param(
            [https("A"), Evict("returns"), http("A"), Age(1), https("A")],
            id="a known flow takes nobody else's place",
        ),
    ],
)
def test_flows_of_one_client_through_two_frontends(bed: Bed, steps: list[Step]) -> None:
    holder = Service("all", (), NARROW.pools, Forward.DSR)
    conversation = Conversation(bed, World((holder, NARROW), backend_ifindex=20))
    for step in steps:
        conversation.take(step)
    conversation.compare_memory()
