"""Typed maps: what is written is what is read, one by one, in batches and through memory."""

import os
from array import array
from collections.abc import Iterator
from ctypes import sizeof
from pathlib import Path

import pytest

import bpf.tables
from bpf import abi, mapset
from bpf.errors import KernelError, MapFull, NotPermitted
from bpf.kernel import Action, Instance, Sizes
from bpf.pins import ROOT, entries
from bpf.rereading import Rereading
from tests.support.instances import SMALL, small_program, unique

__all__ = ["small_program"]  # a fixture of this module
DESCRIPTORS = Path("/proc/self/fd")
FRAME = bytes(12) + b"\x08\x00" + bytes(46)


@pytest.fixture(scope="module")
def instance() -> Iterator[Instance]:
    loaded = Instance.load(unique(), SMALL)
    yield loaded
    loaded.teardown()


def key(number: int) -> abi.Frontend4Key:
    return abi.Frontend4Key(addr=0xC0000200 + number, port=443, proto=6)


def tables(instance: Instance) -> list[str]:
    return entries(ROOT / instance.name / "tables")


def test_every_map_has_the_size_that_was_asked_for(instance: Instance) -> None:
    found = {name: instance.maps[name].max_entries for name in mapset.SETTING}
    assert found == {name: SMALL.of(name) for name in mapset.SETTING}
    assert instance.sizes() == SMALL


def test_what_is_put_is_got(instance: Instance) -> None:
    backend = abi.Backend(id=3, port=8080, weight=7, dmac=b"\x02\0\0\0\0\x03")
    instance.maps.backends.put(3, backend)
    assert instance.maps.backends.get(3) == backend
    assert instance.maps.backends.items() == [(3, backend)]


def test_addresses_and_ports_are_in_network_order(instance: Instance) -> None:
    instance.maps.frontends4.put(key(9), 77)
    raw = dict(instance.maps.frontends4.items())
    assert bytes(next(k for k, v in raw.items() if v == 77)) == b"\xc0\0\x02\x09\x01\xbb\x06\0"
    assert instance.maps.frontends4.delete(key(9))


def test_an_absent_key_is_none_and_deleting_it_false(instance: Instance) -> None:
    assert instance.maps.frontends4.get(key(1)) is None
    assert not instance.maps.frontends4.delete(key(1))


def test_create_does_not_overwrite(instance: Instance) -> None:
    instance.maps.frontends4.put(key(2), 1, create=True)
    with pytest.raises(KernelError, match="exists"):
        instance.maps.frontends4.put(key(2), 2, create=True)
    assert instance.maps.frontends4.get(key(2)) == 1
    instance.maps.frontends4.delete(key(2))


def test_a_full_map_names_itself_and_the_setting(instance: Instance) -> None:
    keys = [key(n) for n in range(SMALL.frontends + 1)]
    with pytest.raises(MapFull, match=r"frontends4.*16 entries.*sizes\.frontends in node\.yaml"):
        instance.maps.frontends4.put_many((k, 1) for k in keys)
    with pytest.raises(MapFull, match=r"backends.*16 entries.*sizes\.backends"):
        instance.maps.backends.put(SMALL.backends, abi.Backend(id=1))
    assert instance.maps.frontends4.delete_many(keys) == SMALL.frontends


def test_deleting_many_goes_on_after_keys_that_are_not_there(instance: Instance) -> None:
    instance.maps.frontends4.put_many((key(n), n) for n in (1, 3, 4, 7))
    assert instance.maps.frontends4.delete_many(key(n) for n in range(9)) == 4
    assert instance.maps.frontends4.items() == []


@pytest.mark.parametrize("count", [0, 1, 700])
def test_a_batch_reads_what_a_batch_wrote(instance: Instance, count: int) -> None:
    flows = {abi.Flow4Key(saddr=n, daddr=1, proto=6): abi.Flow(backend=n) for n in range(count)}
    instance.maps.flows4.put_many(flows.items())
    assert dict(instance.maps.flows4.items()) == flows
    assert instance.maps.flows4.delete_many(flows) == count


def test_ten_thousand_backends_in_a_map_larger_than_a_batch(instance: Instance) -> None:
    with Instance.load(unique(), Sizes(backends=40000, flows4=1024, returns4=1024)) as large:
        try:
            written = [(n, abi.Backend(id=n, weight=1)) for n in range(1, 40000)]
            large.maps.backends.put_many(written)
            assert large.maps.backends.items() == written
        finally:
            large.teardown()


