"""Next hops and interfaces as they change under a running daemon: who is sent to, how soon, and out of where."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import NamedTuple

import pytest

from bpf import abi
from bpf.kernel import Instance
from reconciler import neigh
from reconciler.neigh import Neighbours
from reconciler.netlink import Changed, Listener
from tests.support import lab as labs
from tests.support.balancer import CONFIG, PORT, Balancer
from tests.support.lab import BALANCER, SERVICE, Backend
from tests.support.namespace import Namespace
from tests.support.traffic import Connection
from tests.support.wait import until

SOON = 1.0  # seconds
FAR = {4: "10.9.0.5", 6: "fd09::5"}  # behind a gateway
NOBODY = "10.1.2.150"
WAN = {4: "10.1.1.1", 6: "fd01:1::1"}
SECOND = {4: "10.1.5.2", 6: "fd01:5::2"}  # on a link of its own
MORE = f"""\
  far:
    backends: {{far4: {{address: {FAR[4]}, port: 8080}}, far6: {{address: "{FAR[6]}", port: 8080}}}}
  late:
    backends: {{late: {{address: {NOBODY}, port: 8080}}}}
  second:
    backends: {{second4: {{address: {SECOND[4]}, port: 8080}}, second6: {{address: "{SECOND[6]}", port: 8080}}}}
services:
  away: {{addresses: [192.0.2.11, "2001:db8::11"], ports: [80/tcp], pools: [far]}}
  late: {{addresses: [192.0.2.12], ports: [80/tcp], pools: [late]}}
  second: {{addresses: [192.0.2.13, "2001:db8::13"], ports: [80/tcp], pools: [second]}}
