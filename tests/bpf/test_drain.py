"""Flows of backends that drain or are removed, packet by packet, with the clock in the test's hand."""

from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest

from bpf import abi, kernel
from bpf.abi import Verdict
from reconciler import config as configuration
from reconciler import node
from reconciler.drain import KEPT, OVER, lasting
from reconciler.encode import TICK, ticks
from reconciler.follow import Accepted
from reconciler.look import View
from reconciler.loop import Reconciler
from reconciler.maps import PinnedMaps
from reconciler.neigh import Neighbours
from reconciler.revision import Revision
from tests.bpf.test_reconciler_maps import CLIENT, WAN_LAN, Box, acquaint, box, mac_of  # noqa: F401
from tests.support import frames

TEXT = """\
apiVersion: evenkeel/v1
defaults: {forward: dsr, drain: {grace: 60s}}
pools:
  web:
    backends:
      web1: {address: 10.1.2.101}
      web2: {address: 10.1.2.102}
services:
  www: {addresses: [192.0.2.10], ports: [80/tcp], pools: [web]}
"""
DRAINED = TEXT.replace("10.1.2.102", "10.1.2.102, state: drain")
REMOVED = TEXT.replace("      web2: {address: 10.1.2.102}\n", "")
GONE = pytest.mark.parametrize("text", [DRAINED, REMOVED], ids=["drained", "removed"])
WEB1, WEB2 = mac_of(1), mac_of(2)
GRACE = lasting(60)


@dataclass
class Time:
    """Ticks: what the program's clock said at first, and what the test adds."""

    now: int = field(default_factory=kernel.now_tick)


class Drill:
    """A flow of web2's, and what becomes of it."""

    def __init__(self, box: Box, text: str = TEXT) -> None:  # noqa: F811
        self.box, self.time = box, Time()
        self.maps = PinnedMaps(box.bed.instance)
        acquaint(box, configuration.load(TEXT))
        self.reconcile(text)
        self.sport = next(s for s in range(41000, 42000) if self.send(s) == WEB2)
        self.entry = self.named("web2")

    def reconcile(self, text: str) -> View:
        with self.box.namespace.entered(), Neighbours() as neighbours:
            reconciler = Reconciler(
                self.box.bed.instance, node.load(WAN_LAN), self.box.place, neighbours,
                allow_removals=True, ticks=lambda: self.time.now,
            )  # fmt: skip
            revision = Revision("lb.yaml", text, text.encode()[-32:].rjust(32))
            return reconciler.reconcile(Accepted(configuration.load(text), revision))

    def later(self, more: int, text: str) -> View:
        self.time.now += more
        return self.reconcile(text)

    def send(self, sport: int = 0, flags: str = "A") -> str:
        packet = frames.ip(CLIENT[4], "192.0.2.10", frames.tcp(sport or self.sport, 80, flags))
        outcome = self.box.send(frames.eth(packet))
        assert outcome.verdict == Verdict.FORWARDED
        return outcome.frame[:6].hex(":")

    def named(self, name: str) -> abi.Backend | None:
        address = ip_address({"web1": "10.1.2.101", "web2": "10.1.2.102"}[name]).packed
        entries = self.maps.read().backends.values()
        return next((e for e in entries if bytes(e.addr)[:4] == address), None)


@pytest.fixture
def drill(box: Box) -> Drill:  # noqa: F811
    return Drill(box)


@GONE
def test_a_flow_stays_until_the_deadline_and_is_chosen_anew_after(drill: Drill, text: str) -> None:
    drill.reconcile(text)
    assert drill.send() == WEB2
    drill.later(GRACE - 1, text)
    assert drill.send() == WEB2, "a moment before the deadline"
    drill.later(1, text)
    assert drill.send() == WEB1
    assert drill.later(1, text).ops == ()


@GONE
def test_no_one_new_meets_who_drains(drill: Drill, text: str) -> None:
    drill.reconcile(text)
    assert {drill.send(sport, "S") for sport in range(43000, 43200)} == {WEB1}
    assert drill.send(flags="S") == WEB1, "the same tuple, another connection"


