"""The programs behind `via: service`: a probe out, its answer back, every byte; and how they are loaded and attached."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from bpf import kernel, pins, tc, via
from bpf.abi import Forward, Probe, ProbeLayout
from bpf.errors import Busy
from bpf.via import Via
from reconciler.encode import abi_address
from tests.support.bed import SIZES
from tests.support.checksums import problems
from tests.support.frames import (
    Segment,
    difference,
    eth,
    ip,
    ipv4,
    ipv6,
    ping,
    raw,
    tcp,
    udp,
    unreachable,
)
from tests.support.namespace import Namespace
from tests.support.world import tuple_hash

NEXT, DROP = -1, 2  # TC_ACT_UNSPEC, TC_ACT_SHOT
COMPLETE = 1 << 2  # BPF_F_TEST_SKB_CHECKSUM_COMPLETE: the kernel compares its sum afterwards
MARK = ProbeLayout.MARK << ProbeLayout.NUMBER_BITS | 7
GUE_PORT = 6080
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Net:
    ours: str
    backend: str
    service: str

    def out(self, to: str, segment: Segment, *, tos: int = 0) -> bytes:
        return eth(ip(self.ours, to, segment, tos=tos))

    def back(self, of: str, segment: Segment) -> bytes:
        return eth(ip(of, self.ours, segment))

    def probe(self, forward: Forward) -> Probe:
        return Probe(
            backend=abi_address(ip_address(self.backend)),
            service=abi_address(ip_address(self.service)),
            source=abi_address(ip_address(self.ours)),
            gue_port=GUE_PORT,
            forward=forward,
            family=ip_address(self.ours).version,
        )


V4 = Net("10.1.2.1", "10.1.2.101", "192.0.2.10")
V6 = Net("fd01:2::1", "fd01:2::101", "2001:db8::10")
both = pytest.mark.parametrize("net", [V4, V6], ids=["IPv4", "IPv6"])
modes = pytest.mark.parametrize("forward", [Forward.DSR, Forward.IPIP, Forward.GUE])
SEGMENTS = {
    "SYN": (tcp(41000, 80, "S"), tcp(80, 41000, "SA")),
    "odd payload": (tcp(41000, 80, "PA", b"abc"), tcp(80, 41000, "PA", b"answer!")),
    "options": (tcp(41000, 80, "A", options=b"\1" * 12), tcp(80, 41000, "FA", b"x" * 900)),
    "UDP": (udp(41000, 53, b"query"), udp(53, 41000, b"some answer")),
}
segments = pytest.mark.parametrize(("there", "back"), SEGMENTS.values(), ids=SEGMENTS)


@pytest.fixture(scope="module")
def loaded() -> Iterator[Via]:
    name = f"ek{os.getpid()}via"
    with contextlib.ExitStack() as stack:
        instance = kernel.Instance.load(name, SIZES)
        stack.callback(instance.teardown)
        found = Via.load(name)
        stack.callback(found.close)
        yield found


def around(net: Net, forward: Forward, inner: bytes, hashed: int, tos: int) -> bytes:
    """What a client's packet would be put into, by docs/packet-path.md."""
    four = net is V4
    segment = raw(4 if four else 41, inner)
    if forward is Forward.DSR:
        return inner
    if forward is Forward.GUE:
        checksum = 0 if four else None
        segment = udp(0xC000 | hashed & 0x3FFF, GUE_PORT, inner, checksum=checksum)
    if four:
        return ipv4(net.ours, net.backend, segment, tos=tos, ident=0, df=True)
    return ipv6(net.ours, net.backend, segment, traffic_class=tos)


@segments
@modes
@both
def test_a_probe_leaves_as_a_clients_packet_would(
    loaded: Via, net: Net, forward: Forward, there: Segment, back: Segment
) -> None:
    loaded.probes.put(MARK, net.probe(forward))
    sent = loaded.run(tc.Way.OUT, net.out(net.backend, there, tos=0xB8), mark=MARK)
    dport = 53 if there.protocol == 17 else 80
    hashed = tuple_hash(net.ours, 41000, net.service, dport, there.protocol)
    inner = ip(net.ours, net.service, there, tos=0xB8)
    wanted = eth(around(net, forward, inner, hashed, 0xB8))
    assert sent.code == NEXT
    assert sent.frame == wanted, difference(sent.frame, wanted)
    assert problems(sent.frame) == []


@pytest.mark.parametrize("flags", [0, COMPLETE], ids=["summed here", "summed by the device"])
@segments
@both
def test_an_answer_comes_back_as_from_the_backend_itself(
    loaded: Via, net: Net, there: Segment, back: Segment, flags: int
) -> None:
    loaded.probes.put(MARK, net.probe(Forward.DSR))
    loaded.run(tc.Way.OUT, net.out(net.backend, there), mark=MARK)
    found = loaded.run(tc.Way.IN, net.back(net.service, back), flags=flags)
    wanted = net.back(net.backend, back)
    assert (found.code, found.frame) == (NEXT, wanted), difference(found.frame, wanted)


