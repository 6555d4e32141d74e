"""Tables: shares, disruption, and the compiled code beside its reference."""

from collections import Counter

import pytest

from reconciler import table
from reconciler.model import Method
from reconciler.table import Fill, fill, fill_plainly, moved, walk, walk_plainly

LARGE = 65537


def names(count: int) -> tuple[str, ...]:
    return tuple(sorted(f"web{i}" for i in range(count)))


@pytest.mark.parametrize("how", Fill)
@pytest.mark.parametrize("count", [1, 2, 10, 50, 200])
def test_no_backend_gets_more_than_one_per_cent_above_its_due(how: Fill, count: int) -> None:
    shares = Counter(fill(how, LARGE, names(count), (100,) * count))
    assert max(shares.values()) <= 1.01 * LARGE / count
    assert len(shares) == count


@pytest.mark.parametrize("how", Fill)
def test_weights_are_proportional(how: Fill) -> None:
    """A weight that counts in the first round only would make 1:10 an even match."""
    shares = table.shares(fill(how, LARGE, ("a", "b", "c"), (10, 100, 1000)))
    for number, weight in enumerate((10, 100, 1000)):
        assert shares[number] == pytest.approx(LARGE * weight / 1110, rel=0.03)


@pytest.mark.parametrize("how", [Fill.CONSISTENT, Fill.MAGLEV])
def test_removing_one_of_fifty_moves_little_more_than_its_slots(how: Fill) -> None:
    before, after = names(50), names(50)[1:]
    old = [before[i] for i in fill(how, LARGE, before, (100,) * 50)]
    new = [after[i] for i in fill(how, LARGE, after, (100,) * 49)]
    assert sum(map(str.__ne__, old, new)) <= 0.025 * LARGE


def test_lowering_one_of_ten_weights_moves_little() -> None:
    old = fill(Fill.CONSISTENT, LARGE, names(10), (100,) * 10)
    new = fill(Fill.CONSISTENT, LARGE, names(10), (90, *[100] * 9))
    assert moved(old, new) <= 0.02 * LARGE


def test_weights_that_differ_by_a_constant_factor_are_the_same() -> None:
    assert fill(Fill.CONSISTENT, 1021, names(4), (1, 2, 3, 4)) == fill(
        Fill.CONSISTENT, 1021, names(4), (100, 200, 300, 400)
    )


def test_round_robin_goes_round() -> None:
    """Every backend once a round, in another order each time."""
    slots = fill(Fill.ROUND_ROBIN, 1021, names(5), (7,) * 5)
    rounds = [tuple(slots[i : i + 5]) for i in range(0, 1020, 5)]
    assert all(sorted(r) == [0, 1, 2, 3, 4] for r in rounds)
    assert len(set(rounds)) > 50


@pytest.mark.parametrize("how", Fill)
def test_who_takes_over_for_a_backend_that_is_down_is_spread_evenly(how: Fill) -> None:
    """Tries and walks at even distances would give one neighbour all of its load."""
    slots = fill(how, LARGE, names(10), (1,) * 10)
    ends = walk(slots, [i != 3 for i in range(10)])
    takers = Counter(end for end, slot in zip(ends, slots, strict=True) if slot == 3)
    assert len(takers) == 9
    assert max(takers.values()) < 1.25 * sum(takers.values()) / 9


@pytest.mark.parametrize(
    ("method", "how"),
    [
        (Method.CONSISTENT, Fill.CONSISTENT),
        (Method.MAGLEV, Fill.MAGLEV),
        (Method.ROUND_ROBIN, Fill.ROUND_ROBIN),
        (Method.RANDOM, Fill.CONSISTENT),
        (Method.LEAST_CONNECTIONS, Fill.CONSISTENT),
    ],
)
def test_methods_share_fills(method: Method, how: Fill) -> None:
    assert table.fill_of(method) is how


def test_the_code_is_compiled_here() -> None:
    assert table.compiled() is not None, "make build"


def test_without_the_compiled_code_the_reference_fills(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = fill(Fill.MAGLEV, 251, ("x", "y"), (3, 4))
    fill.cache_clear()
    monkeypatch.setattr(table, "compiled", lambda: None)
    slow = fill(Fill.MAGLEV, 251, ("x", "y"), (3, 4))
    fill.cache_clear()
    assert slow == quick == fill_plainly(Fill.MAGLEV, 251, ("x", "y"), (3, 4))
    assert table.named(slow, (7, 9)) == table.Slots("I", [(7, 9)[i] for i in slow])
    assert walk(slow, (True, False)) == walk_plainly(slow, (True, False))


def test_a_walk_ends_at_the_first_usable_slot() -> None:
    slots = fill(Fill.CONSISTENT, 251, ("a", "b", "c"), (1, 1, 1))
    usable = (False, True, True)
    for slot, end in enumerate(walk(slots, usable)):
        at = slot
        while not usable[slots[at]]:
            at = (at + table.step(251)) % 251
        assert end == slots[at]


def test_a_walk_among_the_unusable_changes_nothing() -> None:
    slots = fill(Fill.CONSISTENT, 251, ("a", "b"), (1, 1))
    assert walk(slots, (False, False)) == slots


def test_known_tables_stay_what_they_are() -> None:
    """Two nodes may run two releases: what they fill must not differ."""
    sample = {
        how: table.digest(fill(how, 251, names(5), (1, 2, 3, 4, 5)), names(5)) for how in Fill
    }
    assert sample == {
        Fill.CONSISTENT: "8a68306c89e8b605",
        Fill.MAGLEV: "d218b4d7777642ee",
        Fill.ROUND_ROBIN: "18c25d726e0df91f",
    }