@GONE
def test_a_restart_forgets_no_deadline_and_moves_none(drill: Drill, text: str) -> None:
    """Every pass is a process of its own here: there is nothing but the maps."""
    drill.reconcile(text)
    first = drill.named("web2")
    drill.later(GRACE // 2, text)
    again = drill.named("web2")
    assert first is not None
    assert (again, first.until) == (first, drill.time.now - GRACE // 2 + GRACE)


def test_who_is_back_in_time_has_kept_its_flows(drill: Drill) -> None:
    drill.reconcile(REMOVED)
    drill.later(5, TEXT)
    assert drill.named("web2") == drill.entry
    drill.later(2 * GRACE, TEXT)
    assert drill.send() == WEB2


def test_a_removed_backend_without_flows_goes_at_once(drill: Drill) -> None:
    drill.send(flags="R")
    drill.box.bed.instance.sweep()
    drill.reconcile(REMOVED)
    assert drill.named("web2") is None


def test_what_drained_is_remembered_while_the_file_says_drain(drill: Drill) -> None:
    drill.reconcile(DRAINED)
    drill.later(GRACE, DRAINED)
    after = drill.named("web2")
    assert after is not None
    assert drill.entry is not None
    assert (after.until, after.id != drill.entry.id) == (OVER, True)
    drill.later(10 * GRACE, DRAINED)
    assert drill.named("web2") == after, "it is flushed once"


@GONE
def test_kept_flows_end_by_themselves(drill: Drill, text: str) -> None:
    kept = text.replace("{grace: 60s}", "{then: keep}")
    drill.reconcile(kept)
    entry = drill.named("web2")
    assert entry is not None
    assert entry.until == KEPT
    drill.later(100 * GRACE, kept)
    assert drill.send() == WEB2
    drill.box.bed.instance.sweep(kernel.now_tick() + ticks(400))
    drill.reconcile(kept)
    assert (drill.named("web2") is None) is (text is REMOVED)


def test_a_pools_own_drain_outlives_its_slots(drill: Drill) -> None:
    """The file says keep for this pool and flush for others; once removed, only slots tell whose it was."""
    own = REMOVED.replace("    backends:", "    drain: {then: keep}\n    backends:")
    for passed in (0, GRACE, GRACE):
        drill.later(passed, own)
        assert drill.send() == WEB2


def test_weight_0_has_no_deadline(drill: Drill) -> None:
    text = TEXT.replace("10.1.2.102", "10.1.2.102, weight: 0")
    drill.reconcile(text)
    drill.later(100 * GRACE, text)
    assert drill.send() == WEB2
    assert drill.send(flags="S") == WEB1


@GONE
def test_a_shorter_grace_brings_the_deadline_nearer(drill: Drill, text: str) -> None:
    drill.reconcile(text)
    drill.later(1, text.replace("grace: 60s", "grace: 5s"))
    if text is DRAINED:
        drill.later(lasting(5), text.replace("grace: 60s", "grace: 5s"))
        assert drill.send() == WEB1
    else:
        assert drill.send() == WEB2, "of who is gone from the file, the entry alone tells"


def test_a_backend_that_drains_is_followed_to_its_new_mac(drill: Drill) -> None:
    drill.reconcile(REMOVED)
    drill.box.neighbour("10.1.2.102", mac_of(9))
    drill.reconcile(REMOVED)
    assert drill.send() == mac_of(9)


def test_replies_of_a_removed_nat_backend_are_still_translated(box: Box) -> None:  # noqa: F811
    nat = TEXT.replace("dsr", "nat")
    drill = Drill(box, nat)
    reply = frames.eth(frames.ip("10.1.2.102", CLIENT[4], frames.tcp(80, drill.sport, "A")))
    removed = REMOVED.replace("dsr", "nat")
    assert 60 <= drill.reconcile(removed).next_end <= 60 + 2 * TICK
    at = box.namespace.ifindex("lan")
    assert box.bed.send(reply, at=at).verdict == Verdict.RETURNED
    drill.later(GRACE, removed)
    assert box.bed.send(reply, at=at).verdict == Verdict.NOT_OURS


def test_the_progress_of_a_drain_is_in_the_view(drill: Drill) -> None:
    (one,) = drill.reconcile(REMOVED).drains
    assert (one.flows, one.until) == (1, drill.time.now + GRACE)
