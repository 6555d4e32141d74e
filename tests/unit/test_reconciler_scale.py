"""What one backend's change costs does not depend on how many others there are."""

import pytest

from reconciler import config as configuration
from reconciler.compile import Surroundings
from reconciler.dataplane import State
from reconciler.look import Live, View, look
from reconciler.memo import Memo
from tests.support.configs import NODE
from tests.support.crowd import CHANGES, EACH, Crowd

ROOM = dict.fromkeys(("frontends", "services", "pools", "backends"), 1 << 16)
FEW, MANY = 10, 100  # pools


def seen(pools: int, change: str, actual: State, memo: Memo) -> View:
    config = configuration.load(Crowd(pools, change).text())
    return look(config, NODE, Live(actual, {}, Surroundings(), ROOM), memo=memo)


@pytest.fixture(scope="module")
def applied() -> dict[int, tuple[State, Memo]]:
    found = {}
    for pools in (FEW, MANY):
        memo = Memo()
        found[pools] = seen(pools, "", State(), memo).held, memo
    return found


@pytest.mark.parametrize("change", CHANGES)
def test_the_number_of_map_writes_is_that_of_the_change(
    change: str, applied: dict[int, tuple[State, Memo]]
) -> None:
    few, many = (
        [(type(op), op.where) for op in seen(pools, change, *applied[pools]).ops]
        for pools in (FEW, MANY)
    )
    assert few == many
    assert 0 < len(few) < EACH


def test_what_has_not_changed_is_not_made_anew(applied: dict[int, tuple[State, Memo]]) -> None:
    """One pool of a hundred is: the other entries are the same objects, and so are whole maps."""
    state, memo = applied[MANY]
    before = seen(MANY, "", state, memo).held
    after = seen(MANY, "weight", before, memo).held
    assert sum(after.tables[at] is slots for at, slots in before.tables.items()) == MANY - 1
    kept = sum(after.backends[at] is entry for at, entry in before.backends.items())
    assert kept == (MANY - 1) * EACH
    assert after.replies4 is before.replies4
    assert after.prefilter is before.prefilter
