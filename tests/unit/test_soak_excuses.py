"""What may be excused by what was going on, and what may not."""

from dataclasses import replace

import pytest

from reconciler import ids
from tests.soak import consequences, wishes
from tests.soak.excuses import Mishap, Symptom, going_on, judged
from tests.soak.report import Account, lines
from tests.soak.watch import NO_NEW, Sight, changes
from tests.soak.wishes import AWAY, Does, Edit, Member, Wish

VISITOR = Mishap(Symptom.RESET, since=10, at=11, service="nat", pool="web", host="b1")
NEWCOMER = Mishap(Symptom.RESET, since=10, at=11, service="dsr", pool="own")
DRAIN = Edit(Does.DRAIN, Wish(), "web", "b1")


def excused(mishap: Mishap, *troubles: object) -> bool:
    return bool(judged([mishap], troubles)[0].excuses)  # type: ignore[arg-type]


def test_a_flow_of_a_failed_server_is_excused_and_one_of_another_is_not() -> None:
    trouble = consequences.illness("b1's server was killed", "b1", at=5)
    assert excused(VISITOR, trouble)
    assert not excused(replace(VISITOR, host="b2"), trouble)


@pytest.mark.parametrize(("since", "at", "well"), [(10, 11, True), (1, 2, False), (31, 32, False)])
def test_only_what_was_going_on_between_the_last_good_answer_and_the_mishap_counts(
    since: float, at: float, well: bool
) -> None:
    trouble = consequences.illness("b1's server was killed", "b1", at=5).over(30)
    assert excused(replace(VISITOR, since=since, at=at), trouble) is well


def test_what_has_ended_is_not_ended_again_later() -> None:
    assert consequences.illness("", "b1", 5).over(30).over(40).end == 30


def test_a_new_connection_is_excused_until_the_failure_is_noticed_and_no_longer() -> None:
    refused = replace(NEWCOMER, symptom=Symptom.REFUSED)
    noticed = consequences.unnoticed("b1's server was killed", "b1", at=5).over(7)
    still_ill = consequences.illness("b1's server was killed", "b1", at=5)
    assert not excused(refused, noticed, still_ill)
    assert excused(replace(refused, since=6.9), noticed)


def test_who_is_chosen_anew_may_meet_what_newcomers_meet_at_that_time() -> None:
    refused = replace(VISITOR, symptom=Symptom.REFUSED)
    anew, _ = consequences.no_backend("web/b1 emptied", "web", "b1", 10.5)
    unnoticed = consequences.unnoticed("b2's server was killed", "b2", at=9).over(20)
    assert excused(refused, anew, unnoticed)
    assert not excused(refused, anew)
    assert not excused(refused, unnoticed)
    assert not excused(replace(refused, host="b3"), anew, unnoticed)
    assert not excused(refused, anew, unnoticed.over(9.5))


def test_who_comes_while_a_pool_is_used_whole_may_meet_a_server_that_is_known_to_have_failed() -> (
    None
):
    refused = replace(NEWCOMER, symptom=Symptom.REFUSED)
    emptied = tuple(consequences.no_backend("own/b1 emptied", "own", "b1", 10.5))
    ill = consequences.illness("b2's server was killed", "b2", at=5)
    assert excused(refused, *emptied, ill)
    assert excused(replace(refused, host="b1"), *emptied, ill)
    assert not excused(replace(refused, host="b3"), *emptied, ill)
    assert not excused(refused, *emptied)
    assert not excused(refused, *emptied, ill.over(9))
    assert not excused(replace(refused, service="nat", pool="web"), *emptied, ill)


def test_larger_maps_may_cost_handshakes_and_no_flow() -> None:
    going = consequences.larger_maps("sizes.flows4 131072", at=5)
    handshake = replace(NEWCOMER, service="nat", pool="web")
    assert excused(handshake, going)
    assert not excused(VISITOR, going)
    assert not excused(NEWCOMER, going)  # hashed, without state: the table says the same after it
    assert not excused(handshake, going.over(9))


def test_a_draining_backend_keeps_its_flows_until_the_deadline() -> None:
    (flushed,) = consequences.until_returned(DRAIN, at=8)
    assert flushed.begin == 12
    assert not excused(VISITOR, flushed)
    assert excused(replace(VISITOR, at=12.5), flushed)


def test_one_that_keeps_its_flows_for_good_is_no_excuse_at_all() -> None:
    assert not list(consequences.until_returned(replace(DRAIN, pool="own"), at=8))


