"""`via: service` from lb.yaml to the probes map and targets.json, and what of it cannot be."""

import json
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpf import abi
from healthcheck.exchange import Reason, Result, failed
from healthcheck.health import Outcome
from healthcheck.probes import Attempt
from healthcheck.targets import TargetsError, parse
from healthcheck.ways import Leg, Ways
from reconciler import encode, ways
from reconciler.compile import Desired, Surroundings, compile_config
from reconciler.config import load
from reconciler.dataplane import State
from reconciler.problems import Rejected
from reconciler.published import targets
from tests.support.configs import NODE as PLAIN_NODE
from tests.support.fake_dataplane import ROOM
from tests.support.health import NEUTRAL, PASS, ByHand, backend, document

SCHEMA = json.loads(Path("schemas/targets.schema.json").read_text("utf-8"))
NODE = replace(
    PLAIN_NODE,
    tunnel_source={4: ip_address("10.0.0.254"), 6: ip_address("fd00::254")},
    gue_port=6090,
)
LB = """\
apiVersion: evenkeel/v1
checks:
  alive: {%(check)s, via: service}
pools:
  web:
    check: alive
    backends:
      web1: {address: 10.0.0.1}
      web2: {address: "fd00::2"%(web2)s}
services:
  first: {addresses: [192.0.2.1, "2001:db8::1"], ports: [443/udp, 80/tcp, 81/tcp], pools: [web], forward: %(forward)s}
  second: {addresses: [192.0.2.1, 192.0.2.2, "2001:db8::2"], ports: [%(port)s], pools: [web], forward: gue}
"""
GOOD = {"check": "type: http", "web2": "", "forward": "dsr", "port": "8080/tcp"}


def text(**changes: str) -> str:
    return LB % {**GOOD, **changes}


def compiled(content: str, actual: State | None = None) -> Desired:
    return compile_config(load(content), NODE, actual or State(), Surroundings(), ROOM)


def published(content: str, **options: bool) -> dict[str, dict[str, Any]]:
    """targets.json, by backend."""
    told = json.loads(targets(load(content), compiled(content), "lab", Path("/map"), **options))
    jsonschema.validate(told, SCHEMA)
    assert len(parse(told).backends) == len(told["backends"])
    return {one["name"].partition("/")[2]: one for one in told["backends"]}


def test_each_address_of_each_service_is_a_way_to_the_backends_of_its_family() -> None:
    via = published(text())["web1"]["via"]
    assert [(way["service"], way["address"], way["port"]) for way in via] == [
        ("first", "192.0.2.1", 80),
        ("second", "192.0.2.1", 8080),
        ("second", "192.0.2.2", 8080),
    ]
    assert [way["address"] for way in published(text())["web2"]["via"]] == [
        "2001:db8::1",
        "2001:db8::2",
    ]
    assert len({way["mark"] for one in published(text()).values() for way in one["via"]}) == 5


def test_the_map_says_how_packets_with_each_mark_are_sent() -> None:
    desired = compiled(text())
    assert {mark >> 20 for mark in desired.state.probes} == {abi.ProbeLayout.MARK}
    told = {
        (str(encode.address(one.backend, one.family)), str(encode.address(one.service, one.family))): (
            abi.Forward(one.forward).name,
            one.gue_port,
            str(encode.address(one.source, one.family)),
        )
        for one in desired.state.probes.values()
        if one.family == 6 or one.forward == abi.Forward.GUE
    }  # fmt: skip
    assert told == {
        ("10.0.0.1", "192.0.2.1"): ("GUE", 6090, "10.0.0.254"),
        ("10.0.0.1", "192.0.2.2"): ("GUE", 6090, "10.0.0.254"),
        ("fd00::2", "2001:db8::1"): ("DSR", 0, "::"),
        ("fd00::2", "2001:db8::2"): ("GUE", 6090, "fd00::254"),
    }


@pytest.mark.parametrize(
    ("changes", "ports"),
    [
        ({"check": "type: http, port: 9000"}, {9000}),
        ({"check": "type: udp, send: x", "port": "53/udp"}, {443, 53}),
        ({"port": '"*/tcp", 22/tcp', "check": "type: tcp, port: 7"}, {7}),
    ],
)
def test_the_port_is_the_checks_own_or_the_services_first_of_its_protocol(
    changes: dict[str, str], ports: set[int]
) -> None:
    assert {way["port"] for way in published(text(**changes))["web1"]["via"]} == ports


def test_a_pool_that_no_service_uses_and_a_check_without_via_need_nothing() -> None:
    plain = text().replace(", via: service", ", via: backend, port: 80")
    assert not compiled(plain).state.probes
    assert "via" not in published(plain)["web1"]


def test_what_is_not_prepared_has_no_mark() -> None:
    told = published(text(), via=False)
    assert {way["mark"] for one in told.values() for way in one["via"]} == {0}
    subject = parse(document(backend(via=[way(mark=0)]))).backends[0].subject
    result = subject.probe(None)()  # type: ignore[arg-type]
    assert isinstance(result, Result)
    assert (result.outcome, result.reason) == (Outcome.NEUTRAL, Reason.OWN_TROUBLE)
    assert "`reconciler status` says why" in result.detail


