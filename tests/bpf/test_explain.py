"""`reconciler explain`: as its user asks, about a live data plane that learns nothing of it."""

import contextlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bpf import abi, kernel
from bpf.abi import HealthState
from reconciler import cli, explaining
from reconciler import config as configuration
from tests.support import frames
from tests.support.bed import Outcome
from tests.support.box import CLIENT, WAN_LAN, Box, acquaint, boxed

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "schemas/explain.schema.json").read_text())
WEB = """\
apiVersion: evenkeel/v1
checks: {alive: {type: tcp, every: 2s, timeout: 1s, rise: 2, fall: 3}}
pools:
  web:
    check: alive
    backends:
      web1: {address: 10.1.2.101, port: 8080}
      web2: {address: 10.1.2.102, port: 8080}
  sorry: {backends: {sorry1: {address: 10.1.2.250, port: 8080}}}
services:
  www: {addresses: [192.0.2.10], ports: [80/tcp], pools: [web, sorry]}
  dns: {addresses: [192.0.2.10], ports: [53/udp], pools: [sorry], forward: dsr}
...
"""
WWW_LINE = 11


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    try:
        with boxed(f"ek{os.getpid()}explain", tmp_path_factory.mktemp("run")) as made:
            acquaint(made, configuration.load(WEB))
            made.write(WEB)
            made.run("--once")
            yield made
    except (kernel.NotPermitted, kernel.Unsupported) as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def _fresh(box: Box) -> None:
    """All are healthy, and nothing is remembered."""
    for name in ("flows4", "returns4", "opening4"):
        flows = box.bed.maps[name]
        flows.delete_many([key for key, _ in flows.items()])
    for backend in box.read().backends.values():
        health(box, backend.id, HealthState.UP)


def health(box: Box, number: int, state: HealthState, ramp: int = 255) -> None:
    box.bed.maps.health.put(number & 0xFFFFF, abi.Health(id=number, state=state, ramp=ramp))


def towards(sport: int, port: str = "80/tcp") -> str:
    return f"{CLIENT[4]}:{sport} -> 192.0.2.10:{port}"


def send(box: Box, sport: int, flags: str = "S") -> Outcome:
    return box.send(frames.eth(frames.ip(CLIENT[4], "192.0.2.10", frames.tcp(sport, 80, flags))))


def node_file(box: Box) -> tuple[str, str]:
    return "--node", str(box.place.run_dir / "node.yaml")


def told(box: Box, packet: str, *arguments: str, ok: tuple[int, ...] = (0,)) -> dict[str, Any]:
    done = box.ask("explain", packet, *arguments, "--output", "json", ok=ok)
    found: dict[str, Any] = json.loads(done.stdout)
    jsonschema.validate(found, SCHEMA)
    assert found["differences"] == []
    return found


def step(found: dict[str, Any], about: str) -> dict[str, Any]:
    return next(one for one in found["steps"] if one["about"].startswith(about))


def gone_to(outcome: Outcome) -> str:
    """The backend of a frame that went out, by the last byte of its new address."""
    return {101: "web/web1", 102: "web/web2", 250: "sorry/sorry1"}[outcome.frame[33]]


def test_it_says_what_the_program_then_does_and_changes_nothing(box: Box) -> None:
    for sport in range(1, 9):
        before = [dict(box.bed.maps[name].items()) for name in ("flows4", "opening4", "live")]
        counted = bytes(box.bed.cpu().verdict)
        found = told(box, towards(sport))
        assert [dict(box.bed.maps[n].items()) for n in ("flows4", "opening4", "live")] == before
        assert bytes(box.bed.cpu().verdict) == counted
        assert found["verdicts"] == ["forwarded"]
        assert found["backends"] == [gone_to(send(box, sport))]


def test_the_way_is_told_step_by_step_with_where_it_is_written(box: Box) -> None:
    found = told(box, towards(7))
    assert [one["about"].partition(" ")[0] for one in found["steps"]] == [
        "prefilter", "frontend", "known", "half-open", "hash", "pool", "rewrite", "next",
    ]  # fmt: skip
    assert (
        f"www/ipv4 ({box.place.run_dir / 'applied.yaml'}:{WWW_LINE})"
        in step(found, "frontend")["found"]
    )
    assert "port 80 (nat, hash)" in step(found, "frontend")["found"]
    assert "of 251, step" in step(found, "pool")["found"]
    assert step(found, "pool")["details"][-1].endswith(f"{found['backends'][0]}: healthy")
    assert step(found, "next hop")["found"].startswith("lan, ")
    assert found["service"] == "www"
    assert found["action"] == "redirect"
    out = {layer["layer"]: layer for layer in found["out"]}
    assert out["ipv4"]["fields"]["ttl"] == 63
    assert out["tcp"]["fields"]["destination-port"] == 8080
    assert [out[name]["notes"]["checksum"] for name in ("ipv4", "tcp")] == ["exact", "exact"]