"""
ALL = CONFIG.replace("services:\n", MORE)


class Box(Balancer):
    """The balancer, and what its maps say of next hops."""

    def _build(self) -> None:
        super()._build()
        for backend in self.lab.backends:  # as it is on real hosts that announce themselves
            announce(backend.namespace)
        announce(self.lab.client)
        self.config.write_text(ALL)

    def entry(self, address: str) -> abi.Backend | None:
        wanted = ip_address(address).packed
        entries = dict(self.maps.backends.items()).values()
        return next((e for e in entries if bytes(e.addr.v6)[: len(wanted)] == wanted), None)

    def hop(self, address: str) -> tuple[int, bytes, bytes, int]:
        found = self.entry(address)
        assert found is not None, f"no backend has {address}"
        return found.ifindex, bytes(found.dmac), bytes(found.smac), found.mtu

    def epoch(self) -> int:
        settings = self.maps.settings.get(0)
        assert settings is not None
        return int(settings.hop_epoch)

    def follow(self) -> None:
        self.start()
        instance = self.enter_context(Instance.open(self.name, read_only=True))
        self.maps = instance.maps


def hush(place: Namespace) -> None:
    place.sysctl("net.ipv4.conf.all.arp_notify=0", "net.ipv4.conf.eth0.arp_notify=0")


def announce(place: Namespace) -> None:
    place.sysctl("net.ipv4.conf.all.arp_notify=1", "net.ipv6.conf.all.ndisc_notify=1")
    place.sysctl("net.ipv4.conf.eth0.arp_notify=1", "net.ipv6.conf.eth0.ndisc_notify=1")


def change_mac(place: Namespace, last: int) -> bytes:
    mac = bytes((2, 0, 0, 0, 0x77, last))
    place.ip(f"link set eth0 address {mac.hex(':')}\n")
    return mac


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    with Box() as made:
        made.follow()
        yield made


def test_a_backend_that_changes_its_mac_is_followed_at_once(box: Box) -> None:
    backends = {b.name: b for b in box.lab.backends}
    with Connection(box.lab.client, SERVICE[4], PORT) as connection:
        backend = backends[connection.get().backend]
        mac = change_mac(backend.namespace, 1)
        began = time.monotonic()
        until(lambda: box.hop(backend.addresses[4])[1] == mac, what="the new MAC in the maps")
        took = time.monotonic() - began
        assert connection.get().backend == backend.name
    assert took < SOON
    assert len(box.answering()) == 2


def test_a_backend_that_fails_its_checks_is_sought_anew(box: Box) -> None:
    """It has another MAC and told nobody: the kernel alone would believe the old one for most of a minute."""
    backend = box.lab.backends[0]
    hush(backend.namespace)
    mac = change_mac(backend.namespace, 3)
    entry = box.entry(backend.addresses[4])
    assert entry is not None
    with Instance.open(box.name) as instance:
        health, index = instance.maps.health, entry.id & abi.IdLayout.INDEX_MASK
        health.put(index, abi.Health(id=entry.id, state=abi.HealthState.DOWN))
        try:
            until(lambda: box.hop(backend.addresses[4])[1] == mac, 5, what="the new MAC")
        finally:
            health.put(index, abi.Health())
    announce(backend.namespace)
    until(lambda: len(box.answering()) == 2, what="both backends")


def test_a_client_that_changes_its_mac_still_gets_its_answers(box: Box) -> None:
    """Its hop is kept in the flow: only a new epoch makes the program look it up again."""
    with Connection(box.lab.client, SERVICE[4], PORT) as connection:
        connection.get()
        before = box.epoch()
        change_mac(box.lab.client, 2)
        box.lab.client.ip(
            f"route replace default via {WAN[4]}\nroute replace default via {WAN[6]}\n"
        )
        began = time.monotonic()
        until(lambda: box.epoch() != before, what="another epoch")
        assert time.monotonic() - began < SOON
        assert connection.get().body


@pytest.mark.parametrize("family", [4, 6])
def test_a_route_by_a_gateway_and_its_mtu_are_followed(box: Box, family: int) -> None:
    one, other = box.lab.backends
    network = {4: "10.9.0.0/24", 6: "fd09::/64"}[family]

    def route(via: Backend, mtu: int) -> None:
        box.lab.balancer.ip(f"route replace {network} via {via.addresses[family]} mtu {mtu}\n")

    lan, smac = box.lab.balancer.ifindex("lan"), box.lab.balancer.mac("lan")
    for via, mtu in ((one, 1400), (other, 1400), (other, 1300)):
        before = box.epoch()
        began = time.monotonic()
        route(via, mtu)
        wanted = (lan, via.mac, smac, mtu)
        until(lambda wanted=wanted: box.hop(FAR[family]) == wanted, what=str(wanted))
        assert time.monotonic() - began < SOON
        assert box.epoch() != before
    box.lab.balancer.ip(f"route del {network}\n")


def test_an_address_that_nobody_has_is_asked_for_until_somebody_answers(box: Box) -> None:
    assert box.hop(NOBODY) == (0, bytes(6), bytes(6), 0)
    owner = box.lab.backends[1]
    hush(owner.namespace)
    owner.namespace.ip(f"addr add {NOBODY}/24 dev eth0\n")
    until(lambda: box.hop(NOBODY)[1] == owner.mac, 10, what="the neighbour")


def managed(box: Box) -> set[str]:
    lines = box.lab.balancer.run("ip", "neigh", "show", "dev", "lan").splitlines()
    return {line.split()[0] for line in lines if " managed " in f"{line} "}


def test_the_kernel_keeps_backends_resolved_for_as_long_as_they_are_configured(box: Box) -> None:
    ours = {b.addresses[4] for b in box.lab.backends}
    until(lambda: managed(box) >= ours, what="managed neighbours")
    box.config.write_text(CONFIG.replace("      web2: {address: 10.1.2.102, port: 8080}\n", ""))
    try:
        until(lambda: managed(box) == {"10.1.2.101"}, what="the others to be let go")
    finally:
        box.config.write_text(ALL)
    until(lambda: managed(box) >= ours, what="managed neighbours")


def test_backends_behind_another_interface_are_sent_to_by_that_one(box: Box) -> None:
    lab, target = box.lab, box.lab.backends[0].namespace
    lab._link(lab.balancer, "lan2", target, "eth1")
    labs._address(lab.balancer, "lan2", "10.1.5.1", "fd01:5::1")
    labs._address(target, "eth1", *SECOND.values())
    wanted = (lab.balancer.ifindex("lan2"), target.mac("eth1"), lab.balancer.mac("lan2"), 1500)
    for address in SECOND.values():
        until(lambda address=address: box.hop(address) == wanted, what=f"the way to {address}")
    lab.balancer.ip("link set lan2 mtu 1280\n")
    for address in SECOND.values():
        until(lambda address=address: box.hop(address)[3] == 1280, what=f"the MTU to {address}")


def test_an_interface_that_disappears_and_returns_is_attached_again(box: Box) -> None:
    lab, before = box.lab, box.lab.balancer.ifindex("lan")
    lab.balancer.ip("link del lan\n")
    until(lambda: "lan" in box.http("/readyz", check=False)[1], what="the daemon to say so")
    lab._connect(lab.balancer, "lan", lab.switch, "balancer")
    labs._address(lab.balancer, "lan", *BALANCER.values())
    after = lab.balancer.ifindex("lan")
    assert after != before
    until(lambda: lan_of(box) == after, what="the attachment")
    for backend in lab.backends:
        until(lambda b=backend: box.hop(b.addresses[4])[0] == after, what="the way out of it")
    assert len(box.answering()) == 2
    assert until(box.ready)


def lan_of(box: Box) -> int:
    with box.lab.balancer.entered(), Instance.open(box.name, read_only=True) as instance:
        return {found.interface: found.ifindex for found in instance.attachments()}.get("lan", 0)


def test_when_events_are_lost_anything_may_have_changed() -> None:
    """The kernel drops events for which there is no room, and says only that it did."""
    awake = threading.Event()
    heard = Changed(0)

    def lost() -> bool:
        nonlocal heard
        heard |= listener.heard()
        return Changed.ROUTES in heard

    place = Namespace(f"ek{os.getpid()}lost")
    try:
        place.sysctl("net.ipv6.conf.default.disable_ipv6=1")  # whose addresses come late
        place.ip("link add va type veth peer name vb\nlink set va up\nlink set vb up\n")
        with place.entered():
            listener = Listener(awake.set)
        with contextlib.closing(listener):
            listener.rest = SOON / 2  # meanwhile nobody reads
            listener._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            news = "neigh add 10.1.{}.{} lladdr 02:00:00:00:00:01 dev va nud permanent\n"
            place.ip("".join(news.format(n // 250, n % 250 + 1) for n in range(500)))
            until(lost, what="word of lost events")
            assert awake.is_set()
    finally:
        place.delete()


def test_a_backend_that_is_sought_and_still_there_is_no_news() -> None:
    near, far = (Namespace(f"ek{os.getpid()}{name}") for name in ("near", "far"))
    address = ip_address("10.1.0.2")
    try:
        for place in (near, far):
            place.sysctl("net.ipv6.conf.default.disable_ipv6=1")
        near.ip(f"link add eth0 type veth peer name eth0 netns {far.name}\n")
        near.ip("link set eth0 up\naddr add 10.1.0.1/24 dev eth0\n")
        far.ip("link set eth0 up\naddr add 10.1.0.2/24 dev eth0\n")
        until(lambda: "state UP" in near.run("ip", "link", "show", "eth0"), what="the link")
        with near.entered(), Neighbours() as neighbours:
            neighbours.follow(lambda: None)
            hop = neighbours.hops([address], wait=5)[address]
            assert hop.dmac == far.mac("eth0")
            before = neighbours.changes()
            neighbours.doubt([address])
            until(lambda: "REACHABLE" in near.run("ip", "neigh"), what="an answer")
            assert neighbours.changes() == before
            change_mac(far, 4)
            far.run("ping", "-c1", "-W5", "10.1.0.1")
            until(lambda: neighbours.changes().look > before.look, what="news")
            assert neighbours.changes().forget > before.forget
    finally:
        near.delete()
        far.delete()


ROOM = """\
link add va type veth peer name vb
link set va up
link set vb up
addr add 10.1.0.1/24 dev va
neigh add 10.1.0.2 lladdr 02:00:00:00:00:02 dev va nud permanent
neigh add 10.1.0.3 lladdr 02:00:00:00:00:03 dev va nud permanent
route add 10.2.0.0/24 via 10.1.0.2
"""


class Timepiece(NamedTuple):
    monotonic: Callable[[], float]


@pytest.fixture
def room() -> Iterator[Namespace]:
    """Neighbours that are known without anybody being asked."""
    place = Namespace(f"ek{os.getpid()}room")
    try:
        place.sysctl("net.ipv6.conf.default.disable_ipv6=1")
        place.ip(ROOM)
        with place.entered():
            yield place
    finally:
        place.delete()


def test_a_route_whose_change_nobody_heard_of_is_found_after_a_while(
    room: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = 0.0
    monkeypatch.setattr(neigh, "time", Timepiece(lambda: time.monotonic() + later))
    beyond = [ip_address(f"10.2.0.{n}") for n in range(1, 6)]
    with Neighbours() as neighbours:
        neighbours.follow(lambda: None)
        assert {hop.dmac[-1] for hop in neighbours.hops(beyond).values()} == {2}
        monkeypatch.setattr(neighbours._listener, "heard", lambda: Changed(0))
        before = neighbours.changes()
        room.ip("route replace 10.2.0.0/24 via 10.1.0.3\n")
        assert neighbours.changes() == before
        later = neigh.STALE + 1
        assert neighbours.changes().look > before.look
        assert {hop.dmac[-1] for hop in neighbours.hops(beyond).values()} == {3}


def test_each_way_is_looked_at_once_more_within_ten_seconds_and_a_few_at_a_time(
    room: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = 0.0
    monkeypatch.setattr(neigh, "time", Timepiece(lambda: time.monotonic() + later))
    beyond = [ip_address(f"10.2.0.{n}") for n in range(1, 101)]
    asked: list[object] = []
    with Neighbours() as neighbours:
        neighbours.follow(lambda: None)
        monkeypatch.setattr(neighbours._listener, "heard", lambda: Changed(0))
        neighbours.hops(beyond)
        route = neighbours._route
        monkeypatch.setattr(neighbours, "_route", lambda a, of: (asked.append(a), route(a, of))[1])
        for _ in range(8):
            before, later = len(asked), later + 1.5
            neighbours.changes()
            assert len(asked) - before < len(beyond) / 4
        assert set(asked) == set(beyond)


def test_the_answer_to_another_question_is_that_of_who_is_asked_for_the_first_time(
    room: Namespace,
) -> None:
    near, beyond, nobody, far = map(ip_address, ("10.1.0.2", "10.2.0.7", "10.1.0.9", "172.16.0.1"))
    questions = [
        {near},
        {near, beyond},
        {beyond, far},
        {beyond, nobody},
        {far},
        set(),
        {near, nobody},
    ]
    with Neighbours() as neighbours:
        neighbours.follow(lambda: None)
        for question in (*questions, *reversed(questions)):
            with Neighbours() as fresh:
                assert neighbours.hops(question, None) == fresh.hops(question, None)
