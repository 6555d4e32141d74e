"""An instance goes over to other sizes: everything that its maps said they still say, whoever is killed."""

from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bpf import abi, copying, kernel, link, mapset, pins, replacing, resizing
from bpf.errors import MapFull
from bpf.kernel import Action, Instance
from bpf.pins import ROOT, entries
from tests.support.instances import DROPPER, SMALL, compiled, die, killed_in, small_program, unique
from tests.support.namespace import Namespace

__all__ = ["small_program"]  # a fixture of this module
FRAME = bytes(12) + b"\x08\x00" + bytes(46)
LARGE = replace(SMALL, **{name: 4 * getattr(SMALL, name) for name in SMALL.__dataclass_fields__})
MORE_FLOWS = replace(SMALL, flows4=4096, returns4=4096)


@pytest.fixture
def name() -> Iterator[str]:
    chosen = unique()
    yield chosen
    kernel.teardown(chosen)


@pytest.fixture
def wire(name: str) -> Iterator[Namespace]:
    made = Namespace(name)
    try:
        made.ip("link add e0 type veth peer name e1\nlink add e2 type veth peer name e3\n")
        with made.entered():
            yield made
    finally:
        made.delete()


def fill(instance: Instance) -> None:
    """Something in every map that anybody but the program writes, and flows."""
    maps = instance.maps
    for at in (1, 7):
        maps.backends.put(at, abi.Backend(id=at, ifindex=at))
        maps.health.put(at, abi.Health(id=at, state=1))
        maps.services.put(at, abi.Service(id=at))
        maps.pools.put(at, abi.Pool(id=at, size=3))
        maps.frontends.put(at, abi.Frontend(id=at))
        maps.frontends4.put(abi.Frontend4Key(addr=at, port=80, proto=6), at)
        maps.replies4.put(abi.Frontend4Key(addr=at, port=80, proto=6), abi.Reply(count=1))
        maps.tables.put(at, array("I", [at, at, 1]))
        maps.hops.put(at, abi.Hop(ifindex=at))
        maps.hop_ids.put(abi.Hop(ifindex=at), at)
    for number in range(200):
        maps.flows4.put(flow_key(number), abi.Flow(backend=1, frontend=1, seen=5))
        maps.returns4.put(flow_key(number), abi.Return4(flow=abi.Flow(backend=1, seen=5, hop=7)))
    for _ in range(3):
        instance.run(FRAME)


def flow_key(number: int) -> abi.Flow4Key:
    return abi.Flow4Key(saddr=number, dport=80, proto=6)


def content(instance: Instance) -> dict[str, Any]:
    maps: Any = instance.maps
    return {name: dict(maps[name].items()) for name in mapset.names() if name != "prefilter"}


def running(instance: Instance) -> set[int]:
    home = instance._pinned("test")
    links = [link.link_info(home.link(interface)) for interface in home.interfaces()]
    return {known.prog_id for known in links if known}


@pytest.mark.parametrize("sizes", [LARGE, MORE_FLOWS], ids=["all", "flows"])
def test_everything_that_was_in_the_maps_is_in_the_larger_ones(
    name: str, wire: Namespace, sizes: kernel.Sizes
) -> None:
    with Instance.load(name, SMALL) as instance:
        instance.attach("e0")
        fill(instance)
        before, program = content(instance), instance.running().program
        instance.resize(sizes)
        assert content(instance) == before
        assert instance.sizes() == sizes
        assert instance.running().program.id != program.id
        assert running(instance) == {instance.running().program.id}
        assert instance.run(FRAME).action is Action.PASS
        previous = instance.previous()
        assert previous is not None
        assert previous.program.tag == program.tag
    with Instance.load(name, sizes) as adopted:
        assert content(adopted)["backends"] == before["backends"]
    assert [entry for entry in entries(ROOT) if entry.endswith(f":{name}")] == []


def test_maps_whose_size_stays_are_the_same_maps(name: str) -> None:
    with Instance.load(name, SMALL) as instance:
        before = {one: mapset_id(instance, one) for one in mapset.names()}
        instance.resize(MORE_FLOWS)
        now = {one: mapset_id(instance, one) for one in mapset.names()}
    assert {one for one in before if before[one] != now[one]} == {"flows4", "returns4"}


def mapset_id(instance: Instance, name: str) -> int:
    found: Any = instance.maps[name]
    return int((found.outer if name in pins.TABLES else found).id)


