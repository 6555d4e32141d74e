"""An instance goes over to other sizes: everything that its maps said they still say, whoever is killed."""

import itertools
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bpf import (
    abi,
    carrying,
    copying,
    kernel,
    link,
    maps,
    mapset,
    pins,
    repinning,
    replacing,
    resizing,
)
from bpf.errors import AbiMismatch, MapFull
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


def test_who_follows_pins_what_both_have_and_somebody_unpinned(name: str) -> None:
    """Else it could never follow. What only the new maps' owner had is nobody's to pin."""
    home = pins.Pins.of(name)
    with Instance.load(name, SMALL) as instance, Instance.open(name) as other:
        instance.resize(MORE_FLOWS)
        home.map("settings").unlink()
        with pins.locked():
            assert other.follow()
        assert home.map("settings").exists()
        assert other.sizes() == MORE_FLOWS
        with Instance.open(name) as late:
            instance.resize(LARGE)
            home.map("flows4").unlink()
            with pins.locked(), pytest.raises(AbiMismatch, match="flows4: not pinned"):
                late.follow()


@pytest.mark.parametrize("gone", ["settings", "flows4"])
def test_where_somebody_unpinned_a_map_nothing_is_copied_and_it_is_said(
    name: str, gone: str
) -> None:
    home, steps = pins.Pins.of(name), itertools.count()

    def unpinned() -> None:
        if next(steps) == FIRST_ROUND:
            home.map(gone).unlink()

    with Instance.load(name, SMALL) as instance:
        fill(instance)
        before = content(instance)
        with pytest.raises(kernel.KernelError, match=f"{gone}: somebody unpinned it"):
            instance.resize(LARGE, working=unpinned)
        with pytest.raises(kernel.KernelError, match=f"{gone}: somebody unpinned it"):
            instance.resize(LARGE)
        assert not instance.is_resizing
        repinning.pin_again(home, gone, instance.maps[gone].fd)
        instance.resize(LARGE)
        assert content(instance) == before


