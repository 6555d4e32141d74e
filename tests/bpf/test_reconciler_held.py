"""What a guardrail keeps goes on being checked: its health still decides where packets go."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf.abi import Health, HealthState, Verdict
from healthcheck.fleet import Fleet
from healthcheck.pinned import open_pinned
from reconciler import ids
from tests.support import frames
from tests.support.box import CLIENT, WAN_LAN, Box, boxed, mac_of

SERVICES = 4
HEAD = """\
apiVersion: evenkeel/v1
checks: {{alive: {{type: tcp, port: 80{via}}}}}
defaults: {{fail: closed, forward: {forward}}}
"""


def file_of(*numbers: int, forward: str = "nat", via: str = "") -> str:
    """Services 192.0.2.10 and on, with two backends each, which are checked."""
    pools, services = [], []
    for n in numbers:
        both = ", ".join(f"b{i}: {{address: 10.1.2.{100 + 2 * n + i}, port: 80}}" for i in (0, 1))
        pools.append(f"  p{n}: {{check: alive, backends: {{{both}}}}}\n")
        services.append(
            f"  s{n}: {{addresses: [192.0.2.{10 + n}], ports: [80/tcp], pools: [p{n}]}}\n"
        )
    head = HEAD.format(forward=forward, via=via)
    return f"{head}pools:\n{''.join(pools)}services:\n{''.join(services)}"


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with boxed(f"ek{os.getpid()}held", tmp_path) as made:
        for i in range(100, 100 + 2 * SERVICES):
            made.neighbour(f"10.1.2.{i}", mac_of(i))
        yield made


def targets(box: Box) -> dict[str, dict[str, object]]:
    content = json.loads((box.place.run_dir / "targets.json").read_text())
    return {entry["name"]: entry for entry in content["backends"]}


def pronounce(box: Box) -> None:
    """The first backend of each pool is up, and the other is down."""
    for name, entry in targets(box).items():
        number = entry["id"]
        assert isinstance(number, int)
        state = HealthState.UP if name.endswith("b0") else HealthState.DOWN
        box.bed.instance.maps.health.put(
            ids.index(number), Health(id=number, state=state, ramp=255)
        )


def look(box: Box) -> None:
    """As a checker does that finds this targets.json; it probes nothing here."""
    folder, name = box.place.run_dir, box.place.instance
    fleet = Fleet(folder / "targets.json", folder / "health.json", name, open_pinned)
    fleet.look()
    fleet.close()
    assert not fleet.conditions.all()


def answered(box: Box, number: int) -> set[int]:
    """By which backends' addresses, over many clients."""
    seen = set()
    for port in range(41000, 41032):
        syn = frames.tcp(port, 80, "S")
        out = box.send(frames.eth(frames.ip(CLIENT[4], f"192.0.2.{10 + number}", syn)))
        assert out.verdict == Verdict.FORWARDED, out
        seen.add(out.frame[33])
    return seen


def test_services_that_a_guardrail_keeps_go_on_with_their_health(box: Box) -> None:
    box.reconcile(file_of(*range(SERVICES)), WAN_LAN)
    pronounce(box)
    for _ in ("the pass that refuses", "a restart", "another one"):
        view = box.reconcile(file_of(0), WAN_LAN)
        assert view.refused
        look(box)
        for number in range(SERVICES):
            assert answered(box, number) == {100 + 2 * number}
    box.reconcile(file_of(*range(SERVICES)), WAN_LAN)
    assert len(targets(box)) == 2 * SERVICES


def test_what_is_let_go_is_checked_no_more(box: Box) -> None:
    box.reconcile(file_of(*range(SERVICES)), WAN_LAN)
    assert not box.reconcile(file_of(*range(SERVICES - 1)), WAN_LAN).refused
    assert targets(box).keys() == {f"p{n}/b{i}" for n in range(SERVICES - 1) for i in (0, 1)}


def test_their_checks_go_the_way_that_they_went(box: Box) -> None:
    said = {"forward": "dsr", "via": ", via: service"}
    box.reconcile(file_of(*range(SERVICES), **said), WAN_LAN)
    before = targets(box)
    assert box.reconcile(file_of(0, **said), WAN_LAN).refused
    assert targets(box) == before
    marks = {way["mark"] for entry in before.values() for way in entry["via"]}  # type: ignore[attr-defined]
    assert box.read().probes.keys() == marks
