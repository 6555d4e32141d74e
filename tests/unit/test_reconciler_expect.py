"""The `tests:` of lb.yaml, without a kernel: how they are read, and what the model makes of them."""

from pathlib import Path

import pytest

from bpf import errors, kernel
from reconciler import cli, loop
from reconciler import config as configuration
from reconciler.expect import Outcome, by_model, failures, stage
from reconciler.expectations import packet_of
from reconciler.model import Config, Packet
from reconciler.problems import Problem, Rejected
from reconciler.revision import Revision
from reconciler.trials import tried
from tests.support.configs import NODE

TEXT = """\
apiVersion: evenkeel/v1
pools:
  web: {backends: {web1: {address: 10.0.0.1}, web2: {address: 10.0.0.2, weight: 0}}}
  six: {backends: {a: {address: "2001:db8:b::1"}}}
  off: {backends: {a: {address: 10.0.0.4, state: down}}}
services:
  www: {addresses: [192.0.2.10], ports: [443/tcp], pools: [web]}
  six: {addresses: ["2001:db8::10"], ports: ["*/udp"], pools: [six], forward: gue}
  far: {addresses: [192.0.2.12], ports: [443/tcp], pools: [off, web], forward: fullnat}
  any: {addresses: [192.0.2.13], ports: [443/tcp], pools: [web], balance: {method: random}}
  dead: {addresses: [192.0.2.11], ports: [443/tcp], pools: [off], fail: closed}
tests:
  - {name: t, packet: "198.51.100.7:41000 -> 192.0.2.10:443/tcp", expect: {pool: web}}
"""
PACKET, EXPECT = "198.51.100.7:41000 -> 192.0.2.10:443/tcp", "expect: {pool: web}"
V4, V6 = "198.51.100.7:41000 -> 192.0.2", "[2001:db8:7::1]:41000 -> [2001:db8::10]"


def with_test(packet: str = PACKET, expect: str = "{pool: web}") -> Config:
    text = TEXT.replace(PACKET, packet).replace(EXPECT, f"expect: {expect}")
    return configuration.load(text, "lb.yaml")


def outcome(config: Config) -> Outcome:
    return by_model(stage(config, NODE), config.tests[0].packet)


def problems(config: Config) -> list[Problem]:
    return failures(config, [outcome(config)])


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (f"{V4}.10:443/tcp", Outcome("forwarded", "www", "web", "web/web1")),
        (f"{V4}.10:80/tcp", Outcome("not_ours")),
        (f"{V4}.10:443/udp", Outcome("not_ours")),
        (f"{V4}.11:443/tcp", Outcome("no_backend", "dead")),
        (f"{V4}.12:443/tcp", Outcome("forwarded", "far", "web", "web/web1")),
        (f"{V6}:5353/udp", Outcome("forwarded", "six", "six", "six/a")),
    ],
)
def test_what_becomes_of_a_packet(packet: str, expected: Outcome) -> None:
    assert outcome(with_test(packet)) == expected


@pytest.mark.parametrize(
    "expect",
    ["{pool: web}", "{backend: web/web1}", "{service: www}", "{verdict: forwarded}"],
)
def test_what_is_true_is_no_problem(expect: str) -> None:
    assert problems(with_test(expect=expect)) == []


@pytest.mark.parametrize(
    ("expect", "said"),
    [
        ("{pool: six}", "tests[t]: expected pool six; got service www, backend web/web1"),
        ("{backend: web/web2}", "expected backend web/web2; got"),
        ("{service: far, pool: web}", "expected service far; got"),
        ("{verdict: no_backend}", "expected verdict no_backend; got"),
        ("{service: far, verdict: not_ours}", "expected service far; verdict not_ours; got"),
    ],
)
def test_what_is_not_true_is_said_with_its_place(expect: str, said: str) -> None:
    (problem,) = problems(with_test(expect=expect))
    assert said in problem.message
    assert problem.mark == (13, 1 + TEXT.splitlines()[-1].index("{pool: web}"))


def test_which_backend_is_drawn_is_not_foreseen() -> None:
    (problem,) = problems(with_test(f"{V4}.13:443/tcp", "{backend: web/web1}"))
    assert "balances by random" in problem.message
    assert problems(with_test(f"{V4}.13:443/tcp", "{pool: web}")) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("{pool: wbe}", "there is no pool 'wbe'"),
        ("{backend: web/web9}", "there is no backend 'web/web9'"),
        ("{service: ww}", "there is no service 'ww'"),
        ("{verdict: dropped}", "'dropped' is none of forwarded, no_backend, not_ours"),
        ("{}", "there must be at least one"),
        ("{poool: web}", "unknown key 'poool'"),
    ],
)
def test_an_expectation_that_nothing_could_meet_is_refused(wrong: str, said: str) -> None:
    with pytest.raises(Rejected) as caught:
        with_test(expect=wrong)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("198.51.100.7:41000 -> 192.0.2.10:70000/tcp", "'192.0.2.10:70000' is no address and port"),
        ("198.51.100.7 -> 192.0.2.10:443/tcp", "'198.51.100.7' is no address and port"),
        ("2001:db8::1:1 -> [2001:db8::10]:443/tcp", "'2001:db8::1:1' is no address and port"),
        ("198.51.100.7:1 -> [2001:db8::10]:443/tcp", "of two families"),
        ("somewhere", "'somewhere' is not a packet"),
    ],
)
def test_what_is_no_packet_is_refused(wrong: str, said: str) -> None:
    with pytest.raises(Rejected) as caught:
        with_test(wrong)
    assert said in str(caught.value)


def test_a_packet_is_read_whole() -> None:
    read = packet_of("[2001:db8::1]:1 -> [2001:db8::2]:65535/udp")
    assert isinstance(read, Packet)
    assert (str(read.source), read.sport, read.dport, read.proto.name) == (
        "2001:db8::1", 1, 65535, "UDP",
    )  # fmt: skip


@pytest.fixture
def no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise errors.NotPermitted("not for you")

    monkeypatch.setattr(kernel.Instance, "unpinned", refuse)


@pytest.mark.usefixtures("no_program")
def test_without_the_right_to_load_a_program_the_model_answers_and_says_so() -> None:
    assert (
        str(tried(with_test(), NODE)) == "1 test by the reference model (no program: not for you)"
    )
    assert len(tried(with_test(expect="{pool: six}"), None).problems) == 1


@pytest.mark.usefixtures("no_program")
def test_a_failing_test_rejects_the_file_wherever_it_comes_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = TEXT.replace("{pool: web}", "{pool: six}")
    with pytest.raises(Rejected):
        loop.meaning(Revision("lb.yaml", wrong, bytes(32)), NODE)
    file = tmp_path / "lb.yaml"
    file.write_text(wrong)
    assert cli.main(["validate", str(file)]) == 3
    assert f"{file}:13:75: error: tests[t]: expected pool six" in capsys.readouterr().err
    file.write_text(TEXT)
    assert cli.main(["validate", str(file)]) == 0
    assert "1 test by the reference model" in capsys.readouterr().out


def test_a_file_without_tests_loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel.Instance, "unpinned", None)
    assert tried(configuration.load(TEXT[: TEXT.index("tests:")]), NODE).count == 0
