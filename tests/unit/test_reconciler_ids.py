"""Ids: an index, an incarnation, and never the same twice."""

import pytest

from reconciler import ids
from reconciler.ids import NoRoom, assign, hashed, make, retired


def test_an_id_is_an_index_and_an_incarnation() -> None:
    number = make(7, 3)
    assert (ids.index(number), ids.incarnation(number)) == (7, 3)
    assert number == 3 << 20 | 7


def test_the_first_id_is_index_one_incarnation_one() -> None:
    assert assign("backends", ["a", "b"], {}, {}, 4) == {"a": make(1, 1), "b": make(2, 1)}


def test_who_has_an_id_keeps_it() -> None:
    known = {"b": make(5, 9)}
    assert assign("backends", ["a", "b"], known, {}, 8) == {"a": make(1, 1), "b": make(5, 9)}


def test_an_index_in_use_is_not_given_away_even_if_its_owner_goes() -> None:
    """Its entry is there until the plan's last operation."""
    assert assign("backends", ["b"], {"a": make(1, 1)}, {}, 4) == {"b": make(2, 1)}


def test_a_freed_index_comes_back_with_the_next_incarnation() -> None:
    assert assign("backends", ["a"], {}, {1: 7}, 4) == {"a": make(1, 8)}


def test_after_the_last_incarnation_comes_the_first_but_never_zero() -> None:
    """Index and incarnation zero are what a retired entry and an empty one look like."""
    assert assign("backends", ["a"], {}, {1: ids.INCARNATIONS - 1}, 4) == {"a": make(1, 1)}


def test_what_is_replaced_gets_another_id_than_it_has() -> None:
    known = {"a": make(1, 1)}
    assert assign("pools", ["a"], known, {}, 4, {"a"}) == {"a": make(2, 1)}


def test_a_retired_entry_matches_no_id() -> None:
    for number in (make(1, 1), make(5, 4095)):
        assert ids.index(retired(number)) == 0
        assert ids.incarnation(retired(number)) == ids.incarnation(number)


def test_too_many_say_which_setting_to_raise() -> None:
    with pytest.raises(NoRoom, match=r"4 backends do not fit.*room for 3.*sizes\.backends"):
        assign("backends", "abcd", {}, {}, 4)


def test_replacements_need_room_beside_what_they_replace() -> None:
    with pytest.raises(NoRoom, match="6 backends do not fit"):
        assign("backends", "def", dict.fromkeys("abc", 0) | {"a": 1, "b": 2, "c": 3}, {}, 4)


def test_names_are_told_apart() -> None:
    assert len({hashed(f"web/{i}") for i in range(10000)}) == 10000
    assert 0 < hashed("web/web1") < 1 << 64


def test_an_index_with_an_entry_is_not_given_away_even_if_its_name_has_another() -> None:
    """What an interrupted apply leaves behind: one name, two entries."""
    known = {"a": ids.make(2, 1)}
    assert ids.assign("x", ["a", "b"], known, {}, 8, taken=[1, 2])["b"] == ids.make(3, 1)
