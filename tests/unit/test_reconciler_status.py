"""A status from facts: what it says, that its document has its shape, and what people read."""

import json
from dataclasses import replace

import jsonschema
import pytest

from bpf import abi
from reconciler import status_text
from reconciler.conditions import Condition, Holds, Observed, Trouble, Type, follow, judge
from reconciler.drain import KEPT
from reconciler.facts import Facts
from reconciler.headline import has_started, headline
from reconciler.portrait import EMPTY, portrait
from reconciler.rates import Count, Rate, Reading, Window, rate
from reconciler.shortage import follow as follow_short
from reconciler.stating import build
from reconciler.table import Slots
from reconciler.vrrp import Vrrp
from tests.support.lab import ROOT
from tests.support.statuses import NOW, PEER, SERVICE, facts, without_readings

SCHEMA = json.loads((ROOT / "schemas/status.schema.json").read_text())
WWW = next(iter(facts().roster.services.values())).service
NOTHING_LOADED = Facts("edge", NOW, 0, facts().state, None, type(facts().roster)())


@pytest.mark.parametrize("found", [facts(), without_readings(), NOTHING_LOADED], ids=range(3))
def test_every_document_is_what_the_schema_says(found: Facts) -> None:
    document = json.loads(json.dumps(build(found).document()))
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.validate(document, SCHEMA, format_checker=checker)


def test_the_schema_refuses_what_is_no_status() -> None:
    document = build(facts()).document()
    for broken in (
        document | {"format_version": "2.0"},
        document | {"surprise": 1},
        {key: value for key, value in document.items() if key != "conditions"},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, SCHEMA)


def test_equal_facts_make_equal_statuses() -> None:
    assert build(facts()) == build(facts())


def test_backends_say_what_decides_about_them() -> None:
    forced, up, draining = build(facts()).pools[0].backends
    assert (forced.override, forced.usable, forced.health.state) == ("down", False, "down")
    assert (forced.health.reason, forced.health.latency_ms) == ("connect-timeout", 1000.0)
    assert (up.override, up.usable, up.share) == (None, True, pytest.approx(2 / 3))
    assert (draining.state, draining.reason, draining.share) == ("drain", "kernel upgrade", 0)


def test_an_entry_of_another_incarnation_is_unknown() -> None:
    found = facts()
    other = abi.Health(id=found.roster.backends["web", "web2"] + (1 << 20), state=1)
    status = build(replace(found, health={**found.health, 2: other}))
    assert status.pools[0].backends[1].health.state == "unknown"


def test_counters_are_of_the_name_and_rates_of_the_time_between() -> None:
    backend = build(facts()).pools[0].backends[0]
    assert backend.counters == Count(130, 4000, 13, 24, 2400), "what it counted elsewhere included"
    assert backend.rates == Rate(4.0, 400.0, 0.4, 3.2, 320.0)
    assert build(without_readings()).pools[0].backends[0].rates is None


def test_drains_have_flows_and_time_left() -> None:
    (drain,) = build(facts()).drains
    assert (drain.backend, drain.flows_left) == ("web/web3", 2)
    assert drain.seconds_left == pytest.approx(10 * 2**30 / 1e9, abs=0.1)


def test_who_serves() -> None:
    found = facts()
    assert build(found).services[0].serving == "web"
    down = {at: abi.Health(id=entry.id, state=2) for at, entry in found.health.items()}
    alone = build(replace(found, health=down)).services[0]
    assert (alone.serving, alone.fail_open) == ("web", True), "no pool is usable: the first, whole"


def test_a_short_pool_does_not_serve() -> None:
    found = facts()
    short = abi.Service.from_bytes(bytes(found.state.services[1]))
    short.short_pools = 1
    state = type(found.state)(
        backends=found.state.backends, tables=found.state.tables, services={1: short}
    )
    assert build(replace(found, state=state)).services[0].fail_open


def test_a_short_pool_is_told_with_what_it_lacks_and_since_when() -> None:
    found = facts()
    short = abi.Service.from_bytes(bytes(found.state.services[1]))
    short.short_pools = 1
    part = replace(found.roster.services[SERVICE], service=replace(WWW, panic=60))
    found = replace(
        found,
        state=type(found.state)(backends=found.state.backends, services={1: short}),
        roster=replace(found.roster, services={SERVICE: part}),
    )
    since = follow_short({}, replace(found, now=NOW - 60))
    kept = follow_short(since, found)
    assert list(kept.values()) == [NOW - 60], "since it was first seen"
    status = build(replace(found, short_since=kept))
    (told,) = status.services[0].short
    assert (told.name, told.usable, told.backends) == ("web/ipv4", 1, 2), "one drains"
    assert (told.panic_at, told.serves_at) == (2, 2)
    text = status_text.render(json.loads(json.dumps(status.document())))
    assert "web/ipv4" in text
    assert "1 of 2 usable  below 2  serves again with 2  since 2027-01-15 07:59:00Z" in text
    assert follow_short(kept, facts()) == {}


