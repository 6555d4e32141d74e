"""Others change the maps behind the reconciler's back: seen, explained, repaired or left as the node says."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest

from bpf import abi, libbpf
from bpf.abi import Verdict
from bpf.pins import Pins
from bpf.tables import open_pin
from reconciler import config as configuration
from reconciler import node
from reconciler.dataplane import Op
from reconciler.drift import REPAIRS, SPAN
from reconciler.follow import Accepted
from reconciler.look import View
from reconciler.loop import NotConverged, Reconciler
from reconciler.neigh import Neighbours
from reconciler.pinning import pin_again
from reconciler.revision import Revision
from tests.support import frames
from tests.support.box import CLIENT, WAN_LAN, Box, boxed, mac_of

TEXT = """\
apiVersion: evenkeel/v1
pools:
  web:
    backends:
      web1: {address: 10.1.2.101, port: 8080}
      web2: {address: 10.1.2.102, port: 8080}
services:
  www: {addresses: [192.0.2.10], ports: [80/tcp], pools: [web]}
"""
SYN = frames.eth(frames.ip(CLIENT[4], "192.0.2.10", frames.tcp(41000, 80, "S")))
NOON = 2_000_000_000.0  # later than whenever a test applied anything


@dataclass
class Daemon:
    """A reconciler that goes on through several passes, at times of the test's choosing."""

    box: Box
    reconciler: Reconciler
    now: float = NOON

    def passes(self, text: str = TEXT) -> View:
        revision = Revision("lb.yaml", text, sha256(text.encode()).digest())
        self.reconciler._clock = lambda: self.now
        with self.box.namespace.entered():
            return self.reconciler.reconcile(Accepted(configuration.load(text), revision))


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with boxed(f"ek{os.getpid()}drift", tmp_path_factory.mktemp("box")) as made:
        made.neighbour("10.1.2.101", mac_of(1))
        made.neighbour("10.1.2.102", mac_of(2))
        yield made


@contextmanager
def running(box: Box, policy: str = "restore") -> Iterator[Daemon]:
    with box.namespace.entered(), Neighbours() as neighbours:
        found = node.load(WAN_LAN + f"drift: {policy}\n")
        daemon = Daemon(box, Reconciler(box.bed.instance, found, box.place, neighbours))
        daemon.passes(TEXT + "# anew: whatever the test before left is no measure\n")
        daemon.passes()
        assert daemon.passes().ops == ()
        yield daemon


def no_frontends(box: Box) -> None:
    maps = box.bed.instance.maps
    maps.frontends4.delete_many([key for key, _ in maps.frontends4.items()])


def another_weight(box: Box) -> None:
    maps = box.bed.instance.maps
    ((at, entry), *_) = box.read().backends.items()
    entry.weight = 9
    maps.backends.put(at, entry)


def no_backend(box: Box) -> None:
    box.bed.instance.maps.backends.put(min(box.read().backends), abi.Backend())


def no_table(box: Box) -> None:
    box.bed.instance.maps.tables.delete(min(box.read().tables))


def no_prefilter(box: Box) -> None:
    memory = box.bed.instance.maps.prefilter.view()
    memory[:] = bytes(len(memory))


def a_stranger(box: Box) -> None:
    key = abi.Frontend4Key(addr=0xC0000263, port=80, proto=6)
    box.bed.instance.maps.frontends4.put(key, box.bed.instance.maps.frontends4.items()[0][1])


MEDDLING = {
    "frontends4 192.0.2.10:80/tcp: missing": no_frontends,
    "backends entry 1: different": another_weight,
    "backends entry 1: missing": no_backend,
    "tables entry 1: missing": no_table,
    "prefilter entry": no_prefilter,
    "frontends4 192.0.2.99:80/tcp: not ours": a_stranger,
}


def lines(daemon: Daemon, start: str) -> list[str]:
    return [one for one in daemon.reconciler.drift if one.startswith(start)]


@pytest.mark.parametrize("said", MEDDLING)
def test_what_others_change_is_explained_and_repaired(box: Box, said: str) -> None:
    with running(box) as daemon:
        daemon.now += 10
        MEDDLING[said](box)
        assert daemon.passes().ops
        assert lines(daemon, said), daemon.reconciler.drift
        assert "since between" in lines(daemon, said)[0]
        assert box.send(SYN).verdict == Verdict.FORWARDED
        assert daemon.passes().ops == ()
        assert daemon.reconciler.drift == ()


@pytest.mark.parametrize("said", MEDDLING)
def test_one_pass_of_a_new_process_repairs_it_too(box: Box, said: str) -> None:
    box.write(TEXT)
    box.run("--once")
    MEDDLING[said](box)
    assert "drift to repair" in box.run("--dry-run").stdout
    box.run("--once")
    assert box.send(SYN).verdict == Verdict.FORWARDED
    assert "no changes" in box.run("--dry-run").stdout


@pytest.mark.parametrize("said", MEDDLING)
def test_a_node_that_only_wants_reports_gets_them_and_no_repair(box: Box, said: str) -> None:
    with running(box, "report") as daemon:
        MEDDLING[said](box)
        meddled = box.read()
        for _ in range(2):
            daemon.now += 10
            daemon.passes()
            assert lines(daemon, said), daemon.reconciler.drift
        assert box.read() == meddled
        assert daemon.reconciler.vigil.left > 0
        daemon.passes(TEXT + "# another file is applied whole\n")
        assert box.send(SYN).verdict == Verdict.FORWARDED


