"""Rise and fall, by example."""

import pytest

from healthcheck.health import Health, Outcome, State, Thresholds, after_all

LETTERS = {"+": Outcome.PASS, "-": Outcome.FAIL, "?": Outcome.NEUTRAL}
UP, DOWN, UNKNOWN = State.UP, State.DOWN, State.UNKNOWN


@pytest.mark.parametrize(
    ("start", "results", "rise", "fall", "end", "contrary"),
    [
        # the first result decides, whichever it is
        (UNKNOWN, "", 2, 3, UNKNOWN, 0),
        (UNKNOWN, "+", 2, 3, UP, 0),
        (UNKNOWN, "-", 2, 3, DOWN, 0),
        (UNKNOWN, "?", 2, 3, UNKNOWN, 0),
        (UNKNOWN, "??-", 2, 3, DOWN, 0),
        # falling
        (UP, "--", 2, 3, UP, 2),
        (UP, "---", 2, 3, DOWN, 0),
        (UP, "-", 2, 1, DOWN, 0),
        (UP, "--+--", 2, 3, UP, 2),
        (UP, "--+--+--+", 2, 3, UP, 0),
        # rising
        (DOWN, "+", 2, 3, DOWN, 1),
        (DOWN, "++", 2, 3, UP, 0),
        (DOWN, "+", 1, 3, UP, 0),
        (DOWN, "+-+-+", 2, 3, DOWN, 1),
        (DOWN, "----------", 2, 3, DOWN, 0),
        # there and back: nothing is left over from the first trip
        (UP, "---++--", 2, 3, UP, 2),
        (UP, "---+---+", 2, 3, DOWN, 1),
        # our own trouble neither counts nor interrupts
        (UP, "-?-?-", 2, 3, DOWN, 0),
        (UP, "--?????", 2, 3, UP, 2),
        (DOWN, "+?+", 2, 3, UP, 0),
    ],
)
def test_a_row_of_results_ends_in(
    start: State, results: str, rise: int, fall: int, end: State, contrary: int
) -> None:
    outcomes = [LETTERS[letter] for letter in results]
    assert after_all(Health(start), outcomes, Thresholds(rise, fall)) == Health(end, contrary)


def test_a_new_definition_keeps_the_verdict_and_forgets_the_progress() -> None:
    assert Health(State.UP, contrary=2).redefined() == Health(State.UP)