def test_a_datagram_without_a_checksum_gets_none(loaded: Via) -> None:
    loaded.probes.put(MARK, V4.probe(Forward.DSR))
    loaded.run(tc.Way.OUT, V4.out(V4.backend, udp(41000, 53, b"query")), mark=MARK)
    bare = udp(53, 41000, b"answer", checksum=0)
    assert loaded.run(tc.Way.IN, V4.back(V4.service, bare)).frame == V4.back(V4.backend, bare)


@both
def test_what_is_no_answer_to_a_probe_stays_as_it_is(loaded: Via, net: Net) -> None:
    loaded.probes.put(MARK, net.probe(Forward.DSR))
    loaded.run(tc.Way.OUT, net.out(net.backend, tcp(41000, 80, "S")), mark=MARK)
    for frame in (
        net.back(net.service, tcp(80, 41001, "SA")),
        net.back(net.service, tcp(81, 41000, "SA")),
        net.back(net.service, udp(80, 41000, b"")),
        net.back(net.backend, tcp(80, 41000, "SA")),
        net.back(net.service, ping(4 if net is V4 else 6)),
        net.back(net.service, raw(47, b"whatever")),
        net.back(net.service, tcp(80, 41000, "SA"))[: 36 if net is V4 else 56],
    ):
        found = loaded.run(tc.Way.IN, frame)
        assert (found.code, found.frame) == (NEXT, frame)


@both
def test_without_a_mark_nothing_is_touched_and_with_another_nothing_is_sent(
    loaded: Via, net: Net
) -> None:
    frame = net.out(net.backend, tcp(41000, 80, "S"))
    loaded.probes.put(MARK, net.probe(Forward.GUE))
    for mark in (0, 7, MARK ^ 1 << 31, MARK ^ 1 << ProbeLayout.NUMBER_BITS):
        found = loaded.run(tc.Way.OUT, frame, mark=mark)
        assert (found.code, found.frame) == (NEXT, frame)
    assert loaded.run(tc.Way.OUT, frame, mark=MARK + 1).code == DROP, "nobody's mark"
    for other in (
        net.out(net.service, tcp(41000, 80, "S")),
        net.out(net.backend, ping(4 if net is V4 else 6)),
        net.out(net.backend, raw(47, b"whatever")),
        (V6 if net is V4 else V4).out((V6 if net is V4 else V4).backend, tcp(1, 2, "S")),
        b"\xff" * 12 + b"\x08\x06" + bytes(46),  # ARP
    ):
        assert loaded.run(tc.Way.OUT, other, mark=MARK).code == DROP


@pytest.mark.parametrize("by_router", [False, True], ids=["by the backend", "by a router"])
@both
def test_an_error_about_a_probe_is_about_the_backends_address(
    loaded: Via, net: Net, by_router: bool
) -> None:
    version = 4 if net is V4 else 6
    loaded.probes.put(MARK, net.probe(Forward.DSR))
    asked = udp(41000, 53, b"query")
    loaded.run(tc.Way.OUT, net.out(net.backend, asked), mark=MARK)
    router = "10.9.9.9" if net is V4 else "fd09::9"
    frame = net.back(
        router if by_router else net.service,
        unreachable(version, ip(net.ours, net.service, asked)),
    )
    found = loaded.run(tc.Way.IN, frame)
    header = 20 if net is V4 else 40
    quoted = found.frame[14 + header + 8 :]
    assert _addresses(quoted) == (net.ours, net.backend)
    assert _addresses(found.frame[14:]) == (router if by_router else net.backend, net.ours)
    left = [one for one in problems(found.frame) if "quoted.udp" not in one]
    assert left == [], "the quoted datagram's own checksum nobody reads"
    alien = net.back(router, unreachable(version, ip(net.ours, net.service, udp(1, 53, b"x"))))
    assert loaded.run(tc.Way.IN, alien).frame == alien


def _addresses(packet: bytes) -> tuple[str, str]:
    at, size = (12, 4) if packet[0] >> 4 == 4 else (8, 16)
    return (
        str(ip_address(packet[at : at + size])),
        str(ip_address(packet[at + size : at + 2 * size])),
    )


# ---- loading and attaching


@pytest.fixture
def place() -> Iterator[Namespace]:
    namespace = Namespace(f"ek{os.getpid()}viaplace")
    try:
        namespace.ip("link add wan type veth peer name far\nlink set wan up\nlink set far up\n")
        yield namespace
    finally:
        namespace.delete()


@pytest.fixture
def name() -> Iterator[str]:
    name = f"ek{os.getpid()}viaload"
    with kernel.Instance.load(name, SIZES):
        try:
            yield name
        finally:
            with contextlib.suppress(kernel.NotLoaded):
                kernel.teardown(name)