def test_people_read_the_same(box: Box) -> None:
    said = box.ask("explain", towards(7)).stdout
    assert said.startswith(f"{towards(7)} syn\n")
    assert "asked            the program itself, in a shadow over the live maps\n" in said
    assert "verdict          forwarded: sent to a backend\n" in said
    assert "action           XDP_REDIRECT\n" in said
    assert "out              ethernet " in said
    assert "DISAGREE" not in said


def test_a_known_flow_is_told_with_its_backend(box: Box) -> None:
    """Though the table would choose another by now."""
    packet = towards(9)
    before = told(box, packet)["backends"][0]
    send(box, 9)
    opening = told(box, packet, "--flags", "ack")
    assert f"with {before}, quiet for" in step(opening, "half-open")["found"]
    send(box, 9, "A")
    found = told(box, packet, "--flags", "ack")
    assert f"with {before}, quiet for" in step(found, "known flow")["found"]
    assert not [one for one in found["steps"] if one["about"].startswith(("hash", "pool"))]
    assert found["backends"] == [before]


def test_a_backend_that_is_down_is_passed_over_with_the_reason(box: Box) -> None:
    chosen = told(box, towards(11))["backends"][0]
    down = next(b for b in box.read().backends.values() if b.addr.v4 & 255 == LAST[chosen])
    health(box, down.id, HealthState.DOWN)
    found = told(box, towards(11))
    details = step(found, "pool")["details"]
    assert details[0].endswith(f"{chosen}: its checks fail")
    assert found["backends"] == [OTHER[chosen]] == [gone_to(send(box, 11))]


def test_a_backend_that_warms_up_is_passed_over_with_how_far_it_is(box: Box) -> None:
    chosen = told(box, towards(17))["backends"][0]
    warming = next(b for b in box.read().backends.values() if b.addr.v4 & 255 == LAST[chosen])
    health(box, warming.id, HealthState.UP, ramp=0)
    details = step(told(box, towards(17)), "pool")["details"]
    assert details[0].endswith(f"{chosen}: it is warming up, 1 of 256 slots so far")


LAST = {"web/web1": 101, "web/web2": 102}
OTHER = {"web/web1": "web/web2", "web/web2": "web/web1"}


def test_what_if_its_checks_failed(box: Box) -> None:
    chosen = told(box, towards(12))["backends"][0]
    found = told(box, towards(12), "--if-down", chosen, *node_file(box))
    assert found["backends"] == [OTHER[chosen]]
    assert "maps that there would be" in found["judge"]
    both = told(box, towards(12), "--if-down", chosen, "--if-down", OTHER[chosen], *node_file(box))
    assert both["backends"] == ["sorry/sorry1"]
    assert told(box, towards(12))["backends"] == [chosen]


def test_what_if_they_passed_again(box: Box) -> None:
    chosen = told(box, towards(13))["backends"][0]
    down = next(b for b in box.read().backends.values() if b.addr.v4 & 255 == LAST[chosen])
    health(box, down.id, HealthState.DOWN)
    assert told(box, towards(13), "--if-up", chosen, *node_file(box))["backends"] == [chosen]


def test_a_known_flow_is_known_also_after_a_file_would_be_applied(box: Box, tmp_path: Path) -> None:
    new = tmp_path / "new.yaml"
    chosen = told(box, towards(14))["backends"][0]
    name = chosen.partition("/")[2]
    new.write_text(WEB.replace(f"{name}: {{", f"{name}: {{state: drain, reason: test, "))
    send(box, 14)
    send(box, 14, "A")
    file = ("--config", str(new), *node_file(box))
    established = told(box, towards(14), "--flags", "ack", *file)
    assert established["backends"] == [chosen]
    fresh = told(box, towards(14), *file)
    assert "its backend drains, and this is a SYN" in step(fresh, "known flow")["found"]
    assert fresh["backends"] == [OTHER[chosen]]
    assert f"{new}:{WWW_LINE}" in step(fresh, "frontend")["found"]


