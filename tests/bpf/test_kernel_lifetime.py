"""What becomes of an instance when processes come, go and are killed half-way."""

import multiprocessing
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpf import abi, kernel, link, mapset, objects, record, replacing
from bpf.errors import AbiMismatch, Busy, KernelError, NotLoaded
from bpf.kernel import Action, Instance, Sizes, instances
from bpf.pins import ROOT, entries
from tests.support.instances import (
    BAD_SWEEP,
    DROPPER,
    FLAGS,
    SMALL,
    compiled,
    die,
    killed_in,
    small_program,
    unique,
)
from tests.support.namespace import Namespace

__all__ = ["small_program"]  # a fixture of this module
FRAME = bytes(12) + b"\x08\x00" + bytes(46)
SHAPE = mapset.sizes
PINS = len(mapset.names())
SOURCES = Path(__file__).parents[2] / "bpf"


@pytest.fixture
def name() -> Iterator[str]:
    chosen = unique()
    yield chosen
    kernel.teardown(chosen)


@pytest.fixture(scope="module")
def dropper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(DROPPER, tmp_path_factory.mktemp("objects") / "dropper.o")


@pytest.fixture
def wire(name: str) -> Iterator[Namespace]:
    """A namespace with two pairs of interfaces, e0-e1 and e2-e3."""
    made = Namespace(name)
    try:
        made.ip("link add e0 type veth peer name e1\nlink add e2 type veth peer name e3\n")
        made.ip("link set e0 up\nlink set e1 up\nlink set e2 up\nlink set e3 up\n")
        yield made
    finally:
        made.delete()


def leftovers(name: str) -> list[str]:
    return [entry for entry in entries(ROOT) if entry.endswith(f":{name}")]


def waiting(name: str) -> list[str]:
    return [entry for entry in entries(ROOT / name) if entry.endswith(":next")]


def running(instance: Instance) -> set[int]:
    home = instance._pinned("test")
    links = [link.link_info(home.link(interface)) for interface in home.interfaces()]
    return {known.prog_id for known in links if known}


# ---- load, adopt, open ----


def test_nothing_is_open_before_it_is_loaded(name: str) -> None:
    with pytest.raises(NotLoaded, match=name):
        Instance.open(name)
    assert name not in instances()


def test_a_loaded_instance_is_whole_and_signed(name: str) -> None:
    with Instance.load(name, SMALL) as instance:
        assert instance.maps.meta.get(0) == abi.Meta(abi=abi.Abi.VERSION)
        assert instance.run(FRAME).action is Action.PASS
    assert name in instances()
    assert sorted(entries(ROOT / name / "maps")) == sorted(mapset.names())
    assert leftovers(name) == []


def test_what_a_dead_process_left_is_adopted(name: str) -> None:
    def load_and_die() -> None:
        loaded = Instance.load(name, SMALL)
        loaded.maps.backends.put(3, abi.Backend(id=3))
        die()

    killed_in(load_and_die)
    with Instance.load(name, SMALL) as adopted:
        assert adopted.maps.backends.get(3) == abi.Backend(id=3)
        assert adopted.run(FRAME).action is Action.PASS


def test_loading_twice_runs_one_program(name: str) -> None:
    with Instance.load(name, SMALL) as first, Instance.load(name, SMALL) as second:
        assert first.program_info() == second.program_info()
        assert first.maps.flows4.id == second.maps.flows4.id