def shown(place: Namespace, way: str, device: str = "wan") -> str:
    return place.run("tc", "filter", "show", "dev", device, way)


def test_a_second_process_finds_what_the_first_left(place: Namespace, name: str) -> None:
    assert Via.open(name) is None
    with place.entered(), contextlib.closing(Via.load(name)) as first:
        first.probes.put(MARK, V4.probe(Forward.DSR))
        assert first.attach("wan") is True
        before = shown(place, "egress"), shown(place, "ingress")
        with contextlib.closing(Via.load(name)) as second:
            assert second.attach("wan") is False
            assert second.attached() == {"wan"}
            assert dict(second.probes.items()).keys() == {MARK}
        assert (shown(place, "egress"), shown(place, "ingress")) == before


def test_a_new_version_takes_over_the_maps_and_the_filters(
    place: Namespace, name: str, tmp_path: Path
) -> None:
    other = tmp_path / "via.bpf.o"
    source = tmp_path / "via.bpf.c"
    text = (ROOT / "bpf/via.bpf.c").read_text().replace("skb->mark = 0;", "skb->mark = 1;")
    source.write_text(text)
    system = f"-I/usr/include/{os.uname().machine}-linux-gnu"
    flags = ("-O2", "-g", "-target", "bpf", "-mcpu=v3", system, f"-I{ROOT / 'bpf'}")
    subprocess.run(("clang", *flags, "-c", str(source), "-o", str(other)), check=True)
    with place.entered(), contextlib.closing(Via.load(name)) as old:
        old.probes.put(MARK, V4.probe(Forward.DSR))
        old.attach("wan")
        running = tc.running(tc.interfaces()["wan"], tc.Way.OUT)
        with contextlib.closing(Via.load(name, other)) as new:
            assert dict(new.probes.items()).keys() == {MARK}
            assert new.attach("wan") is True
            assert tc.running(tc.interfaces()["wan"], tc.Way.OUT) not in (0, running)
            assert shown(place, "egress").count("handle 0x") == 1


def test_others_filters_stay_and_so_does_their_clsact(place: Namespace, name: str) -> None:
    obj = str(ROOT / "build/via.bpf.o")
    add = ("tc", "filter", "add", "dev", "wan", "ingress", "pref", "9", "bpf", "direct-action")
    with place.entered(), contextlib.closing(Via.load(name)) as found:
        found.attach("wan")
        place.run(*add, "obj", obj, "sec", "tc")
        with pins.locked():
            via.remove(name)
        assert shown(place, "egress") == ""
        assert "pref 9" in shown(place, "ingress")
        assert "pref 1 " not in shown(place, "ingress")
        assert Via.open(name) is None


def test_nothing_is_left_where_nobody_else_has_a_filter(place: Namespace, name: str) -> None:
    with place.entered():
        with contextlib.closing(Via.load(name)) as found:
            found.attach("wan")
        kernel.teardown(name)
        assert "clsact" not in place.run("tc", "qdisc", "show", "dev", "wan")


def test_a_place_that_is_taken_is_said_and_left(place: Namespace, name: str) -> None:
    obj = str(ROOT / "build/via.bpf.o")
    place.run("tc", "qdisc", "add", "dev", "wan", "clsact")
    add = ("tc", "filter", "add", "dev", "wan", "egress", "pref", "1", "protocol", "ip", "bpf")
    place.run(*add, "direct-action", "obj", obj, "sec", "tc")
    said = pytest.raises(Busy, match="priority 1 is another kind of filter's")
    with place.entered(), contextlib.closing(Via.load(name)) as found, said:
        found.attach("wan")
    assert "protocol ip " in shown(place, "egress")


def test_pins_that_somebody_removed_come_back_with_the_same_maps(
    place: Namespace, name: str
) -> None:
    with place.entered(), contextlib.closing(Via.load(name)) as found:
        found.probes.put(MARK, V4.probe(Forward.DSR))
        pins.remove(via.Home.of(name).directory)
        assert not found.pinned
        found.pin_again()
        with contextlib.closing(Via.load(name)) as again:
            assert dict(again.probes.items()).keys() == {MARK}
            assert again.probes.id == found.probes.id


def test_an_instance_that_goes_over_to_other_sizes_keeps_its_probes_and_filters(
    place: Namespace, name: str
) -> None:
    with place.entered(), kernel.Instance.open(name) as instance:
        with contextlib.closing(Via.load(name)) as found:
            found.probes.put(MARK, V4.probe(Forward.DSR))
            found.attach("wan")
        instance.resize(replace(SIZES, flows4=8192))
        with contextlib.closing(Via.load(name)) as again:
            assert dict(again.probes.items()).keys() == {MARK}
            assert again.attach("wan") is False