def test_counters_are_sums_over_the_cpus(instance: Instance) -> None:
    before = instance.maps.cpus.get(0) or abi.Cpu()
    instance.run(FRAME, repeat=5)
    after = instance.maps.cpus.get(0) or abi.Cpu()
    assert after.packets - before.packets == 5
    each = instance.maps.cpus.per_cpu(0)
    assert sum(cpu.packets for cpu in each) == after.packets
    assert len(each) == instance.maps.cpus.cpus
    assert instance.maps.cpus.items() == [(0, after)]


def test_counters_cannot_be_written(instance: Instance) -> None:
    with pytest.raises(TypeError, match="cpus"):
        instance.maps.cpus.put(0, abi.Cpu())


def test_a_view_is_the_map(instance: Instance) -> None:
    instance.maps.health.put(2, abi.Health(id=2, state=abi.HealthState.UP))
    view, size = instance.maps.health.view(), sizeof(abi.Health)
    assert abi.Health.from_bytes(view[2 * size : 3 * size]).state == abi.HealthState.UP
    view[2 * size : 3 * size] = bytes(abi.Health(id=2, state=abi.HealthState.DOWN))
    assert instance.maps.health.get(2) == abi.Health(id=2, state=abi.HealthState.DOWN)


def test_what_cannot_be_mapped_says_so(instance: Instance) -> None:
    with pytest.raises(KernelError, match="flows4 cannot be mapped"):
        instance.maps.flows4.view()


# ---- tables ----


def test_a_table_is_written_read_and_removed(instance: Instance) -> None:
    slots = array("I", range(1, 1010))
    instance.maps.tables.put(1, slots)
    assert instance.maps.tables.get(1) == slots
    assert instance.maps.tables.indexes() == [1]
    assert instance.maps.tables.delete(1)
    assert instance.maps.tables.get(1) is None
    assert not instance.maps.tables.delete(1)
    assert tables(instance) == []


def test_a_table_of_the_same_size_is_changed_in_place(instance: Instance) -> None:
    instance.maps.tables.put(2, array("I", [1, 2, 3]))
    before = instance.maps.tables.outer.get(2)
    instance.maps.tables.put(2, array("I", [1, 9, 3]))
    assert instance.maps.tables.get(2) == array("I", [1, 9, 3])
    assert instance.maps.tables.outer.get(2) == before
    instance.maps.tables.delete(2)


def test_a_table_of_another_size_takes_over_and_leaves_one_pin(instance: Instance) -> None:
    instance.maps.tables.put(3, array("I", [1, 2, 3]))
    instance.maps.tables.put(3, array("I", [4, 5]))
    assert instance.maps.tables.get(3) == array("I", [4, 5])
    assert len(tables(instance)) == 1
    instance.maps.tables.delete(3)


def test_many_tables_at_once_keep_no_descriptors_and_no_old_pins(
    instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bpf.tables, "AT_ONCE", 3)
    instance.maps.tables.put(0, array("I", [1]))
    before = len(list(DESCRIPTORS.iterdir()))
    for size in (3, 5):
        written = {at: array("I", [at] * size) for at in range(SMALL.pools)}
        instance.maps.tables.put_many(written.items())
        assert instance.maps.tables.items() == written
        assert len(tables(instance)) == len(written)
    assert len(list(DESCRIPTORS.iterdir())) == before
    assert instance.maps.tables.delete_many(range(SMALL.pools)) == SMALL.pools
    assert not tables(instance)


def test_what_has_not_changed_is_read_as_the_same_object(instance: Instance) -> None:
    written, reading = abi.Pool(id=6, size=3), Rereading(instance.maps.pools)
    instance.maps.pools.put(6, written)
    reading.expect(6, written)
    first = reading.read()
    assert first[6] is written
    assert reading.read() is first
    with Instance.open(instance.name) as other:
        other.maps.pools.put_many([(5, abi.Pool(id=5, size=5)), (6, abi.Pool(id=6, size=5))])
    assert reading.read() == {5: abi.Pool(id=5, size=5), 6: abi.Pool(id=6, size=5)}
    assert first == {6: written}
    instance.maps.pools.put_many([(5, abi.Pool()), (6, abi.Pool())])
    assert reading.read() == {}


def test_a_slot_that_somebody_else_changed_is_seen(instance: Instance) -> None:
    slots = array("I", [1, 2, 3])
    instance.maps.tables.put(7, slots)
    assert instance.maps.tables.items()[7] is slots
    with Instance.open(instance.name) as other:
        other.maps.tables.put(7, array("I", [1, 9, 3]))
    assert instance.maps.tables.items()[7] == array("I", [1, 9, 3])
    assert slots == array("I", [1, 2, 3])
    instance.maps.tables.delete(7)