def test_changes_of_weight_move_nobody_who_has_a_backend() -> None:
    edit = Edit(Does.WEIGH, Wish(), "own", "b1")
    assert not list(consequences.until_returned(edit, at=8))
    slots = list(consequences.until_settled(edit, at=8))
    assert excused(NEWCOMER, *slots)
    assert not excused(replace(NEWCOMER, host="b1"), *slots)
    assert not excused(replace(NEWCOMER, service="nat", pool="web"), *slots)
    assert not excused(replace(NEWCOMER, symptom=Symptom.SILENT), *slots)


def test_a_fall_that_nobody_caused_is_never_excused() -> None:
    everything = consequences.unseen("prefilter emptied", at=0)
    assert not excused(replace(VISITOR, symptom=Symptom.FELL), everything)


@pytest.mark.parametrize("does", AWAY)
def test_no_pool_is_ever_left_with_too_few_that_serve(does: Does) -> None:
    wish = Wish()
    while edits := [e for e in wishes.edits(wish, {"b5"}) if e.does is does]:
        wish = edits[0].wish
    assert {len(wish.serving(pool, {"b5"})) for pool in wish.pools} == {wishes.SERVING}


def test_every_change_can_be_taken_back() -> None:
    for edit in wishes.edits(Wish(), set()):
        back = [after.wish for after in wishes.edits(edit.wish, set())]
        assert Wish() in back


def test_a_member_without_weight_does_not_count_as_serving() -> None:
    assert Wish().having("web", "b1", Member(weight=0)).serving("web", set()) == {
        "b2",
        "b3",
        "b4",
        "b5",
    }


def account(*mishaps: Mishap, complaints: tuple[tuple[float, str], ...] = ()) -> Account:
    troubles = [consequences.illness("b1's server was killed", "b1", at=5)]
    deeds = [(5.0, "b1's server killed")]
    findings = judged(mishaps, troubles)
    return Account(7, 0, 60, {"answers": 12}, deeds, findings, troubles, complaints)


def test_the_report_counts_what_is_explained_and_its_last_line_is_the_verdict() -> None:
    said = list(lines(account(VISITOR)))
    assert (
        said[-1] == "soak ok: nothing unexplained in 60 s, 1 deeds, 1 mishaps of clients, seed 7."
    )
    assert any(line.split()[:2] == ["server", "failed"] for line in said)


def test_the_report_says_when_the_unexplained_was_and_what_was_going_on() -> None:
    said = list(lines(account(replace(VISITOR, host="b2"), complaints=((9.0, "the plan"),))))
    assert any(
        line.startswith("UNEXPLAINED between 10.00 and 11.00 s: reset: nat") for line in said
    )
    assert "    going on: server failed (b1's server was killed), from 5.00 s" in said
    assert "    done at 5.00 s: b1's server killed" in said
    assert "BROKEN at 9.00 s: the plan" in said
    assert said[-1].startswith("soak FAILED: 2 unexplained")


def test_the_report_shows_what_the_maps_said_of_that_pool_around_the_unexplained() -> None:
    seen = [
        (9.0, "web", "b2 down"),
        (9.5, "six", "b1 down"),
        (-1.0, "web", "long ago"),
        (9.7, "", "file"),
    ]
    found = replace(account(replace(VISITOR, host="b2")), seen=seen)
    told = [line.strip() for line in lines(found) if line.startswith("    seen")]
    assert told == ["seen at 9.00 s: b2 down", "seen at 9.70 s: file"]


def test_what_changed_in_the_maps_is_said_with_what_was_there_before() -> None:
    number = ids.make(3, 2)
    before = Sight(b"a", entries={3: (("web", "b1"), number, 0, "UP")})
    after = Sight(b"b", entries={3: (("web", "b1"), number, NO_NEW, "DOWN")})
    assert not list(changes(before, before))
    assert list(changes(before, after)) == [
        ("", "file 62: idle"),
        ("web", "backends entry 3: web/b1 incarnation 2 down no_new, was web/b1 incarnation 2 up"),
    ]
    assert [what for _, what in changes(after, Sight(b"b"))] == [
        "backends entry 3: nobody's, was web/b1 incarnation 2 down no_new"
    ]


def test_who_is_down_is_passed_over_once_no_spare_table_names_it() -> None:
    entries = {
        3: (("web", "b1"), ids.make(3, 2), 0, "DOWN"),
        4: (("own", "b1"), ids.make(4, 1), 0, "DOWN"),
        5: (("own", "b2"), ids.make(5, 1), 0, "UP"),
    }
    sight = Sight(entries=entries, spared=frozenset({ids.make(3, 2), ids.make(5, 1)}))
    assert sight.passed_over == {("own", "b1")}


def test_what_was_over_before_is_not_going_on() -> None:
    before = consequences.illness("", "b1", 5).over(6)
    assert not going_on([before], replace(VISITOR, since=7.5, at=8))
    assert going_on([before], replace(VISITOR, since=6.5, at=8))