@pytest.mark.parametrize("count", [0, 1, PINS - 1, PINS, PINS + 1, PINS + 2])
def test_a_loader_killed_at_any_pin_leaves_nothing_that_looks_loaded(
    name: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned: list[Path] = []
    pin = kernel.pin

    def pin_until(fd: int, path: Path) -> None:
        if len(pinned) == count:
            die()
        pinned.append(path)
        pin(fd, path)

    with monkeypatch.context() as patch:
        for module in (kernel, record, replacing):  # maps, then the object, sweep and program
            patch.setattr(module, "pin", pin_until)
        killed_in(lambda: Instance.load(name, SMALL))
    assert name not in instances()
    with pytest.raises(NotLoaded):
        Instance.open(name)
    with Instance.load(name, SMALL) as instance:
        assert instance.run(FRAME).action is Action.PASS
    assert leftovers(name) == []


def test_two_processes_that_load_at_once_get_one_instance(name: str) -> None:
    def load(answers: Any) -> None:
        with Instance.load(name, SMALL) as instance:
            answers.put(instance.program_info().id)
        answers.close()
        answers.join_thread()
        os._exit(0)

    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [context.Process(target=load, args=(answers,)) for _ in range(2)]
    for process in processes:
        process.start()
    found = {answers.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(60)
    answers.close()
    assert len(found) == 1


@pytest.mark.parametrize("bad", ["", "a.b", "a/b", "loading:x", "-x", "x" * 64])
def test_a_name_that_the_file_system_cannot_hold_is_refused(bad: str) -> None:
    with pytest.raises(KernelError, match="instance name"):
        Instance.load(bad, SMALL)


# ---- refusing ----


def test_maps_of_another_abi_are_refused_and_left_alone(name: str) -> None:
    with Instance.load(name, SMALL) as instance:
        instance.maps.meta.put(0, abi.Meta(abi=99, generation=7))
    for attempt in (lambda: Instance.open(name), lambda: Instance.load(name, SMALL)):
        with pytest.raises(AbiMismatch, match=rf"{name}/maps/meta.*ABI 99.*teardown"):
            attempt()
    assert name in instances()


def test_another_map_in_a_maps_place_is_named(name: str) -> None:
    with Instance.load(name, SMALL):
        replaced = ROOT / name / "maps" / "backends"
        replaced.unlink()
        os.link(ROOT / name / "maps" / "services", replaced)
    with pytest.raises(AbiMismatch, match=r"maps/backends: is a map called services"):
        Instance.open(name)


def test_a_map_of_another_shape_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Instance.load(name, SMALL):
        pass
    monkeypatch.setattr(
        mapset, "sizes", lambda name: (4, 72) if name == "backends" else SHAPE(name)
    )
    with pytest.raises(AbiMismatch, match=r"maps/backends: .* 4 and 64 bytes, .* has 4 and 72"):
        Instance.open(name)


def test_what_could_not_be_adopted_is_not_left_behind(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(mapset, "names_in_kernel", lambda _: ())
        with pytest.raises(AbiMismatch):
            Instance.load(name, SMALL)
    assert name not in instances()
    assert leftovers(name) == []


def test_a_missing_map_is_named(name: str) -> None:
    with Instance.load(name, SMALL):
        (ROOT / name / "maps" / "hops").unlink()
    with pytest.raises(AbiMismatch, match=r"maps/hops: not pinned.*teardown"):
        Instance.load(name, SMALL)


def test_what_is_pinned_is_adopted_as_large_as_it_is(name: str) -> None:
    with Instance.load(name, SMALL), Instance.load(name, Sizes()) as adopted:
        assert adopted.sizes() == SMALL


def test_an_instance_without_its_program_is_not_recreated_under_traffic(
    name: str, wire: Namespace
) -> None:
    with Instance.load(name, SMALL) as instance, wire.entered():
        instance.attach("e0")
    (ROOT / name / "program").unlink()
    with pytest.raises(AbiMismatch, match=r"program: not there, but interfaces are attached"):
        Instance.load(name, SMALL)
    kernel.teardown(name)
    with Instance.load(name, SMALL) as instance:
        assert instance.attachments() == []


# ---- replacing ----


def test_replacing_keeps_maps_and_attachments(name: str, wire: Namespace, dropper: Path) -> None:
    with Instance.load(name, SMALL) as instance, wire.entered():
        instance.attach("e0")
        instance.attach("e2")
        instance.maps.backends.put(3, abi.Backend(id=3))
        before = instance.program_info()
        assert instance.replace(dropper)
        assert instance.program_info().tag != before.tag
        assert instance.run(FRAME).action is Action.DROP
        assert running(instance) == {instance.program_info().id}
        assert len(instance.attachments()) == 2
        assert instance.maps.backends.get(3) == abi.Backend(id=3)


def test_the_same_program_is_replaced_only_when_asked(name: str) -> None:
    with Instance.load(name, SMALL) as instance:
        before = instance.program_info()
        assert not instance.replace(if_changed=True)
        assert instance.program_info() == before
        assert instance.replace()
        assert instance.program_info().id != before.id
        assert instance.program_info().tag == before.tag


def test_a_program_that_does_not_load_changes_nothing(name: str, tmp_path: Path) -> None:
    with Instance.load(name, SMALL) as instance:
        before = instance.program_info()
        with pytest.raises(KernelError, match="no such object"):
            instance.replace(tmp_path / "absent.o")
        assert instance.program_info() == before


@pytest.mark.parametrize("links", [0, 1, 2])
def test_a_replacement_killed_half_way_is_completed_by_the_next_process(
    name: str, wire: Namespace, dropper: Path, links: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Instance.load(name, SMALL) as instance, wire.entered():
        instance.attach("e0")
        instance.attach("e2")
        updated: list[Path] = []
        update = link.update

        def update_until(path: Path, new: int, old: int) -> None:
            if len(updated) == links:
                die()
            updated.append(path)
            update(path, new, old)

        with monkeypatch.context() as patch:
            patch.setattr(link, "update", update_until)
            if links == 2:  # both are updated; die before the pin is renamed
                patch.setattr(replacing, "_keep_previous", lambda *_: die())
            killed_in(lambda: instance.replace(dropper))
        assert len(running(instance)) == (2 if links == 1 else 1)
        with Instance.load(name, SMALL) as adopted:
            assert adopted.run(FRAME).action is Action.DROP
            assert running(adopted) == {adopted.program_info().id}
        assert waiting(name) == []


def test_the_program_before_is_kept_and_comes_back_the_same_way(
    name: str, wire: Namespace, dropper: Path
) -> None:
    with Instance.load(name, SMALL) as instance, wire.entered():
        instance.attach("e0")
        first = instance.running()
        assert instance.previous() is None
        with pytest.raises(NotLoaded, match="no program is kept from before"):
            instance.undo()
        instance.replace(dropper)
        assert instance.previous() == first
        second = instance.running()
        instance.undo()
        assert running(instance) == {first.program.id}
        assert instance.run(FRAME).action is Action.PASS
        assert instance.sweep().flows == 42
        assert instance.previous() == second
        with Instance.open(name) as other:
            with pytest.raises(Busy, match="was replaced meanwhile"):
                other.undo(over=second.program.id)  # who looked before that
            assert running(instance) == {first.program.id}
        instance.undo()  # and forth again: the sweep stays, since the dropper has none
        assert running(instance) == {second.program.id}
        assert sorted(entries(ROOT / name / "records")) == sorted(
            str(version.program.id) for version in (first, second)
        )


def test_what_a_program_was_made_of_is_kept_beside_it(name: str, dropper: Path) -> None:
    with Instance.load(name, SMALL) as instance:
        instance.replace(dropper)
        version = instance.running()
        assert version.note is not None
        assert version.note.object == record.digest(dropper.read_bytes())
        assert instance.kept(version) == dropper.read_bytes()
        with (
            record.as_file(instance.kept(version) or b"") as path,
            instance.shadow(path) as shadow,
        ):
            assert shadow.run(FRAME).action is Action.DROP
            assert shadow.program_info().tag == version.program.tag


def test_an_object_is_known_by_its_code_and_not_by_its_folder(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    objects = []
    for folder in (here, there):
        folder.mkdir()
        (folder / "lb.c").write_text(DROPPER)
        command = ("clang", *FLAGS, f"-I{SOURCES}", "-c", folder / "lb.c", "-o", folder / "lb.o")
        subprocess.run(command, check=True)
        objects.append((folder / "lb.o").read_bytes())
    assert objects[0] != objects[1]
    assert record.digest(objects[0]) == record.digest(objects[1])
    other = compiled(DROPPER.replace("XDP_DROP", "XDP_ABORTED"), tmp_path / "other.o")
    assert record.digest(other.read_bytes()) != record.digest(objects[0])
    assert record.abi_of((SOURCES.parent / "build/lb.bpf.o").read_bytes()) == abi.Abi.VERSION


LOADING = ("keep", "pin_programs")  # an undo loads nothing
STEPS = ("_switch", "_keep_previous", "_move_sweep", "forget")


@pytest.mark.parametrize(
    ("undone", "step"),
    [(False, step) for step in (*LOADING, *STEPS)] + [(True, step) for step in STEPS],
)
@pytest.mark.parametrize("after", [False, True])
def test_killed_before_or_after_any_step_the_next_process_knows_which_program_it_is(
    name: str, wire: Namespace, dropper: Path, undone: bool, step: str, after: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with Instance.load(name, SMALL) as instance, wire.entered():
        for interface in ("e0", "e2"):
            instance.attach(interface)
        if undone:
            instance.replace(dropper)
        old = instance.running()
        whole = getattr(replacing, step)

        def killed(*arguments: Any) -> None:
            if after:
                whole(*arguments)
            die()

        with monkeypatch.context() as patch:
            patch.setattr(replacing, step, killed)
            killed_in(instance.undo if undone else lambda: instance.replace(dropper))
        staged = step in STEPS or (step == "pin_programs" and after)
        with Instance.load(name, SMALL) as adopted:
            assert (adopted.running().program != old.program) == staged
            assert running(adopted) == {adopted.program_info().id}
            assert waiting(name) == []
            assert (adopted.previous() == old) == staged
            note = adopted.running().note
            assert note is not None
            if staged:
                adopted.undo()
                assert adopted.running().program == old.program


def test_an_attachment_after_a_replacement_by_another_process_runs_the_new_program(
    name: str, wire: Namespace, dropper: Path
) -> None:
    with Instance.load(name, SMALL) as stale, wire.entered():
        with Instance.open(name) as other:
            other.replace(dropper)
        stale.attach("e0")
        assert running(stale) == {stale.program_info().id}
        assert stale.run(FRAME).action is Action.DROP


# ---- runs ----


def test_program_info_says_what_bench_prints(name: str) -> None:
    with Instance.load(name, SMALL) as instance:
        info = instance.program_info()
    assert info.name == "lb"
    assert len(info.tag) == 16
    assert 0 < info.translated < 20_000
    assert 0 < info.verified < 900_000
    assert info.jited_bytes >= 0


def test_live_frames_go_through_the_program(name: str, wire: Namespace, dropper: Path) -> None:
    with Instance.load(name, SMALL, object_path=dropper) as instance, wire.entered():
        instance.run_live(FRAME, wire.ifindex("e0"), 1000)
        assert (instance.maps.cpus.get(0) or abi.Cpu()).packets == 1000


def test_the_sweep_runs_in_the_kernel_when_there_is_one(name: str) -> None:
    with Instance.load(name, SMALL) as instance, Instance.open(name, read_only=True) as reader:
        assert instance.sweep().flows == 42
        assert reader.sweep(7).now == 7


def test_a_program_without_a_sweep_loads_and_python_sweeps(name: str, dropper: Path) -> None:
    with Instance.load(name, SMALL, object_path=dropper) as instance:
        instance.maps.flows4.put(abi.Flow4Key(saddr=1, proto=6), abi.Flow(backend=1, frontend=1))
        report = instance.sweep()
        assert (report.expired, report.flows) == (1, 0)
    assert not (ROOT / name / "sweep").exists()


def test_a_kernel_that_refuses_the_sweep_gets_the_program_alone(name: str, tmp_path: Path) -> None:
    said: list[str] = []
    path = compiled(BAD_SWEEP, tmp_path / "refused.o")
    with Instance.load(name, SMALL, object_path=path, log=said.append) as instance:
        assert instance.run(FRAME).action is Action.PASS
        assert instance.sweep().flows == 0
    assert any("no sweep in the kernel" in line for line in said)


def test_the_default_object_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(objects.OBJECT, "/elsewhere/lb.bpf.o")
    assert kernel.default_object() == Path("/elsewhere/lb.bpf.o")


# ---- teardown ----


def test_teardown_leaves_nothing(name: str, wire: Namespace) -> None:
    instance = Instance.load(name, SMALL)
    with wire.entered():
        instance.attach("e0")
        instance.teardown()
        assert link.running(wire.ifindex("e0"))[0] == 0
    assert not (ROOT / name).exists()
    kernel.teardown(name)
