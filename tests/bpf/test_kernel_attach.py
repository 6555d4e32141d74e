"""Links to interfaces: found again, refused, renamed, gone, and other people's programs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf import kernel, libbpf, link
from bpf.errors import Busy, KernelError
from bpf.kernel import Instance, Mode
from bpf.pins import ROOT, entries
from tests.support.instances import PASSER, SMALL, compiled, small_program, unique
from tests.support.namespace import Namespace

__all__ = ["small_program"]  # a fixture of this module


@pytest.fixture(scope="module")
def instance() -> Iterator[Instance]:
    loaded = Instance.load(unique(), SMALL)
    yield loaded
    loaded.teardown()


@pytest.fixture(scope="module")
def foreign() -> Iterator[Instance]:
    """Another instance: as good as any other XDP program."""
    loaded = Instance.load(unique(), SMALL)
    yield loaded
    loaded.teardown()


@pytest.fixture
def wire(instance: Instance) -> Iterator[Namespace]:
    made = Namespace(unique())
    try:
        made.ip("link add e0 type veth peer name e1\nlink set e0 up\nlink set e1 up\n")
        with made.entered():
            yield made
    finally:
        made.delete()
        for interface in entries(ROOT / instance.name / "links"):
            link.detach(ROOT / instance.name / "links" / interface)


def test_auto_is_native_where_the_driver_can(instance: Instance, wire: Namespace) -> None:
    attached = instance.attach("e0")
    assert (attached.interface, attached.mode, attached.reason) == ("e0", Mode.NATIVE, "")
    assert attached.ifindex == wire.ifindex("e0")
    assert instance.attachments() == [attached]
    assert link.running(attached.ifindex) == (instance.program_info().id, Mode.NATIVE)


def test_auto_says_why_it_fell_back_in_the_kernels_words(
    instance: Instance, wire: Namespace
) -> None:
    attached = instance.attach("lo")
    assert attached.mode is Mode.GENERIC
    assert "native mode refused" in attached.reason
    assert "Operation not supported" in attached.reason
    assert "the kernel: Underlying driver does not support XDP" in attached.reason


def test_an_mtu_too_large_for_native_mode_is_named(wire: Namespace, tmp_path: Path) -> None:
    linear = compiled(PASSER.replace("xdp.frags", "xdp"), tmp_path / "linear.o")
    wire.ip("link set e0 mtu 9000\nlink set e1 mtu 9000\n")
    small = Instance.load(unique(), SMALL, object_path=linear)
    try:
        attached = small.attach("e0")
        assert attached.mode is Mode.GENERIC
        assert "the MTU is too large" in attached.reason
        assert "Peer MTU is too large to set XDP" in attached.reason
    finally:
        small.teardown()


def test_native_alone_is_refused_where_the_driver_cannot(
    instance: Instance, wire: Namespace
) -> None:
    with pytest.raises(KernelError, match=r"interface lo.*native.*no XDP.*mode: generic"):
        instance.attach("lo", Mode.NATIVE)
    assert instance.attachments() == []
    assert link.running(1)[0] == 0


def test_attaching_again_finds_it(instance: Instance, wire: Namespace) -> None:
    first = instance.attach("e0")
    with Instance.open(instance.name) as other:
        assert other.attach("e0") == first
        assert other.attach("e0", Mode.NATIVE) == first
    assert entries(ROOT / instance.name / "links") == ["e0"]


def test_another_mode_is_another_attachment(instance: Instance, wire: Namespace) -> None:
    instance.attach("e0", Mode.NATIVE)
    assert instance.attach("e0", Mode.GENERIC).mode is Mode.GENERIC
    assert link.running(wire.ifindex("e0"))[1] is Mode.GENERIC
    assert instance.attach("e0").mode is Mode.GENERIC


def test_detaching_frees_the_interface_at_once(instance: Instance, wire: Namespace) -> None:
    for _ in range(3):
        instance.attach("e0")
        instance.detach("e0")
        assert link.running(wire.ifindex("e0"))[0] == 0
    instance.detach("e0")
    assert instance.attachments() == []


def test_an_interface_that_is_not_here_is_named(instance: Instance, wire: Namespace) -> None:
    with pytest.raises(KernelError, match=r"interface nosuch: not in this network namespace"):
        instance.attach("nosuch")


def test_a_name_with_a_dot_can_be_pinned(instance: Instance, wire: Namespace) -> None:
    wire.ip("link set e0 down\nlink set e0 name v-1.100\nlink set v-1.100 up\n")
    instance.attach("v-1.100")
    assert [a.interface for a in instance.attachments()] == ["v-1.100"]
    instance.detach("v-1.100")
    assert instance.attachments() == []


# ---- somebody else is there ----


@pytest.mark.parametrize("mode", [Mode.AUTO, Mode.NATIVE, Mode.GENERIC])
@pytest.mark.parametrize("flags", [link.NATIVE, link.GENERIC])
def test_a_program_without_a_link_is_named_and_left_alone(
    instance: Instance, foreign: Instance, wire: Namespace, mode: Mode, flags: int
) -> None:
    index, other = wire.ifindex("e0"), foreign.program_info()
    assert libbpf.lib().bpf_xdp_attach(index, foreign._program, flags, None) == 0
    with pytest.raises(Busy, match=rf"interface e0.*program lb \(id {other.id}, tag {other.tag}\)"):
        instance.attach("e0", mode)
    assert link.running(index)[0] == other.id
    assert instance.attachments() == []


def test_a_program_with_a_link_is_named_and_left_alone(
    instance: Instance, foreign: Instance, wire: Namespace
) -> None:
    foreign.attach("e0")
    with pytest.raises(Busy, match=rf"id {foreign.program_info().id}.*xdp off"):
        instance.attach("e0")
    assert [a.interface for a in foreign.attachments()] == ["e0"]
    foreign.detach("e0")
    assert instance.attach("e0").mode is Mode.NATIVE


# ---- interfaces come and go ----


def test_a_link_whose_interface_is_gone_makes_room(instance: Instance, wire: Namespace) -> None:
    instance.attach("e0")
    wire.ip("link del e0\n")
    assert instance.attachments() == []
    wire.ip("link add e0 type veth peer name e1\nlink set e0 up\n")
    assert instance.attach("e0").mode is Mode.NATIVE


def test_a_renamed_interface_keeps_its_link(instance: Instance, wire: Namespace) -> None:
    before = instance.attach("e0")
    wire.ip("link set e0 down\nlink set e0 name e9\nlink set e9 up\n")
    assert [(a.interface, a.ifindex) for a in instance.attachments()] == [("e9", before.ifindex)]
    assert instance.attach("e9").ifindex == before.ifindex
    assert entries(ROOT / instance.name / "links") == ["e9"]


def test_interfaces_that_swapped_names_keep_their_links(
    instance: Instance, wire: Namespace
) -> None:
    a, b = instance.attach("e0"), instance.attach("e1")
    wire.ip("link set e0 down\nlink set e1 down\nlink set e0 name e8\n")
    wire.ip("link set e1 name e0\nlink set e8 name e1\nlink set e0 up\nlink set e1 up\n")
    assert instance.attach("e0").ifindex == b.ifindex
    assert instance.attach("e1").ifindex == a.ifindex
    assert sorted(x.interface for x in instance.attachments()) == ["e0", "e1"]


def test_a_link_of_another_namespace_is_neither_taken_nor_removed(
    instance: Instance, wire: Namespace
) -> None:
    instance.attach("e0")
    elsewhere = Namespace(unique())
    try:
        elsewhere.ip("link add e0 type veth peer name e1\n")
        with elsewhere.entered():
            with pytest.raises(Busy, match="another network namespace"):
                instance.attach("e0")
            (seen,) = instance.attachments()
            assert seen.reason == "in another network namespace"
    finally:
        elsewhere.delete()
    assert link.running(wire.ifindex("e0"))[0] == instance.program_info().id


def test_replacing_passes_over_a_link_whose_interface_is_gone(
    instance: Instance, wire: Namespace
) -> None:
    instance.attach("e0")
    wire.ip("link del e0\n")
    assert instance.replace()
    assert instance.attachments() == []


def test_the_link_outlives_whoever_attached(instance: Instance, wire: Namespace) -> None:
    with Instance.open(instance.name) as other:
        other.attach("e0")
    assert link.running(wire.ifindex("e0"))[0] == instance.program_info().id
    assert kernel.Instance.open(instance.name).attachments() == instance.attachments()
