"""What a plan says."""

import json
import re
from pathlib import Path

import jsonschema
import pytest

from bpf import abi
from reconciler import config as configuration
from reconciler import ids, report, report_text
from reconciler.dataplane import State, Where
from reconciler.drift import FORCED
from reconciler.report import Plan
from reconciler.saved import Bound, Unreadable, bound, live_digest, stale
from tests.support.configs import NODE
from tests.support.fake_dataplane import FakeMaps
from tests.support.looks import live_of, view_of

OLD = """\
apiVersion: evenkeel/v1
guardrails: {removed-services: 100%, removed-backends: 100%}
pools:
  web:
    backends:
      web1: {address: 10.0.0.1, port: 8080}
      web2: {address: 10.0.0.2, port: 8080}
  dns: {backends: {dns1: {address: 10.0.0.53, port: 53}}}
services:
  www: {addresses: [192.0.2.1], ports: [80/tcp], pools: [web]}
  old: {addresses: [192.0.2.2], ports: [53/udp], pools: [dns]}
"""
NEW = (
    OLD.replace("10.0.0.2, port: 8080", "10.0.0.2, port: 8080, state: drain")
    .replace("80/tcp]", "80/tcp, 443/tcp]")
    .replace("  old: {addresses: [192.0.2.2]", "  new: {addresses: [192.0.2.3]")
)
DIGEST = b"\1" * 32


def plan_of(before: str, after: str, *, same: bool = False) -> tuple[Plan, FakeMaps]:
    maps = FakeMaps()
    old, new = configuration.load(before, "lb.yaml"), configuration.load(after, "lb.yaml")
    maps.apply(view_of(old, maps).ops)
    return described(maps, old, new, same=same), maps


def described(
    maps: FakeMaps, old: configuration.Config, new: configuration.Config, *, same: bool
) -> Plan:
    meta = abi.Meta(generation=7, digest=tuple(DIGEST if same else bytes(32)))
    source = ("lb.yaml", DIGEST)
    return report.describe(
        view_of(new, maps), live_of(maps), source, (old, new), NODE.table_size, meta
    )


def test_a_plan_in_words() -> None:
    plan, _ = plan_of(OLD, NEW)
    text = report_text.text(plan)
    assert "live     generation 7" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "+ service new/ipv4 192.0.2.3:53/udp lb.yaml:11" in lines
    assert "~ service www/ipv4 + 192.0.2.1:443/tcp lb.yaml:10" in lines
    assert "~ backend web/web2 state up -> drain lb.yaml:7" in lines
    assert any(line.startswith("- service old/ipv4 192.0.2.2:53/udp") for line in lines)
    assert any("of 7 slots move" in line for line in lines)
    assert "Plan: 1 to add, 1 to change, 1 to remove, 0 drift to repair." in lines
    assert lines[-1] == "Dry run: nothing was changed."


def test_slots_that_move_are_split_into_unavoidable_and_collateral() -> None:
    plan, _ = plan_of(OLD, NEW)
    (www,) = [change for change in plan.changes if change.name == "www/ipv4"]
    (pool,) = www.parts
    moved = pool.impact
    assert moved["moved"] == moved["unavoidable"] + moved["collateral"]
    assert moved["unavoidable"] in (3, 4), "web2's half of seven"


def test_nothing_to_do_says_so() -> None:
    plan, _ = plan_of(OLD, OLD)
    assert not plan.changes
    assert "no changes" in report_text.text(plan)
    assert sum(plan.writes.values()) == sum(plan.deletes.values()) == 0


def test_two_plans_of_one_change_are_equal() -> None:
    assert report_text.text(plan_of(OLD, NEW)[0]) == report_text.text(plan_of(OLD, NEW)[0])


def test_drift_is_told_apart_from_change() -> None:
    config = configuration.load(OLD)
    maps = FakeMaps()
    maps.apply(view_of(config, maps).ops)
    maps.content["backends"].pop(1)
    for key in [k for k in maps.content["frontends4"] if k.port == 80]:
        del maps.content["frontends4"][key]
    plan = described(maps, config, config, same=True)
    assert not plan.changes
    said = {(change.kind, change.name, change.detail) for change in plan.drift}
    assert ("frontends4", "192.0.2.1:80/tcp", "missing") in said
    assert "! drift" in report_text.text(plan)


def test_the_document_is_versioned_and_complete() -> None:
    document = plan_of(OLD, NEW)[0].document()
    assert document["format_version"] == "1.0"
    assert document["live"]["generation"] == 7
    kinds = {(change["action"], change["name"]) for change in document["changes"]}
    assert kinds == {("create", "new/ipv4"), ("update", "www/ipv4"), ("delete", "old/ipv4")}
    assert document["map_deletes"]["frontends4"] > 0


# ---- the document, and what people see of it

SCHEMA = json.loads((Path(__file__).parents[2] / "schemas/plan.schema.json").read_text())
PLANS = [(OLD, NEW), (OLD, OLD), (NEW, OLD)]


@pytest.mark.parametrize(("before", "after"), PLANS)
def test_every_document_is_what_the_schema_says(before: str, after: str) -> None:
    document = json.loads(json.dumps(plan_of(before, after)[0].document()))
    jsonschema.validate(document, SCHEMA)


def test_the_schema_refuses_what_is_no_plan() -> None:
    document = plan_of(OLD, NEW)[0].document()
    for broken in (
        document | {"format_version": "2.0"},
        document | {"surprise": 1},
        {key: value for key, value in document.items() if key != "drift"},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, SCHEMA)


