"""One service that cannot be applied keeps no other waiting: over real maps that are full, or that refuse a write."""

import ctypes
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

import pytest

from bpf import kernel
from bpf.abi import Verdict
from bpf.kernel import Instance
from bpf.via import Via
from reconciler import config as configuration
from reconciler import ids, node, standing
from reconciler.admission import Why
from reconciler.follow import Accepted
from reconciler.look import View
from reconciler.loop import Reconciler
from reconciler.neigh import Neighbours
from reconciler.retries import FIRST
from reconciler.revision import Revision
from tests.support import frames
from tests.support.bed import SIZES
from tests.support.box import CLIENT, WAN_LAN, Box, boxed, mac_of

HEAD = "apiVersion: evenkeel/v1\nguardrails: {removed-services: 100%, removed-backends: 100%}\n"
BPF_MAP_FREEZE = 22
SYSCALL = 321 if os.uname().machine == "x86_64" else 280


def file_of(**services: int) -> str:
    """Services with so many backends each; www is 192.0.2.10, and so on by name."""
    pools, said = [], []
    for name, count in services.items():
        at = NAMES.index(name)
        backends = (f"b{i}: {{address: 10.1.2.{100 + 8 * at + i}, port: 80}}" for i in range(count))
        pools.append(f"  {name}: {{backends: {{{', '.join(backends)}}}}}\n")
        said.append(
            f"  {name}: {{addresses: [192.0.2.{10 + at}], ports: [80/tcp], pools: [{name}]}}\n"
        )
    return f"{HEAD}pools:\n{''.join(pools)}services:\n{''.join(said)}"


NAMES = ("www", "api", "dns", "ftp", "pop")


@dataclass
class Daemon:
    """Several passes of one reconciler, at times of the test's choosing."""

    box: Box
    neighbours: Neighbours
    now: float = 1000.0
    reconciler: Reconciler = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.reconciler = Reconciler(
            self.box.bed.instance,
            node.load(WAN_LAN),
            self.box.place,
            self.neighbours,
            uptime=lambda: self.now,
        )

    def passes(self, text: str) -> View:
        revision = Revision("lb.yaml", text, sha256(text.encode()).digest())
        with self.box.namespace.entered():
            return self.reconciler.reconcile(Accepted(configuration.load(text), revision))

    def serves(self, name: str) -> bool:
        at = NAMES.index(name)
        syn = frames.tcp(41000, 80, "S")
        frame = frames.eth(frames.ip(CLIENT[4], f"192.0.2.{10 + at}", syn))
        return self.box.send(frame).verdict == Verdict.FORWARDED

    def served(self) -> set[str]:
        return set(filter(self.serves, NAMES))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with boxed(f"ek{os.getpid()}part", tmp_path) as box:
        for i in range(100, 140):
            box.neighbour(f"10.1.2.{i}", mac_of(i))
        with box.namespace.entered(), Neighbours() as neighbours:
            yield Daemon(box, neighbours)


MANY = SIZES.backends  # one more than there is room for: index 0 is nobody's


def crowd(count: int) -> str:
    """A pool of so many backends, in a service of its own."""
    backends = (f"b{i}: {{address: 10.9.{i // 200}.{1 + i % 200}, port: 80}}" for i in range(count))
    return f"  crowd: {{backends: {{{', '.join(backends)}}}}}\n"


CROWD = "  crowd: {addresses: [192.0.2.99], ports: [80/tcp], pools: [crowd], forward: dsr}\n"


def test_what_does_not_fit_is_named_and_the_others_come(daemon: Daemon) -> None:
    daemon.passes(file_of(www=2))
    text = file_of(www=2, api=2).replace("services:\n", f"{crowd(MANY)}services:\n{CROWD}")
    view = daemon.passes(text)
    assert daemon.served() == {"www", "api"}
    (why,) = view.blocked.values()
    assert (why.service, why.why) == ("crowd", Why.NO_ROOM)
    assert f"{MANY} more backends do not fit" in why.message
    assert f"sizes.backends of at least {MANY + 5} in node.yaml, which says {MANY}" in why.message
    assert daemon.passes(text).ops == ()


def test_what_the_message_tells_to_do_lets_it_in_and_keeps_what_forwards(daemon: Daemon) -> None:
    text = file_of(www=2).replace("services:\n", f"{crowd(MANY)}services:\n{CROWD}")
    (why,) = daemon.passes(text).blocked.values()
    assert "raise it; `reconciler upgrade` then goes over to larger maps" in why.message
    with Instance.open(daemon.box.place.instance) as command:
        command.resize(replace(SIZES, backends=4 * MANY))
    assert not daemon.passes(text).blocked
    assert daemon.served() == {"www"}