@pytest.mark.parametrize("gone", ["flows4", "hops"])
def test_late_flows_that_cannot_follow_any_more_keep_nobody_waiting(
    name: str, gone: str, wire: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = pins.exchange

    def killed(one: Path, other: Path) -> None:
        exchange(one, other)
        (other / "maps" / gone).unlink()
        die()

    with Instance.load(name, SMALL) as instance:
        instance.attach("e0")
        fill(instance)
        with monkeypatch.context() as patch:
            patch.setattr(pins, "exchange", killed)
            killed_in(lambda: instance.resize(LARGE))
        with pins.locked():
            assert instance.follow()
        assert instance.sizes() == LARGE
        assert not instance.is_resizing


def test_maps_of_an_instance_that_is_gone_are_not_pinned_for_its_successor(name: str) -> None:
    home = pins.Pins.of(name)
    with Instance.load(name, SMALL) as before:
        kernel.teardown(name)
        with Instance.load(name, SMALL):
            home.map("settings").unlink()
            with pins.locked(), pytest.raises(AbiMismatch, match="settings: not pinned"):
                before.follow()


def test_flows_that_came_or_changed_while_the_first_were_copied_are_there_too(name: str) -> None:
    """In the first round with packets in between, and with some on the old maps' last moment."""
    new, now = flow_key(1000), kernel.now_tick()
    steps = itertools.count()

    def meanwhile() -> None:
        if next(steps) == FIRST_ROUND:
            instance.maps.flows4.put(new, abi.Flow(backend=1, frontend=1, seen=now))
            instance.maps.flows4.put(flow_key(3), abi.Flow(backend=1, seen=now, state=1))

    with Instance.load(name, SMALL) as instance:
        fill(instance)
        instance.resize(LARGE, working=meanwhile)
        flows = instance.maps.flows4
        assert flows.get(new) == abi.Flow(backend=1, frontend=1, seen=now)
        assert flows.get(flow_key(3)) == abi.Flow(backend=1, seen=now, state=1)
        assert len(flows.items()) == 201


def test_flows_of_the_old_maps_last_moment_follow_and_what_packets_have_said_since_stays(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, go_over = kernel.now_tick(), resizing._go_over

    def back(hop: int) -> abi.Return4:
        return abi.Return4(flow=abi.Flow(backend=1, seen=now, hop=hop))

    def meanwhile(home: pins.Pins) -> None:
        old = instance.maps  # the last packets by the old program, which the new one does not see
        old.flows4.put(flow_key(1000), abi.Flow(backend=1, seen=now))
        old.flows4.put(flow_key(1001), abi.Flow(backend=1, seen=now))
        old.hops.put(8, abi.Hop(ifindex=80))
        old.returns4.put(flow_key(1007), back(7))
        old.returns4.put(flow_key(1008), back(8))
        go_over(home)
        with Instance.open(name) as fresh:  # and the first ones by the new
            fresh.maps.flows4.put(flow_key(1001), abi.Flow(backend=2, seen=now + 1))
            fresh.maps.hops.put(8, abi.Hop(ifindex=90))

    with Instance.load(name, SMALL) as instance:
        fill(instance)
        monkeypatch.setattr(resizing, "_go_over", meanwhile)
        instance.resize(LARGE)
        flows, returns = instance.maps.flows4, instance.maps.returns4
        assert flows.get(flow_key(1000)) == abi.Flow(backend=1, seen=now)
        assert flows.get(flow_key(1001)) == abi.Flow(backend=2, seen=now + 1)
        assert returns.get(flow_key(1007)) == back(7)
        assert returns.get(flow_key(1008)) == back(0), "looked up again, not taken for another's"


FIRST_ROUND = 2  # the step before it: programs are loaded


def test_while_flows_are_copied_others_write_what_the_new_maps_then_say(
    name: str, wire: Namespace
) -> None:
    """Backends, a health verdict, an interface: of all this the copy knew nothing when it began."""
    steps = itertools.count()

    def meanwhile() -> None:
        if next(steps) != FIRST_ROUND:
            return
        with pins.locked(), Instance.open(name) as other:
            assert not other.follow()
            assert other.is_resizing
            other.maps.backends.put(9, abi.Backend(id=9))
            other.maps.health.put(9, abi.Health(id=9, state=2))
            other.maps.tables.put(2, array("I", [9, 9]))
            other.attach("e2")

    with Instance.load(name, SMALL) as instance:
        instance.attach("e0")
        fill(instance)
        instance.resize(LARGE, working=meanwhile)
        assert instance.sizes() == LARGE
        assert instance.maps.backends.get(9) == abi.Backend(id=9)
        assert instance.maps.health.get(9) == abi.Health(id=9, state=2)
        assert list(instance.maps.tables.get(2) or ()) == [9, 9]
        assert len(instance.attachments()) == 2
        assert running(instance) == {instance.running().program.id}
        assert not instance.is_resizing


def test_only_one_process_at_a_time_goes_over_to_other_sizes(name: str) -> None:
    refused: list[str] = []

    def meanwhile() -> None:
        with Instance.open(name) as other, pytest.raises(kernel.Busy) as caught:
            other.resize(MORE_FLOWS)
        refused.append(str(caught.value))

    with Instance.load(name, SMALL) as instance:
        instance.resize(LARGE, working=meanwhile)
        assert instance.sizes() == LARGE
    assert "another process goes over to other sizes; wait for it" in refused[0]


def test_who_finds_another_program_or_nothing_when_all_is_copied_changes_nothing(
    name: str, tmp_path: Path
) -> None:
    dropper, steps = compiled(DROPPER, tmp_path / "dropper.o"), itertools.count()

    def replaced() -> None:
        if next(steps) == 0:
            with Instance.open(name) as other:
                other.replace(dropper)

    with Instance.load(name, SMALL) as instance:
        with pytest.raises(kernel.Busy, match="was replaced meanwhile"):
            instance.resize(LARGE, working=replaced)
        assert instance.sizes() == SMALL
        with Instance.open(name) as now:
            assert now.run(FRAME).action is Action.DROP
        with pytest.raises(kernel.NotLoaded):
            instance.resize(LARGE, working=lambda: kernel.teardown(name))
    assert [entry for entry in entries(ROOT) if entry.endswith(name)] == []


def test_flows_are_copied_in_batches_however_many_there_are(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = copying.write

    def noted(target: Any, keys: Any, values: Any, count: int) -> None:
        written.append(count)
        write(target, keys, values, count)

    monkeypatch.setattr(copying, "write", noted)
    monkeypatch.setattr(maps, "BATCH", 64)
    with Instance.load(name, SMALL) as instance:
        fill(instance)
        instance.resize(MORE_FLOWS)
        assert len(instance.maps.flows4.items()) == 200
    assert max(written) <= 64
    assert sum(written) == 400, "what no packet has touched is copied once"


STEPS = {
    "previous": (resizing, "_keep_running"),
    "pinned": (replacing, "pin_programs"),
    "flows of a map": (carrying, "_round"),
    "prepared": (resizing, "prepare"),
    "map": (copying, "copy"),
    "tables": (resizing, "_link_all"),
    "marked": (resizing, "_mark"),
    "one link": (link, "update"),
    "links": (resizing, "_update_links"),
    "health": (resizing, "_follow_health"),
    "exchanged": (pins, "exchange"),
    "switched": (resizing, "switch"),
    "late flows of a map": (carrying, "catch_up"),
    "finished": (resizing, "finish"),
    "half discarded": (pins, "remove"),
}
SWITCHED = list(STEPS)[list(STEPS).index("one link") :]


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

        update, late = replacing.update_links, abi.Flow(backend=1, seen=kernel.now_tick())

        def meanwhile(home: pins.Pins, *programs: int) -> None:
            instance.maps.flows4.put(flow_key(1000), late)
            update(home, *programs)

        with monkeypatch.context() as patch:
            patch.setattr(replacing, "update_links", meanwhile)
            patch.setattr(module, function, killed)
            killed_in(lambda: instance.resize(LARGE))
        assert 1 <= len(running(instance)) <= 2  # every interface forwards
        with Instance.load(name, SMALL) as adopted:
            done = step in SWITCHED
            if done:
                before["flows4"][flow_key(1000)] = late
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
