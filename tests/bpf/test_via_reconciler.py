"""The reconciler and `via: service`: what it loads and attaches, and what it says where it cannot."""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from bpf import tc, via
from bpf.errors import KernelError
from bpf.kernel import Instance
from bpf.via import Via
from reconciler import config as configuration
from reconciler import node
from reconciler.dataplane import State
from reconciler.follow import Accepted
from reconciler.loop import Reconciler
from reconciler.neigh import Neighbours
from reconciler.plan import plan
from reconciler.revision import Revision
from tests.support.box import WAN_LAN, Box, boxed, mac_of

TEXT = """\
apiVersion: evenkeel/v1
checks:
  alive: {type: http, via: service}
pools:
  web: {check: alive, backends: {web1: {address: 10.1.2.101}, web2: {address: 10.1.2.102}}}
services:
  www: {addresses: [192.0.2.10], ports: [80/tcp], pools: [web], forward: dsr}
"""
PLAIN = TEXT.replace("via: service", "port: 80")
FILTER = ("tc", "filter", "add", "dev", "lan", "egress", "pref", "1", "protocol", "ip", "bpf")


@pytest.fixture
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with boxed(f"ek{os.getpid()}viabox", tmp_path_factory.mktemp("box")) as made:
        made.neighbour("10.1.2.101", mac_of(1))
        made.neighbour("10.1.2.102", mac_of(2))
        yield made


class Passes:
    """A reconciler that passes as often as the test says."""

    def __init__(self, box: Box, neighbours: Neighbours) -> None:
        self.box = box
        found = node.load(WAN_LAN)
        self.reconciler = Reconciler(box.bed.instance, found, box.place, neighbours)

    def __call__(self, text: str) -> KernelError | None:
        config = configuration.load(text)
        self.reconciler.reconcile(Accepted(config, Revision("lb.yaml", text, text.encode()[-32:])))
        return self.reconciler.unattached

    def marks(self) -> set[int]:
        told: dict[str, Any] = json.loads((self.box.place.run_dir / "targets.json").read_text())
        return {way["mark"] for one in told["backends"] for way in one["via"]}


@pytest.fixture
def passes(box: Box) -> Iterator[Passes]:
    with box.namespace.entered(), Neighbours() as neighbours:
        yield Passes(box, neighbours)


def attached(box: Box) -> set[str]:
    found = Via.open(box.place.instance, read_only=True)
    try:
        return found.attached() if found else set()
    finally:
        if found:
            found.close()


def test_it_is_there_while_a_check_wants_it(box: Box, passes: Passes) -> None:
    assert passes(PLAIN) is None
    assert Via.open(box.place.instance) is None
    assert passes(TEXT) is None
    assert attached(box) == {"wan", "lan"}
    assert passes.marks() == set(passes.reconciler.dataplane.read().probes)
    assert len(passes.marks()) == 2
    assert passes(PLAIN) is None
    assert Via.open(box.place.instance) is None
    assert not any(tc.running(index, way) for index in tc.interfaces().values() for way in tc.Way)


def test_a_second_look_has_nothing_to_do(passes: Passes) -> None:
    passes(TEXT)
    reconciler = passes.reconciler
    before = reconciler.dataplane.read()
    view = reconciler.reconcile(
        Accepted(configuration.load(TEXT), Revision("lb.yaml", TEXT, TEXT.encode()[-32:]))
    )
    assert view.ops == ()
    assert reconciler.drift == ()
    assert plan(view.held, before) == []
    assert before.probes


def test_what_somebody_took_away_is_put_back_and_told(box: Box, passes: Passes) -> None:
    passes(TEXT)
    passes.reconciler.drift = ()
    box.namespace.run("tc", "filter", "del", "dev", "lan", "egress")
    with Instance.open(box.place.instance), _probes(box) as found:
        found.probes.delete_many([key for key, _ in found.probes.items()])
    assert passes(TEXT) is None
    said = "; ".join(passes.reconciler.drift)
    assert "probes entry" in said
    assert "interface lan: the filter for checks was gone" in said
    assert attached(box) == {"wan", "lan"}
    assert len(passes.reconciler.dataplane.read().probes) == 2


def _probes(box: Box) -> Any:
    found = Via.open(box.place.instance)
    assert found
    return contextlib.closing(found)


def test_an_upgrade_to_other_sizes_is_followed(box: Box, passes: Passes) -> None:
    passes(TEXT)
    before = passes.marks()
    with Instance.open(box.place.instance) as another:
        another.resize(replace(another.sizes(), flows4=8192))
    assert passes(TEXT) is None
    assert passes.reconciler.drift == ()
    assert (passes.marks(), attached(box)) == (before, {"wan", "lan"})
    assert set(passes.reconciler.dataplane.read().probes) == before


def test_where_it_cannot_be_attached_there_are_no_marks(box: Box, passes: Passes) -> None:
    box.namespace.run("tc", "qdisc", "add", "dev", "lan", "clsact")
    box.namespace.run(*FILTER, "direct-action", "obj", "build/via.bpf.o", "sec", "tc")
    assert "priority 1 is another kind of filter's" in str(passes(TEXT))
    assert passes.marks() == {0}
    box.namespace.run("tc", "filter", "del", "dev", "lan", "egress")
    assert passes(TEXT) is None
    assert len(passes.marks() - {0}) == 2


def test_where_it_cannot_be_loaded_everything_else_is_applied(
    box: Box, passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(via, "OBJECT", "absent.bpf.o")
    assert "absent.bpf.o: no such object" in str(passes(TEXT))
    assert passes.marks() == {0}
    here: State = passes.reconciler.dataplane.read()
    assert len(here.backends) == 2
    assert {str(ip_address(key.addr)) for key in here.frontends4} == {"192.0.2.10"}
    assert not here.probes
    monkeypatch.undo()
    assert passes(TEXT) is None
    assert len(passes.marks() - {0}) == 2
