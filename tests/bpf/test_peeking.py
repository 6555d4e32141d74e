"""Where looking for tables is slow (before Linux 6.8), a program does it; here it is tried on every kernel."""

import os
import re
import subprocess
import sys
from array import array
from collections.abc import Iterator

import pytest

from bpf import peeking, tables
from bpf.errors import KernelError
from bpf.kernel import Instance, Sizes
from bpf.maps import Map
from bpf.peeking import AT_ONCE, Peek, waits
from bpf.tables import TableMap
from tests.support.instances import ROOT, SMALL, small_program, unique
from tests.support.unit import unit

__all__ = ["small_program"]  # a fixture of this module
POOLS = 2 * AT_ONCE + 2
PLACES = (0, AT_ONCE - 1, AT_ONCE, POOLS - 1)
LOOK = """
import sys
from bpf.kernel import Instance
from bpf.peeking import Peek
with Instance.open(sys.argv[1], read_only=True) as instance:
    print(Peek(instance.maps.tables.fd).number(0))
"""


@pytest.fixture(scope="module")
def instance() -> Iterator[Instance]:
    sizes = Sizes(**{name: getattr(SMALL, name) for name in SMALL.__slots__} | {"pools": POOLS})
    loaded = Instance.load(unique(), sizes)
    loaded.maps.tables.put_many((at, array("I", [at, 1])) for at in PLACES)
    yield loaded
    loaded.teardown()


@pytest.fixture
def slow(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> Iterator[TableMap]:
    """Another process's view on a kernel that lets user space wait, where it must not look by itself."""

    def look(*_: object) -> None:
        raise AssertionError("looked for itself")

    monkeypatch.setattr(tables, "waits", lambda _: True)
    with Instance.open(instance.name) as other:
        monkeypatch.setattr(Map, "batches", look)
        monkeypatch.setattr(other.maps.tables.outer, "_lookup", look)
        yield other.maps.tables


@pytest.mark.parametrize(
    ("release", "slow"),
    [
        ("5.10.0-32-amd64", True),
        ("6.1.0-57-cloud-amd64", True),
        ("6.7", True),
        ("6.8.0-45-generic", False),
        ("6.12.95+deb12-cloud-amd64", False),
        ("10.0", False),
        ("something else", False),
    ],
)
def test_which_kernels_let_user_space_wait(release: str, slow: bool) -> None:
    assert waits(release) is slow


def test_the_program_finds_what_user_space_finds(instance: Instance) -> None:
    outer, peek = instance.maps.tables.outer, Peek(instance.maps.tables.fd)
    try:
        assert peek.numbers(POOLS) == {at: outer.get(at) for at in PLACES}
        assert [peek.number(at) for at in PLACES] == [outer.get(at) for at in PLACES]
        assert peek.number(1) is None
        assert peek.number(POOLS) is None
    finally:
        peek.close()


def test_tables_are_read_replaced_and_removed_through_it(slow: TableMap) -> None:
    there = {at: array("I", [at, 1]) for at in PLACES}
    assert slow.items() == there
    for slots in (array("I", [7, 8]), array("I", [7, 8, 9])):
        slow.put(5, slots)
        assert slow.items() == there | {5: slots}
    assert slow.delete(5)
    assert slow.get(5) is None
    assert slow.indexes() == list(PLACES)


def test_where_it_cannot_be_loaded_tables_are_read_all_the_same(
    instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "waits", lambda _: True)
    monkeypatch.setattr(peeking, "OBJECT", "absent.o")
    with pytest.raises(KernelError, match=r"absent\.o"):
        Peek(instance.maps.tables.fd)
    with Instance.open(instance.name) as other:
        assert other.maps.tables.indexes() == list(PLACES)


def test_the_reconcilers_capabilities_are_enough_for_it(instance: Instance) -> None:
    names = re.findall(r"CAP_(\w+)", unit("reconciler").settings["CapabilityBoundingSet"])
    only = ",".join(["-all", *(f"+{name.lower()}" for name in names)])
    command = ("setpriv", "--bounding-set", only, sys.executable, "-c", LOOK, instance.name)
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert int(said) == instance.maps.tables.number(0)


def test_it_is_used_on_the_kernels_that_need_it(instance: Instance) -> None:
    assert (instance.maps.tables._peek is not None) is waits(os.uname().release)