def test_colour_says_nothing_that_signs_and_words_do_not() -> None:
    plan, _ = plan_of(OLD, NEW)
    plain, coloured = report_text.text(plan), report_text.text(plan, colour=True)
    assert coloured != plain
    assert re.sub(r"\033\[\d+m", "", coloured) == plain


def test_the_order_of_the_file_is_not_the_order_of_the_plan() -> None:
    services = NEW[NEW.index("  www:") :].splitlines(keepends=True)
    shuffled = NEW[: NEW.index("  www:")] + "".join(reversed(services))
    assert shuffled != NEW
    said = [report_text.text(plan_of(OLD, text)[0]) for text in (NEW, shuffled)]
    assert len({re.sub(r"lb.yaml:\d+", "", text) for text in said}) == 1


def test_what_a_removed_service_means_for_its_clients_is_said() -> None:
    plan, _ = plan_of(OLD, NEW)
    assert f"! {report.PASSED}" in report_text.text(plan)


def test_room_in_the_maps_is_said_when_it_changes() -> None:
    more = OLD.replace("web2: {", "web3: {address: 10.0.0.3, port: 8080}\n      web2: {")
    plan, _ = plan_of(OLD, more)
    assert "Guard: backends 3 -> 4 of 128" in report_text.text(plan)


def test_live_flows_of_the_backends_concerned_are_counted() -> None:
    maps = FakeMaps()
    old, new = configuration.load(OLD, "lb.yaml"), configuration.load(NEW, "lb.yaml")
    maps.apply(view_of(old, maps).ops)
    entry = next(e for e in maps.read().backends.values() if bytes(e.addr)[:4] == b"\n\0\0\2")
    plan = report.describe(
        view_of(new, maps), live_of(maps), ("lb.yaml", DIGEST), (old, new), NODE.table_size,
        abi.Meta(generation=7), flows={ids.index(entry.id): 12},
    )  # fmt: skip
    assert plan.live_flows == 12
    assert "12 live flows" in report_text.text(plan)


# ---- saved


def bound_now(state: State, **other: str) -> Bound:
    return Bound(
        **{"instance": "a", "config": "c", "node": "n", "maps": live_digest(state)} | other
    )


def test_health_neighbours_and_overrides_make_no_plan_stale() -> None:
    _, maps = plan_of(OLD, OLD)
    before = bound_now(maps.read())
    entry = next(iter(maps.content[Where.BACKENDS].values()))
    entry.dmac, entry.ifindex, entry.flags = (2, 0, 0, 0, 0, 9), 7, entry.flags | FORCED
    next(iter(maps.content[Where.SERVICES].values())).short_pools = 1
    maps.content[Where.SPARES].clear()
    assert stale(before, bound_now(maps.read())) == []


SIX = '  six: {addresses: ["2001:db8::1"], ports: [80/tcp], pools: [web], forward: ipip}\n'


@pytest.mark.parametrize("where", [Where.BACKENDS, Where.TABLES, Where.FRONTENDS6, Where.PREFILTER])
def test_anything_else_in_the_maps_makes_it_stale(where: Where) -> None:
    _, maps = plan_of(OLD + SIX, OLD)
    before = bound_now(maps.read())
    del maps.content[where][next(iter(maps.content[where]))]
    (reason,) = stale(before, bound_now(maps.read()))
    assert reason.startswith("the maps do not say any more")


def test_another_file_node_or_instance_makes_it_stale() -> None:
    then = bound_now(State())
    for name, said in (
        ("config", "configuration"),
        ("node", "node.yaml"),
        ("instance", "instance"),
    ):
        (reason,) = stale(then, bound_now(State(), **{name: "x"}))
        assert said in reason


def test_only_a_saved_plan_of_this_format_is_taken() -> None:
    tied = bound_now(State())
    good = {"format_version": "1.0", "plan_id": tied.plan_id, "bound": tied.document()}
    assert bound(good) == tied
    for wrong in (
        [],
        {},
        good | {"format_version": "2.0"},
        good | {"bound": {}},
        good | {"bound": tied.document() | {"allow_removals": True}},
    ):
        with pytest.raises(Unreadable):
            bound(wrong)


LEAVING = OLD.replace("      web2: {address: 10.0.0.2, port: 8080}\n", "").replace(
    "port: 53}", "port: 53, state: drain}"
)


def test_the_progress_of_drains_is_said_whether_the_file_names_them_or_not() -> None:
    maps = FakeMaps()
    old, new = configuration.load(OLD), configuration.load(LEAVING)
    maps.apply(view_of(old, maps).ops)
    maps.live = {entry.id & 0xFFFFF: 3 for entry in maps.read().backends.values()}
    said = described(maps, old, new, same=False).drains
    assert said == ("dns/dns1: 3 live flows, 302 s left", "web/web2: 3 live flows, 302 s left")
    assert f"Drain: {said[0]}" in report_text.text(described(maps, old, new, same=False))


def test_the_end_of_a_drain_is_no_drift() -> None:
    maps = FakeMaps()
    old, new = configuration.load(OLD), configuration.load(LEAVING)
    maps.apply(view_of(old, maps).ops)
    maps.live = {entry.id & 0xFFFFF: 3 for entry in maps.read().backends.values()}
    maps.apply(view_of(new, maps).ops)
    ends = view_of(new, maps, now=1000).ops
    assert {op.where for op in ends} == {Where.BACKENDS, Where.PREFILTER}
    assert list(report.drift(ends, maps.read())) == []