# ---- tables


def test_a_digest_is_over_names_not_ids() -> None:
    one = portrait(Slots("I", [5, 6, 6]), {5: "a", 6: "b"})
    assert one.digest == portrait(Slots("I", [77, 3, 3]), {77: "a", 3: "b"}).digest
    assert one.digest != portrait(Slots("I", [5, 6, 6]), {5: "b", 6: "a"}).digest
    assert one.digest != portrait(Slots("I", [5, 5, 6]), {5: "a", 6: "b"}).digest
    assert one.shares == {5: pytest.approx(1 / 3), 6: pytest.approx(2 / 3)}
    assert portrait(None, {}) == EMPTY


# ---- conditions

WELL = Observed(now=NOW, converged=True, interfaces=("eth0",), attached=("eth0",))


def holds(observed: Observed) -> dict[Type, tuple[Holds, str]]:
    return {one.type: (one.status, one.reason) for one in judge(observed)}


def test_every_condition_is_judged_and_well_when_nothing_is_wrong() -> None:
    judged = judge(WELL)
    assert [one.type for one in judged] == list(Type)
    assert all(one.well for one in judged)


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"converged": False}, Type.READY, (Holds.FALSE, "NoPassYet")),
        ({"attached": ()}, Type.READY, (Holds.FALSE, "NotAttached")),
        ({"attached": ()}, Type.DATAPLANE_HEALTHY, (Holds.FALSE, "NotAttached")),
        ({"rejected": Trouble("Rejected", "x")}, Type.CONFIG_VALID, (Holds.FALSE, "Rejected")),
        ({"rejected": Trouble("Rejected", "x")}, Type.READY, (Holds.TRUE, "Forwarding")),
        ({"source": Trouble("FileEmpty", "x")}, Type.SOURCE_FRESH, (Holds.FALSE, "FileEmpty")),
        ({"apply": Trouble("MapFull", "x")}, Type.IN_SYNC, (Holds.FALSE, "MapFull")),
        ({"refused": ("2 of 3",)}, Type.IN_SYNC, (Holds.FALSE, "RemovalsRefused")),
        ({"checked": True}, Type.HEALTH_FRESH, (Holds.FALSE, "NoReport")),
        (
            {"checked": True, "reported_at": NOW - 16},
            Type.HEALTH_FRESH,
            (Holds.FALSE, "StaleReport"),
        ),
        ({"checked": True, "reported_at": NOW - 14}, Type.HEALTH_FRESH, (Holds.TRUE, "Reporting")),
        (
            {"checked": True, "reported_at": NOW, "checker": ("no files",)},
            Type.HEALTH_FRESH,
            (Holds.FALSE, "CheckerInTrouble"),
        ),
        ({"stalled": Trouble("Fight", "x")}, Type.STALLED, (Holds.TRUE, "Fight")),
        ({"suspended": Trouble("Suspended", "x")}, Type.SUSPENDED, (Holds.TRUE, "Suspended")),
        ({"overrides": ("a",)}, Type.OVERRIDDEN, (Holds.TRUE, "ForcedByOperator")),
    ],
)
def test_conditions(change: dict[str, object], kind: Type, said: tuple[Holds, str]) -> None:
    assert holds(replace(WELL, **change))[kind] == said


def test_since_is_when_the_status_changed_not_the_reason() -> None:
    first = follow((), judge(replace(WELL, apply=Trouble("MapFull", ""))), 100)
    second = follow(first, judge(replace(WELL, apply=Trouble("OSError", ""))), 200)
    third = follow(second, judge(WELL), 300)
    in_sync = [
        next(one for one in each if one.type is Type.IN_SYNC) for each in (first, second, third)
    ]
    assert [(one.reason, one.since) for one in in_sync] == [
        ("MapFull", 100),
        ("OSError", 100),
        ("Converged", 300),
    ]
    assert all(one.since == 100 for one in third if one.type is not Type.IN_SYNC)