WRONG = {
    "nat": ({"forward": "nat"}, "services[first]: forwards by nat to pool 'web', whose check is via"),
    "no port": ({"port": "53/udp"}, "services[second]: has no tcp port for check 'alive' of pool"),
    "any port": ({"port": '"*/tcp"'}, "backends[web1]: service 'second' is for any port: none to"),
    "icmp": ({"check": "type: icmp"}, "'via' is for checks of type tcp or http or https or udp or"),
    "fwmark": ({"check": "type: tcp, fwmark: 7"}, "fwmark does not go with via: service"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_is_said_with_what_to_do(changes: dict[str, str], message: str) -> None:
    with pytest.raises(Rejected) as refused:
        load(text(**changes))
    assert message in str(refused.value)
    assert all(problem.hint for problem in refused.value.problems if "via" not in problem.message)


def test_a_service_needs_an_address_of_each_backends_family() -> None:
    with pytest.raises(Rejected) as refused:
        load(text().replace(', "2001:db8::2"', ""))
    said = str(refused.value)
    assert "pools[web].backends[web2]: service 'second' has no IPv6 address to check it by" in said
    assert "put IPv6 backends into a pool that is checked without `via`" in said


def test_more_addresses_than_the_map_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert abi.ProbeLayout.LIMIT == 65536
    pools = "".join(
        f"      b{n}: {{address: 10.{n >> 16}.{n >> 8 & 255}.{n & 255}}}\n" for n in range(1, 1100)
    )
    addresses = ", ".join(f"192.0.2.{n}" for n in range(1, 62))
    content = (
        "apiVersion: evenkeel/v1\nchecks:\n  alive: {type: tcp, via: service}\npools:\n  web:\n"
        f"    check: alive\n    backends:\n{pools}services:\n"
        f"  www: {{addresses: [{addresses}], ports: [80/tcp], pools: [web], forward: dsr}}\n"
    )  # fmt: skip
    with pytest.raises(Rejected, match="67039 addresses to probe, more than 65536"):
        load(content)


NAMES = st.tuples(st.binary(min_size=4, max_size=4), st.binary(min_size=4, max_size=4), st.just(3))


@given(st.lists(NAMES, unique=True, max_size=30), st.data())
def test_marks_stay_with_what_they_mean_and_are_nobody_elses(
    names: list[ways.Name], data: st.DataObject
) -> None:
    known = ways.marks(names, {})
    assert len(set(known.values())) == len(names)
    kept = data.draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    new = data.draw(st.lists(NAMES, unique=True, max_size=30))
    after = ways.marks([*kept, *new], known)
    assert {name: after[name] for name in kept} == {name: known[name] for name in kept}
    gone = {known[name] for name in names if name not in after}
    assert gone.isdisjoint(after.values()), "not another's as long as it is in the map"
    assert len(set(after.values())) == len(after)


def test_a_plan_after_a_plan_is_empty_and_marks_survive_it() -> None:
    first = compiled(text())
    again = compiled(text(), first.state)
    assert again.state.probes == first.state.probes
    fewer = compiled(text().replace(", 192.0.2.2", ""), first.state)
    assert fewer.state.probes.items() <= first.state.probes.items()


# ---- healthcheck


def way(**changes: object) -> dict[str, Any]:
    return {"service": "www", "address": "192.0.2.1", "port": 80, "mark": 0xEB500001, **changes}


@pytest.mark.parametrize(
    "wrong",
    [{"mark": -1}, {"mark": 1 << 32}, {"port": 0}, {"address": "www"}, {"service": 7}, {"x": 1}],
)
def test_a_way_that_is_not_understood_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(TargetsError):
        parse(document(backend(via=[way(**wrong)])))


class Told:
    """A probe whose attempts end as the test says."""

    def __init__(self) -> None:
        self.attempts: list[ByHand] = []

    def __call__(self) -> Attempt | Result:
        self.attempts.append(ByHand())
        return self.attempts[-1]

    def close(self) -> None: ...


def test_a_backend_passes_when_every_way_has() -> None:
    legs = [Told(), Told()]
    made = Ways([Leg("a", legs[0]), Leg("b", legs[1])])
    first = made()
    assert not isinstance(first, Result)
    assert first.ready(0) is None
    legs[0].attempts[0].answer(PASS)
    second = first.ready(1)
    assert second is not None
    assert not isinstance(second, Result)
    assert legs[0].attempts[0].closed
    assert second.fd == legs[1].attempts[0].fd
    legs[1].attempts[0].answer(PASS)
    assert second.ready(1) == PASS
    second.close()
    assert legs[1].attempts[0].closed


@pytest.mark.parametrize("result", [failed(Reason.REFUSED, "nobody"), NEUTRAL])
def test_the_first_way_that_does_not_pass_is_the_result_by_name(result: Result) -> None:
    legs = [Told(), Told()]
    attempt = Ways([Leg("a", legs[0]), Leg("b", legs[1])])()
    assert not isinstance(attempt, Result)
    legs[0].attempts[0].answer(result)
    found = attempt.ready(1)
    assert isinstance(found, Result)
    assert (found.outcome, found.detail) == (result.outcome, f"a: {result.detail}")
    assert attempt.overdue().detail == "a: too late"
    assert not legs[1].attempts
    attempt.close()
