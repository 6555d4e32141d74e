"""The `tests:` of lb.yaml through the program itself: it and the model agree, and nothing is left of it."""

from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpf import errors, kernel
from bpf.abi import Verdict
from reconciler import config as configuration
from reconciler.expect import Outcome, by_model, stage
from reconciler.model import Config, Expectation, Packet, Proto
from reconciler.model import Test as Trial
from reconciler.trials import _by_program, tried
from tests.bpf.test_reconciler_maps import (  # noqa: F401
    QUICK,
    SYN,
    WAN_LAN,
    Box,
    box,
    command,
    dump,
    mac_of,
)
from tests.support.configs import NODE, VIPS, configs

SOURCES = {4: ip_address("198.51.100.7"), 6: ip_address("2001:db8:7::1")}


@pytest.fixture(autouse=True)
def _allowed() -> None:
    try:
        kernel.Instance.unpinned("ek", kernel.Sizes()).close()
    except (errors.NotPermitted, errors.Unsupported) as error:
        pytest.skip(str(error))


def packets(sport: int) -> list[Packet]:
    ports = ((80, Proto.TCP), (443, Proto.TCP), (53, Proto.UDP), (9999, Proto.TCP), (9, Proto.UDP))
    return [
        Packet(SOURCES[vip.version], sport, vip, port, proto)
        for vip in (*VIPS, ip_address("192.0.2.99"))
        for port, proto in ports
    ]


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(configs(), st.integers(1024, 65535))
def test_the_model_and_the_program_never_differ(config: Config, sport: int) -> None:
    """The packets share a source port: none must be in the way of the next."""
    staged = stage(config, NODE)
    sent = packets(sport)
    for packet, said in zip(sent, _by_program(staged, sent), strict=True):
        expected = by_model(staged, packet)
        if said.service and not config.services[said.service].balance.method.hashes:
            expected = replace(expected, backend=said.backend)  # drawn
        assert said == expected, packet


DOWN = """\
apiVersion: evenkeel/v1
pools:
  web:
    backends:
      a: {address: 10.0.0.1}
      b: {address: 10.0.0.2, state: down}
      c: {address: 10.0.0.3, weight: 50}
      d: {address: 10.0.0.4}
services:
  www: {addresses: [192.0.2.1], ports: [80/tcp], pools: [web]}
  sticky: {addresses: [192.0.2.2], ports: [80/tcp], pools: [web], balance: {hash: source-port}}
"""


def test_past_a_backend_that_is_down_both_go_the_same_way() -> None:
    staged = stage(configuration.load(DOWN), replace(NODE, table_size=251))
    sent = [
        Packet(SOURCES[4] + client, 41000, vip, 80, Proto.TCP)
        for client in range(60)
        for vip in VIPS[:2]
    ]
    said = _by_program(staged, sent)
    assert said == [by_model(staged, packet) for packet in sent]
    assert {one.backend for one in said} == {"web/a", "web/c", "web/d"}


def test_a_test_is_run_by_the_program_and_leaves_nothing_behind() -> None:
    before = kernel.instances()
    config = configuration.load(
        """\
apiVersion: evenkeel/v1
pools: {web: {backends: {web1: {address: 10.0.0.1, port: 80}}}}
services: {www: {addresses: [192.0.2.10], ports: [80/tcp, 443/tcp], pools: [web], gate: 1}}
tests:
  - {name: http, packet: "198.51.100.7:41000 -> 192.0.2.10:80/tcp", expect: {backend: web/web1}}
  - {name: https, packet: "198.51.100.7:41000 -> 192.0.2.10:443/tcp", expect: {backend: web/web1}}
  - {name: wrong, packet: "198.51.100.7:41000 -> 192.0.2.10:443/tcp", expect: {verdict: not_ours}}
"""
    )
    result = tried(config, NODE)
    assert str(result) == "3 tests by the program itself, in a shadow"
    assert [problem.mark.line for problem in result.problems] == [7]
    assert kernel.instances() == before


def test_the_outcome_is_the_programs_not_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reconciler.trials.by_model", None)
    packet = Packet(SOURCES[4], 1, VIPS[0], 80, Proto.TCP)
    config = Config({}, {}, tests=(Trial("t", packet, Expectation(verdict="not_ours")),))
    assert tried(config, NODE).problems == ()
    assert _by_program(stage(config, NODE), [packet]) == [Outcome("not_ours")]


def test_a_file_that_fails_its_tests_is_applied_nowhere(box: Box, tmp_path: Path) -> None:  # noqa: F811
    test = (
        'tests: [{name: t, packet: "198.51.100.7:1 -> 192.0.2.10:80/tcp", expect: {pool: web}}]\n'
    )
    lb = tmp_path / "lb.yaml"
    lb.write_text(QUICK + test)
    (tmp_path / "node.yaml").write_text(WAN_LAN)
    box.neighbour("10.1.2.101", mac_of(1))
    command(box, tmp_path, "--once")
    before = dump(box)
    lb.write_text((QUICK + test).replace("80/tcp]", "81/tcp]"))
    for mode in ("--dry-run", "--once"):
        command(box, tmp_path, mode, ok=(3,))
    assert dump(box) == before
    assert box.send(SYN).verdict == Verdict.FORWARDED
