"""What a plan says."""

from bpf import abi
from reconciler import config as configuration
from reconciler import report
from reconciler.report import Plan
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
    text = report.text(plan)
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
    assert "no changes" in report.text(plan)
    assert sum(plan.writes.values()) == sum(plan.deletes.values()) == 0


def test_two_plans_of_one_change_are_equal() -> None:
    assert report.text(plan_of(OLD, NEW)[0]) == report.text(plan_of(OLD, NEW)[0])


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
    assert "! drift" in report.text(plan)


def test_the_document_is_versioned_and_complete() -> None:
    document = plan_of(OLD, NEW)[0].document()
    assert document["format_version"] == "1.0"
    assert document["live"]["generation"] == 7
    kinds = {(change["action"], change["name"]) for change in document["changes"]}
    assert kinds == {("create", "new/ipv4"), ("update", "www/ipv4"), ("delete", "old/ipv4")}
    assert document["map_deletes"]["frontends4"] > 0