def test_since_when_is_said_once_and_stays(box: Box) -> None:
    with running(box, "report") as daemon:
        no_frontends(box)
        daemon.now += 60
        daemon.passes()
        first = daemon.reconciler.vigil.seen
        daemon.now += 60
        daemon.passes()
        assert daemon.reconciler.vigil.seen == first
        assert {(one.well, one.found) for one in first} == {(NOON, NOON + 60)}


def test_what_is_to_be_ignored_is_left_without_a_word(box: Box) -> None:
    with running(box, "ignore") as daemon:
        no_frontends(box)
        assert daemon.passes().ops == ()
        assert daemon.reconciler.drift == ()
        assert daemon.reconciler.vigil.left == 0
        assert not box.bed.instance.maps.frontends4.items()


def test_next_hops_are_followed_while_drift_is_left(box: Box) -> None:
    with running(box, "report") as daemon:
        no_table(box)
        box.neighbour("10.1.2.101", mac_of(77))
        daemon.passes()
        macs = {bytes(entry.dmac).hex(":") for entry in box.read().backends.values()}
        assert mac_of(77) in macs
        assert lines(daemon, "tables entry 1: missing")
        box.neighbour("10.1.2.101", mac_of(1))


# ---- a fight


def test_a_fight_is_detected_reported_and_stopped(box: Box) -> None:
    with running(box) as daemon:
        fight(daemon, REPAIRS)
        assert daemon.reconciler.vigil.fought == ()
        no_frontends(box)
        assert daemon.passes().ops == ()
        assert {one.where.value for one in daemon.reconciler.vigil.fought} == {"frontends4"}
        assert lines(daemon, "frontends4")
        assert not box.bed.instance.maps.frontends4.items()
        daemon.now += SPAN + 1
        assert daemon.passes().ops, "tried again when the other may have gone"
        daemon.passes()
        assert daemon.reconciler.vigil.fought == ()


def test_few_repairs_are_no_fight(box: Box) -> None:
    with running(box) as daemon:
        for _ in range(2 * REPAIRS):
            daemon.now += SPAN / 2
            fight(daemon, 1)
        assert daemon.reconciler.vigil.fought == ()


def test_another_file_is_applied_in_the_middle_of_a_fight(box: Box) -> None:
    with running(box) as daemon:
        fight(daemon, REPAIRS)
        no_frontends(box)
        daemon.passes()
        assert daemon.reconciler.vigil.fought
        daemon.passes(TEXT.replace("80/tcp", "80/tcp, 443/tcp"))
        assert len(box.bed.instance.maps.frontends4.items()) > 2
        assert daemon.reconciler.vigil.fought == ()


def fight(daemon: Daemon, rounds: int) -> None:
    for _ in range(rounds):
        daemon.now += 1
        no_frontends(daemon.box)
        assert daemon.passes().ops


def test_a_writer_that_is_quicker_than_the_reading_back_is_not_fought_for_ever(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(box) as daemon:
        whole = daemon.reconciler.dataplane.apply

        def contested(ops: Iterable[Op]) -> None:
            whole(ops)
            no_frontends(box)

        no_frontends(box)
        monkeypatch.setattr(daemon.reconciler.dataplane, "apply", contested)
        for _ in range(REPAIRS):
            daemon.now += 1
            with pytest.raises(NotConverged):
                daemon.passes()
        assert daemon.passes().ops == ()
        assert daemon.reconciler.vigil.fought


# ---- pins and the program


def test_a_map_that_was_unpinned_is_pinned_again(box: Box) -> None:
    with running(box) as daemon:
        pin = Pins.of(box.place.instance).map("frontends4")
        pin.unlink()
        daemon.passes()
        assert pin.exists()
        assert daemon.reconciler.drift == ("map frontends4: was not pinned any more",)
        assert [key.port for key, _ in box.bed.instance.maps.frontends4.items() if key.port] == [80]
        daemon.passes()
        assert daemon.reconciler.drift == ()


def test_a_new_process_cannot_reach_an_unpinned_map_and_says_which(box: Box) -> None:
    box.write(TEXT)
    box.run("--once")
    pin = Pins.of(box.place.instance).map("frontends4")
    pin.unlink()
    try:
        for mode in ("--once", "--dry-run"):
            assert f"{pin}: not pinned" in box.run(mode, ok=(1,)).stderr
    finally:
        assert pin_again(box.bed.instance) == ("frontends4",)
    box.run("--once")


def unlinked(pin: Path) -> None:
    pin.unlink()


def detached(pin: Path) -> None:
    """As `bpftool link detach pinned` does it: the pin stays, and means nothing any more."""
    link = open_pin(pin)
    assert link is not None
    assert libbpf.lib().bpf_link_detach(link) == 0
    os.close(link)


@pytest.mark.parametrize("how", [unlinked, detached])
def test_a_program_that_was_detached_is_attached_again(
    box: Box, how: Callable[[Path], None]
) -> None:
    with running(box) as daemon:
        how(Pins.of(box.place.instance).link("wan"))
        daemon.passes()
        said = "interface wan: the program was not attached any more"
        assert daemon.reconciler.drift == (said,)
        assert {one.interface for one in box.bed.instance.attachments()} == {"wan", "lan"}
        daemon.passes()
        assert daemon.reconciler.drift == ()
