"""Laws of tables: the compiled code is its reference, and nothing but content counts."""

from hypothesis import given
from hypothesis import strategies as st

from reconciler import table
from reconciler.table import Fill, fill, fill_plainly, walk, walk_plainly

SIZES = st.sampled_from([2, 3, 13, 251, 1021])
weights = st.dictionaries(
    st.text("abcdef0123456789", min_size=1, max_size=6),
    st.integers(1, 65535),
    min_size=1,
    max_size=20,
)


@given(st.sampled_from(Fill), SIZES, weights)
def test_compiled_and_plain_agree_slot_by_slot(how: Fill, size: int, pool: dict[str, int]) -> None:
    names = tuple(sorted(pool))
    shares = tuple(pool[name] for name in names)
    assert fill(how, size, names, shares) == fill_plainly(how, size, names, shares)


@given(st.sampled_from(Fill), SIZES, weights)
def test_every_slot_is_filled(how: Fill, size: int, pool: dict[str, int]) -> None:
    names = tuple(sorted(pool))
    slots = fill(how, size, names, tuple(pool[name] for name in names))
    assert len(slots) == size
    assert max(slots) < len(names)


@given(SIZES, weights, st.lists(st.booleans(), min_size=20, max_size=20))
def test_the_walk_agrees_too(size: int, pool: dict[str, int], usable: list[bool]) -> None:
    names = tuple(sorted(pool))
    slots = fill(Fill.CONSISTENT, size, names, tuple(pool[name] for name in names))
    ends = walk(slots, usable)
    assert ends == walk_plainly(slots, usable)
    reachable = {usable[member] for member in slots}
    assert all(usable[end] for end in ends) or True not in reachable


@given(SIZES)
def test_the_walk_visits_every_slot(size: int) -> None:
    assert len({k * table.step(size) % size for k in range(size)}) == size
