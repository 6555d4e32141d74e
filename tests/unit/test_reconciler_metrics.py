"""The exposition is one that a scraper takes, and every number in it is one of the status."""

import itertools
import json
import re
from dataclasses import replace

import pytest

from bpf.abi import Verdict
from reconciler import metrics
from reconciler.conditions import Type
from reconciler.facts import Facts
from reconciler.stating import build
from tests.support.exposition import names, samples
from tests.support.lab import ROOT
from tests.support.statuses import facts, without_readings

VERDICTS = [verdict.name.lower() for verdict in Verdict]


def rendered(found: Facts) -> str:
    return metrics.render(build(found), found.reading.cpus, VERDICTS)


@pytest.fixture(scope="module")
def found() -> dict[str, float]:
    return samples(rendered(facts()))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("evenkeel_generation", 7),
        ('evenkeel_verdict_packets_total{verdict="forwarded"}', 3 * Verdict.FORWARDED * 2),
        ('evenkeel_cpu_verdict_packets_total{cpu="1",verdict="forwarded"}', 3 * Verdict.FORWARDED),
        ('evenkeel_service_flows_total{service="www"}', 3),
        ('evenkeel_backend_packets_total{pool="web",backend="web1"}', 130),
        ('evenkeel_backend_reply_bytes_total{pool="web",backend="web2"}', 2400),
        ('evenkeel_backend_usable{pool="web",backend="web1"}', 0),
        ('evenkeel_backend_healthy{pool="web",backend="web2"}', 1),
        ('evenkeel_backend_live_flows{pool="web",backend="web2"}', 5),
        ('evenkeel_backend_check_seconds{pool="web",backend="web1"}', 1),
        ('evenkeel_backend_checks_total{pool="web",backend="web1",result="failed"}', 5),
        ('evenkeel_backend_check_reasons_total{pool="web",backend="web1",reason="refused"}', 2),
        ('evenkeel_backend_health_changes_total{pool="web",backend="web1"}', 3),
        ("evenkeel_checker_own_trouble_total", 1),
        ("evenkeel_checker_lateness_seconds", 0.0125),
        ('evenkeel_pool_usable_backends{pool="web"}', 1),
        ('evenkeel_service_serving{service="www",pool="web"}', 1),
        ("evenkeel_live_flows", 10),
        ('evenkeel_condition{type="ConfigValid"}', 0),
        ('evenkeel_condition{type="Overridden"}', 1),
        ('evenkeel_reconcile_total{result="applied"}', 7),
        ("evenkeel_map_writes_total", 99),
        ("evenkeel_suspended", 1),
        ("evenkeel_drift", 1),
        ('evenkeel_drain_flows{backend="web/web3"}', 2),
        ('evenkeel_attached{interface="eth1",mode="generic"}', 1),
    ],
)
def test_a_number_is_the_status_s(found: dict[str, float], name: str, value: float) -> None:
    assert found[name] == value


def test_the_histogram_is_cumulative_and_ends_with_everything(found: dict[str, float]) -> None:
    buckets = [v for k, v in found.items() if k.startswith("evenkeel_processing_seconds_bucket")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == found["evenkeel_processing_seconds_count"] == 9
    assert found['evenkeel_processing_seconds_bucket{le="4e-09"}'] == 3
    assert found['evenkeel_processing_seconds_bucket{le="8e-09"}'] == 9


def test_what_is_not_known_is_not_said() -> None:
    healths = {at: entry for at, entry in facts().health.items() if at != 2}
    found = samples(rendered(replace(facts(), health=healths, daemon=None)))
    assert 'evenkeel_backend_healthy{pool="web",backend="web2"}' not in found
    assert not any(name.startswith("evenkeel_reconcile") for name in found)


def test_roles_and_peers_are_ones_and_zeros(found: dict[str, float]) -> None:
    assert found['evenkeel_vrrp_role{vrrp="edge",role="backup"}'] == 1
    assert found['evenkeel_vrrp_role{vrrp="edge",role="master"}'] == 0
    assert found['evenkeel_vrrp_priority{vrrp="edge"}'] == 145
    assert found['evenkeel_peer_agrees{peer="lb2"}'] == 0
    assert found['evenkeel_peer_answers{peer="lb2"}'] == 1


def test_before_the_first_reading_it_is_still_an_exposition() -> None:
    assert samples(rendered(without_readings()))["evenkeel_generation"] == 7


@pytest.mark.parametrize("evil", ['a"b', "a\\b", "a\nb"])
def test_labels_cannot_break_out(evil: str) -> None:
    told = replace(facts().attached[0], interface=evil)
    found = samples(rendered(replace(facts(), attached=(told,))))
    assert sum(name.startswith("evenkeel_attached") for name in found) == 1


# ---- what is built on them

GRAFANA = ROOT / "examples/grafana"
METRIC = re.compile(r"\bevenkeel_\w+")


@pytest.mark.parametrize("file", ["evenkeel.json", "README.md"])
def test_board_and_alerts_use_metrics_that_there_are(file: str) -> None:
    used = set(METRIC.findall((GRAFANA / file).read_text()))
    there = names(rendered(facts()))
    assert len(used) > 2
    assert used - there == set()


def test_what_can_be_counted_is_on_the_board() -> None:
    """Whoever adds a metric of checks shows it too, or says here why not."""
    there = {name for name in names(rendered(facts())) if "check" in name}
    shown = set(METRIC.findall((GRAFANA / "evenkeel.json").read_text()))
    assert there - shown == {"evenkeel_checker_report_timestamp_seconds"}, "a condition says it"


def test_the_board_is_one_that_grafana_imports() -> None:
    board = json.loads((GRAFANA / "evenkeel.json").read_text())
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 10
    places = [panel["gridPos"] for panel in panels]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in itertools.combinations(places, 2):
        apart = (
            one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        )  # fmt: skip
        assert apart, (one, other)


def test_board_and_alerts_name_conditions_that_there_are() -> None:
    text = (GRAFANA / "evenkeel.json").read_text() + (GRAFANA / "README.md").read_text()
    named = {
        word
        for found in re.findall(r'type[=!]~?\\?"([A-Za-z|]+)', text)
        for word in found.split("|")
    }
    assert named
    assert named <= {kind.value for kind in Type}


def test_every_condition_has_an_alert() -> None:
    """Whoever adds one says what is done about it; DataplaneHealthy is part of Ready."""
    text = (GRAFANA / "README.md").read_text()
    alerted = {
        word for found in re.findall(r'type=~?"([A-Za-z|]+)"', text) for word in found.split("|")
    }
    assert {kind.value for kind in Type} - alerted == {"DataplaneHealthy"}
