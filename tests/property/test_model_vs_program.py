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
from tests.support.bed import Bed
from tests.support.bed import bed as make_bed
from tests.support.comparison import Conversation
from tests.support.steps import Step
from tests.support.themes import THEMES
from tests.support.world import World

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