# ---- rates


def test_a_window_compares_with_what_was_a_few_seconds_ago() -> None:
    window = Window(5)
    assert window.oldest == window.newest == Reading()
    for at in range(20):
        window.add(Reading(at=float(at)))
    assert (window.newest.at, window.oldest.at) == (19, 14)


@pytest.mark.parametrize(
    ("new", "old", "seconds", "packets"),
    [
        (Count(packets=30), Count(packets=10), 5, 4.0),
        (Count(packets=3), Count(packets=10), 1, 3.0),  # it began anew
        (None, None, 5, 0.0),
    ],
)
def test_rates(new: Count | None, old: Count | None, seconds: float, packets: float) -> None:
    found = rate(new, old, seconds)
    assert found is not None
    assert found.packets == packets


def test_no_rate_without_time_between() -> None:
    assert rate(Count(packets=3), None, 0) is None


# ---- for people


def test_text_says_what_is_wrong_first_and_everything_after() -> None:
    text = status_text.render(build(facts()).document())
    for word in (
        "generation 7, commit c0ffee",
        "generation 8, commit beef",
        "rejected",
        "eth1 (generic, virtio)",
        "ConfigValid",
        "POOL web: 1 of 3 get new flows",
        "forced down",
        "until 2027-01-15 08:30:00Z; connect-timeout since",
        "kernel upgrade",
        "SUSPENDED until",
        "router is replaced",
        "backends entry 2: different",
        "3 of 4 backends would be removed",
    ):
        assert word in text, word
    assert text.index("CONDITION") < text.index("SERVICE") < text.index("VERDICT")


def test_colour_changes_no_column() -> None:
    document = build(facts()).document()
    painted = status_text.render(document, colour=True)
    for paint in (status_text.GREEN, status_text.RED, status_text.PLAIN):
        assert paint in painted
        painted = painted.replace(paint, "")
    assert painted == status_text.render(document)


def test_a_status_of_nothing_is_a_text_too() -> None:
    text = status_text.render(build(NOTHING_LOADED).document())
    assert "nothing yet" in text
    assert "no reconciler runs" in text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (1500, "1.5k"), (2.5e6, "2.5M"), (3e9, "3G")]
)
def test_numbers_are_short(number: float, text: str) -> None:
    assert status_text._short(number) == text


def test_conditions_of_the_document_are_those_of_the_facts() -> None:
    one = Condition(Type.READY, Holds.FALSE, "NoPassYet", "", NOW)
    (told,) = build(replace(facts(), conditions=(one,))).conditions
    assert (told.type, told.status, told.well, str(told.since)[:4]) == (
        "Ready",
        "False",
        False,
        "2027",
    )


def test_flows_that_are_kept_have_no_time_left_to_tell() -> None:
    found = facts()
    kept = abi.Backend.from_bytes(bytes(found.state.backends[3]))
    kept.until = KEPT
    state = replace(found.state, backends={**found.state.backends, 3: kept})
    (drain,) = build(replace(found, state=state)).drains
    assert (drain.flows_left, drain.seconds_left) == (2, None)


def test_the_headline_says_what_forwards_and_what_is_wrong() -> None:
    line = headline(facts())
    assert line.startswith("generation ")
    assert "1 services, " in line
    assert "Rejected: " in line
    assert headline(None) == "looking at the maps for the first time"


def test_one_interface_is_enough_to_have_started_and_none_is_not() -> None:
    assert has_started(facts(), verified=True)
    assert not has_started(facts(), verified=False)
    assert not has_started(replace(facts(), attached=()), verified=True)
    assert not has_started(None, verified=True)


def test_role_and_peers_are_shown_to_people() -> None:
    text = status_text.render(json.loads(json.dumps(build(facts()).document())))
    assert "edge  backup  145       since 2027-01-15 07:59:30Z" in text
    assert (
        "lb2   differs for 75 s  heard 2027-01-15 07:59:58Z  commit c0ffee here, beef there" in text
    )
    gone = replace(facts(), vrrp=Vrrp(running=False), peers=(replace(PEER, identity=None, heard=None, trouble="refused"),))  # fmt: skip
    text = status_text.render(json.loads(json.dumps(build(gone).document())))
    assert "keepalived does not run" in text
    assert "lb2   silent  http://10.1.9.2:9160  refused" in text
    alone = status_text.render(build(replace(facts(), vrrp=None, peers=())).document())
    assert "VRRP" not in alone
    assert "PEER" not in alone
