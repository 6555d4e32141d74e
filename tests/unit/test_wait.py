import pytest

from tests.support.wait import until


def test_waits_until_the_condition_is_true() -> None:
    answers = iter([0, "", None, 42])
    assert until(lambda: next(answers)) == 42


def test_says_what_it_waited_for() -> None:
    with pytest.raises(TimeoutError, match=r"the moon: not within 0\.01 s"):
        until(lambda: False, 0.01, what="the moon")