def test_an_applied_file_is_what_was_foretold(box: Box, tmp_path: Path) -> None:
    new = tmp_path / "new.yaml"
    new.write_text(WEB.replace("pools: [web, sorry]", "pools: [sorry]"))
    assert told(box, towards(15), "--config", str(new), *node_file(box))["backends"] == [
        "sorry/sorry1"
    ]
    box.write(new.read_text())
    box.run("--once", "--allow-removals")
    assert gone_to(send(box, 15)) == "sorry/sorry1"
    box.write(WEB)
    box.run("--once")


def test_nobodys_packet_is_the_kernels(box: Box) -> None:
    found = told(box, towards(1, "81/tcp"))
    assert (found["verdicts"], found["action"]) == (["not_ours"], "pass")
    assert found["service"] == ""
    assert found["out"] == []


def test_a_reply_is_told_of(box: Box) -> None:
    sent = send(box, 16)
    source = ".".join(str(byte) for byte in sent.frame[30:34])
    reply = f"{source}:8080 -> {CLIENT[4]}:16/tcp"
    found = told(box, reply, "--flags", "syn,ack", "--interface", "lan")
    assert found["verdicts"] == ["returned"]
    assert "of a known flow" in step(found, "reply")["found"]
    assert found["backends"] == [gone_to(sent)]


def test_a_tag_stays_on_what_goes_out(box: Box) -> None:
    found = told(box, towards(1, "53/udp"), "--vlan", "7", "--vlan", "8")
    assert [one["fields"]["id"] for one in found["out"] if one["layer"] == "vlan"] == [7, 8]
    assert step(found, "rewrite")["found"].startswith("dsr")


def test_a_disagreement_is_shouted(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explaining, "differences", lambda *_: ("one says so, one not",))
    done = box.ask("explain", towards(1), ok=(1,))
    assert "!!! TRACE AND PROGRAM DISAGREE: one says so, one not" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("1.2.3.4 -> 192.0.2.10:80/tcp",), "is no address and port"),
        (("1.2.3.4:1 -> 192.0.2.10:80/sctp",), "'sctp' is no protocol: tcp or udp"),
        (("1.2.3.4:1 -> 192.0.2.10:80/tcp", "--flags", "sin"), "--flags sin: syn, ack"),
        (("1.2.3.4:1 -> 192.0.2.10:80/udp", "--flags", "syn"), "only TCP has any"),
        (("1.2.3.4:1 -> 192.0.2.10:80/tcp", "--vlan", "4095"), "0 to 4094"),
        (("1.2.3.4:1 -> 192.0.2.10:80/tcp", "--if-down", "web/web9"), "no backend 'web/web9'"),
    ],
)
def test_what_cannot_be_asked_is_refused(box: Box, arguments: tuple[str, ...], said: str) -> None:
    done = box.ask("explain", *arguments, *node_file(box), ok=(64,))
    assert said in done.stderr


def test_without_a_data_plane_a_file_is_asked(box: Box, tmp_path: Path) -> None:
    (tmp_path / "lb.yaml").write_text(WEB)
    (tmp_path / "node.yaml").write_text(WAN_LAN)
    files = ("--config", str(tmp_path / "lb.yaml"), "--node", str(tmp_path / "node.yaml"))
    found = bare(*files)
    assert found["judge"] == "the program itself, in a shadow"
    assert found["backends"][0].startswith("web/")
    chosen = found["backends"][0]
    assert bare(*files, "--if-down", chosen)["backends"] == [OTHER[chosen]]


def test_without_the_right_to_load_a_program_the_model_is_asked(
    box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lb.yaml").write_text(WEB)
    (tmp_path / "node.yaml").write_text(WAN_LAN)
    files = ("--config", str(tmp_path / "lb.yaml"), "--node", str(tmp_path / "node.yaml"))
    program = bare(*files)
    monkeypatch.setenv("EVENKEEL_OBJECT", str(tmp_path / "nowhere.o"))
    found = bare(*files)
    assert found["judge"].startswith("the reference model (no program: ")
    assert (found["verdicts"], found["backends"]) == (program["verdicts"], program["backends"])
    assert found["action"] == ""


def bare(*arguments: str) -> dict[str, Any]:
    out = io.StringIO()
    line = ["explain", towards(3), *arguments, "--instance", "ek-nobody", "--output", "json"]
    with contextlib.redirect_stdout(out):
        assert cli.main(line) == 0
    found: dict[str, Any] = json.loads(out.getvalue())
    jsonschema.validate(found, SCHEMA)
    return found
