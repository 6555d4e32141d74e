"""A name's counters never go backwards, and never count another's: whatever index anybody had when."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler import ledger
from reconciler.ledger import Ledger
from reconciler.rates import Count

OWNERS = st.dictionaries(st.integers(1, 4), st.sampled_from("abcde"), max_size=4).map(
    lambda found: {at: owner for i, (at, owner) in enumerate(found.items())
                   if owner not in list(found.values())[:i]}
)  # fmt: skip
STEPS = st.lists(
    st.tuples(OWNERS, st.dictionaries(st.integers(1, 4), st.integers(1, 9), max_size=4)), max_size=12
)  # fmt: skip


@given(STEPS)
def test_each_name_has_what_was_counted_while_it_owned(
    steps: list[tuple[dict[int, str], dict[int, int]]],
) -> None:
    book, counts, expected = Ledger(), dict[int, Count](), dict[str, int]()
    for owners, counted in steps:
        book = ledger.parse(ledger.document(book.follow(owners, counts)))
        assert book.fits(owners)
        for at, packets in counted.items():
            if at in owners:  # nothing counts where nobody is
                counts[at] = counts.get(at, Count()) + Count(packets=packets)
                expected[owners[at]] = expected.get(owners[at], 0) + packets
        totals = {name: count.packets for name, count in book.totals(counts).items()}
        assert {name: n for name, n in totals.items() if n} == expected


def test_the_first_owners_get_what_was_counted_before_anybody_kept_books() -> None:
    book = Ledger().follow({1: "a"}, {1: Count(packets=50)})
    assert book.totals({1: Count(packets=60)})["a"].packets == 60


def test_a_counter_that_began_anew_is_not_negative() -> None:
    book = Ledger().follow({1: "a"}, {}).follow({1: "b"}, {1: Count(packets=50)})
    assert book.totals({1: Count(packets=7)}) == {"a": Count(packets=50), "b": Count(packets=7)}


@pytest.mark.parametrize("broken", [{}, {"accounts": 1}, {"accounts": {"x": {}}, "carried": {}}])
def test_other_documents_are_no_ledgers(broken: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
        ledger.parse(broken)


def test_counts_are_added_field_by_field() -> None:
    one = Count(1, 2, 3, 4, 5)
    assert (one + one).since(one) == one
    assert replace(one, flows=9) + Count() == Count(1, 2, 9, 4, 5)