def test_another_process_sees_a_table_that_was_replaced(instance: Instance) -> None:
    with Instance.open(instance.name, read_only=True) as reader:
        for slots in (array("I", [1, 2]), array("I", [3, 4, 5]), array("I", [6, 7, 8])):
            instance.maps.spares.put(4, slots)
            assert reader.maps.spares.get(4) == slots
    instance.maps.spares.delete(4)


def test_a_pin_that_a_killed_writer_left_goes_with_the_next_load(instance: Instance) -> None:
    instance.maps.tables.put(5, array("I", [1, 2]))
    fd, _ = instance.maps.tables._new(5, array("I", [9]))
    instance.maps.tables._pin(5, fd, list(instance.maps.tables.directory.iterdir()))
    os.close(fd)
    assert len(tables(instance)) == 2
    with Instance.load(instance.name, SMALL) as adopted:
        assert adopted.maps.tables.get(5) == array("I", [1, 2])
    assert len(tables(instance)) == 1
    instance.maps.tables.delete(5)


def test_a_table_whose_pin_is_gone_is_reported_not_guessed(instance: Instance) -> None:
    instance.maps.tables.put(6, array("I", [1]))
    (pin,) = tables(instance)
    Path(ROOT, instance.name, "tables", pin).unlink()
    with Instance.open(instance.name) as other:
        with pytest.raises(KernelError, match="table of pool 6 is not pinned"):
            other.maps.tables.get(6)
        assert other.maps.tables.delete(6)


# ---- readers and shadows ----


def test_a_reader_reads_everything_and_writes_nothing(instance: Instance) -> None:
    instance.maps.tables.put(7, array("I", [1]))
    with Instance.open(instance.name, read_only=True) as reader:
        assert reader.maps.meta.get(0) == abi.Meta(abi=abi.Abi.VERSION)
        assert reader.maps.tables.get(7) == array("I", [1])
        assert len(reader.maps.health.view()) == SMALL.backends * sizeof(abi.Health)
        assert reader.maps.health.view().readonly
        for write in (
            lambda: reader.maps.backends.put(1, abi.Backend()),
            lambda: reader.maps.health.put_many([(1, abi.Health())]),
            lambda: reader.maps.frontends4.delete(key(1)),
            lambda: reader.maps.tables.delete(7),
            lambda: reader.maps.tables.put(7, array("I", [2])),
            lambda: reader.maps.tables.put(7, array("I", [2, 3])),
        ):
            with pytest.raises(NotPermitted, match="read-only"):
                write()
    assert instance.maps.tables.get(7) == array("I", [1])
    instance.maps.tables.delete(7)


def test_a_shadow_shares_configuration_and_nothing_else(instance: Instance) -> None:
    instance.maps.tables.put(1, array("I", [5]))
    instance.maps.flows4.put(abi.Flow4Key(saddr=1), abi.Flow(backend=1))
    before = instance.maps.cpus.get(0)
    with instance.shadow() as shadow:
        assert shadow.maps.tables.get(1) == array("I", [5])
        assert {n: shadow.maps[n].max_entries for n in mapset.SETTING} == {
            n: SMALL.of(n) for n in mapset.SETTING
        }
        shadow.maps.backends.put(4, abi.Backend(id=4))
        assert shadow.maps.flows4.items() == []
        assert shadow.run(FRAME).action is Action.PASS
        assert (shadow.maps.cpus.get(0) or abi.Cpu()).packets == 1
        with pytest.raises(KernelError, match="shadow"):
            shadow.attach("lo")
        with pytest.raises(KernelError, match="shadow"):
            shadow.teardown()
    assert instance.maps.backends.get(4) == abi.Backend(id=4)
    assert instance.maps.cpus.get(0) == before
    assert len(instance.maps.flows4.items()) == 1
    instance.maps.tables.delete(1)


def test_closing_leaks_no_descriptor() -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    instance = Instance.load(unique(), SMALL)
    try:
        before = descriptors()
        with Instance.open(instance.name) as other, other.shadow() as shadow:
            other.maps.tables.put(1, array("I", [1]))
            assert shadow.maps.tables.get(1) == array("I", [1])
            shadow.maps.health.view()
            other.replace()
        assert descriptors() == before
    finally:
        instance.teardown()