def test_the_program_from_before_comes_back_over_the_larger_maps(
    name: str, wire: Namespace, tmp_path: Path
) -> None:
    dropper = compiled(DROPPER, tmp_path / "dropper.o")
    with Instance.load(name, SMALL) as instance:
        instance.attach("e0")
        fill(instance)
        instance.resize(LARGE, dropper)
        assert instance.run(FRAME).action is Action.DROP
        instance.undo()
        assert instance.run(FRAME).action is Action.PASS
        assert instance.sizes() == LARGE
        assert len(instance.maps.flows4.items()) == 200


def test_what_does_not_fit_into_smaller_maps_changes_nothing(name: str, wire: Namespace) -> None:
    with Instance.load(name, LARGE) as instance:
        instance.attach("e0")
        fill(instance)
        instance.maps.backends.put(40, abi.Backend(id=40))
        before, program = content(instance), instance.running()
        with pytest.raises(MapFull, match=r"backends.*holds 16 entries.*sizes\.backends"):
            instance.resize(SMALL)
        assert content(instance) == before
        assert instance.running() == program
        assert entries(ROOT) == [entry for entry in entries(ROOT) if entry != f"resizing:{name}"]


def test_another_process_follows_to_the_new_maps(name: str) -> None:
    with Instance.load(name, SMALL) as instance, Instance.open(name) as other:
        with pins.locked():
            assert not other.follow()
        instance.resize(LARGE)
        instance.maps.backends.put(50, abi.Backend(id=50))
        with pins.locked():
            assert other.follow()
            assert not other.follow()
        assert other.maps.backends.get(50) == abi.Backend(id=50)
        assert other.sizes() == LARGE


def test_flows_that_came_or_changed_while_the_first_were_copied_are_there_too(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_all, new = resizing.copying.copy, flow_key(1000)

    def meanwhile(source: Any, target: Any) -> None:
        copy_all(source, target)
        if source.name == "flows4":
            source.put(new, abi.Flow(backend=1, frontend=1, seen=9))
            source.put(flow_key(3), abi.Flow(backend=1, frontend=1, seen=6, state=1))
        if source.name == "hops":  # the two deal the next number to different hops
            source.put(8, abi.Hop(ifindex=80))
            target.put(8, abi.Hop(ifindex=90))
        if source.name == "returns4":
            for number in (7, 8):
                source.put(flow_key(1000 + number), abi.Return4(flow=abi.Flow(backend=1, seen=9, hop=number)))  # fmt: skip

    with Instance.load(name, SMALL) as instance:
        fill(instance)
        monkeypatch.setattr(resizing.copying, "copy", meanwhile)
        instance.resize(LARGE)
        flows, returns = instance.maps.flows4, instance.maps.returns4
        assert flows.get(new) == abi.Flow(backend=1, frontend=1, seen=9)
        assert flows.get(flow_key(3)) == abi.Flow(backend=1, frontend=1, seen=6, state=1)
        assert len(flows.items()) == 201
        hops = {at: (returns.get(flow_key(1000 + at)) or abi.Return4()).flow.hop for at in (7, 8)}
    assert hops == {7: 7, 8: 0}  # the second is looked up again, not taken for another's


STEPS = {
    "map": (copying, "copy"),
    "tables": (resizing, "_link_all"),
    "previous": (resizing, "_keep_running"),
    "pinned": (replacing, "pin_programs"),
    "prepared": (resizing, "prepare"),
    "one link": (link, "update"),
    "links": (resizing, "_update_links"),
    "caught up": (resizing, "_catch_up"),
    "exchanged": (pins, "exchange"),
}
SWITCHED = ("one link", "links", "caught up", "exchanged")


@pytest.mark.parametrize("step", STEPS)
def test_killed_after_any_step_the_next_process_completes_it_or_has_nothing_to_undo(
    name: str, wire: Namespace, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Instance.load(name, SMALL) as instance:
        for interface in ("e0", "e2"):
            instance.attach(interface)
        fill(instance)
        before = content(instance)
        module, function = STEPS[step]
        whole = getattr(module, function)

        def killed(*arguments: Any) -> None:
            whole(*arguments)
            die()

        with monkeypatch.context() as patch:
            patch.setattr(module, function, killed)
            killed_in(lambda: instance.resize(LARGE))
        assert 1 <= len(running(instance)) <= 2  # every interface forwards
        with Instance.load(name, SMALL) as adopted:
            done = step in SWITCHED
            assert adopted.sizes() == (LARGE if done else SMALL)
            assert content(adopted) == before
            assert running(adopted) == {adopted.running().program.id}
            assert len(adopted.attachments()) == 2
            adopted.resize(LARGE)
            assert content(adopted) == before
        with pins.locked():
            instance.follow()
        assert content(instance) == before
    assert [entry for entry in entries(ROOT) if entry.endswith(f":{name}")] == []
