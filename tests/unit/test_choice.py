"""The way to a backend, slot by slot, as the reference model walks it."""

from array import array

import pytest

from bpf import abi
from bpf.abi import BackendFlag, HealthState
from reconciler import choice, ids
from reconciler.dataplane import State
from tests.support.model import hashing

ONE, TWO = ids.make(1, 1), ids.make(2, 1)
POOL = abi.Pool(id=ids.make(1, 1), size=5, step=2)


def state(flags: int = 0) -> State:
    return State(
        backends={1: abi.Backend(id=ONE, flags=flags), 2: abi.Backend(id=TWO)},
        pools={1: POOL},
        tables={1: array("I", [ONE, ONE, ONE, ONE, TWO])},
        spares={1: array("I", [TWO] * 5)},
    )


def up(number: int, ramp: int = 255) -> abi.Health:
    return abi.Health(id=number, state=HealthState.UP, ramp=ramp)


def test_slots_are_hashed_as_the_model_hashes_them() -> None:
    slots = range(16381)
    assert [choice.slot_hash(s) for s in slots] == [hashing.slot_hash(s) for s in slots]


def test_a_walk_tells_each_slot_until_one_is_taken() -> None:
    health = {1: abi.Health(id=ONE, state=HealthState.DOWN), 2: up(TWO)}
    seen = list(choice.visits(state(), POOL, 0, health))
    assert [(one.slot, one.why) for one in seen] == [
        (0, "its checks fail"),
        (2, "its checks fail"),
        (4, ""),
    ]


def test_after_the_last_step_the_spare_slot_is_asked_whatever_the_ramp() -> None:
    health = {1: abi.Health(id=ONE, state=HealthState.DOWN), 2: up(TWO, ramp=0)}
    *_, last = choice.visits(state(), POOL, 0, health)
    assert (last.spare, last.backend, last.why) == (True, TWO, "")


@pytest.mark.parametrize(
    ("flags", "health", "why"),
    [
        (0, None, "its checks have said nothing yet"),
        (BackendFlag.ASSUME_UP, None, ""),
        (0, up(ids.make(1, 2)), "its checks have said nothing yet"),  # of another incarnation
        (BackendFlag.FORCED_DOWN, up(ONE), "forced down"),
        (BackendFlag.FORCED_UP, abi.Health(id=ONE, state=HealthState.DOWN), ""),
        (0, up(ONE), ""),
        (0, up(ONE, ramp=0), "it is warming up, 1 of 256 slots so far"),
    ],
)
def test_why_a_backend_is_passed_over(flags: int, health: abi.Health | None, why: str) -> None:
    known = {} if health is None else {1: health}
    assert choice.unusable(state(flags), ONE, known, slot=1) == why