def test_a_pass_that_could_not_follow_to_other_maps_is_made_good_by_the_next(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.passes(file_of(www=2))
    with Instance.open(daemon.box.place.instance) as command:
        command.resize(replace(SIZES, backends=4 * MANY))

    def refuse(*arguments: object, **options: object) -> None:
        raise kernel.KernelError("too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Via, "open", refuse)
        with pytest.raises(kernel.KernelError, match="too many"):
            daemon.passes(file_of(www=2))
    daemon.passes(file_of(www=2, api=1))
    assert daemon.served() == {"www", "api"}


def test_a_service_that_no_longer_fits_stays_as_it_is_also_through_a_restart(
    daemon: Daemon,
) -> None:
    daemon.passes(file_of(www=2, api=1))
    more = file_of(www=2, api=1, dns=1).replace("services:\n", f"{crowd(MANY)}services:\n")
    text = more.replace("pools: [www]", "pools: [www, crowd]").replace("10.1.2.108", "10.1.2.110")
    view = daemon.passes(text)
    assert view.blocked.keys() == {"www"}
    assert daemon.served() == {"www", "api", "dns"}
    assert daemon.passes(text).ops == ()
    daemon.restart()
    assert daemon.passes(text).ops == (), "nothing moves"
    assert daemon.reconciler.drift == ()
    (daemon.box.place.run_dir / standing.PARTLY).unlink()
    daemon.restart()
    daemon.passes(text)
    assert daemon.served() == {"www", "api", "dns"}, "nor is anything lost with the record"


def test_room_that_becomes_free_is_used_soon(daemon: Daemon) -> None:
    before = file_of(www=1).replace("services:\n", f"{crowd(MANY // 2)}services:\n{CROWD}")
    daemon.passes(before)
    text = before.replace("crowd:", "mob:").replace("[crowd]", "[mob]").replace("10.9.", "10.8.")
    view = daemon.passes(text.replace("192.0.2.99", "192.0.2.98"))
    text = text.replace("192.0.2.99", "192.0.2.98")
    assert view.blocked.keys() == {"mob"}
    assert "until what they replace is gone" in view.blocked["mob"].message
    assert daemon.reconciler.due(view) == FIRST, "what went made room"
    assert not daemon.passes(text).blocked


def freeze(daemon: Daemon) -> None:
    """No system call may write the map of tables any more."""
    tables = daemon.box.bed.instance.maps.tables
    attributes = (ctypes.c_uint32 * 32)(tables.outer.fd)
    assert ctypes.CDLL(None, use_errno=True).syscall(SYSCALL, BPF_MAP_FREEZE, attributes, 128) == 0


def test_what_the_kernel_refuses_of_one_service_keeps_no_other_waiting(daemon: Daemon) -> None:
    """A frozen map of tables refuses every new table; what needs none goes on changing."""
    daemon.passes(file_of(www=2, api=2))
    freeze(daemon)
    text = file_of(www=2, api=1, dns=1, ftp=1)
    view = daemon.passes(text)
    assert view.blocked.keys() == {"dns", "ftp"}
    assert all(why.why is Why.REFUSED for why in view.blocked.values())
    assert "Operation not permitted" in view.blocked["dns"].message
    assert daemon.served() == {"www", "api"}
    api = next(at for at, entry in daemon.box.read().pools.items() if _slots_of(daemon, at) == 1)
    assert api, "api has one backend now"
    assert len(daemon.box.read().backends) == 3, "nothing is left over of those that failed"


def _slots_of(daemon: Daemon, at: int) -> int:
    return len(set(map(ids.index, daemon.box.read().tables[at])))


def test_it_is_tried_again_after_pauses_that_grow_until_another_file_comes(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.passes(file_of(www=2))
    tries: list[float] = []
    real = kernel.TableMap._new

    def refuse(*arguments: object) -> object:
        tries.append(daemon.now)
        raise kernel.KernelError("no memory")

    monkeypatch.setattr(kernel.TableMap, "_new", refuse)
    text = file_of(www=2, api=1)
    view = daemon.passes(text)
    for _ in range(4):
        before = len(tries)
        assert daemon.passes(text).ops == (), "it rests"
        assert len(tries) == before
        daemon.now += daemon.reconciler.due(view) + 1e-6
        view = daemon.passes(text)
        assert len(tries) > before, "it is tried"
        assert daemon.reconciler.drift == (), "that is no drift"
    moments = sorted(set(tries))
    pauses = [after - before for before, after in itertools.pairwise(moments)]
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8], rel=1e-3)
    monkeypatch.setattr(kernel.TableMap, "_new", real)
    daemon.reconciler.retries.forget()  # as the loop does when there is another file
    assert not daemon.passes(text).blocked
    assert daemon.served() == {"www", "api"}
