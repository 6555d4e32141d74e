"""What other balancers got wrong, one named test each, as far as the data plane is concerned."""

import struct
from collections import Counter
from pathlib import Path

import pytest

from bpf.abi import Balance, Forward, HealthState, Verdict
from tests.support.bed import Bed, reconfigured
from tests.support.checksums import problems
from tests.support.frames import (
    UDP,
    cut,
    describe,
    eth,
    hop_by_hop,
    ip,
    ipv4,
    ipv6,
    ping,
    tcp,
    too_big,
    udp,
    unreachable,
)
from tests.support.scenes import (
    V4,
    V6,
    Net,
    backend,
    both,
    one,
    pool,
    service,
    to_backend,
)
from tests.support.world import Pool, World

DSR, NAT, FULLNAT, GUE = Forward.DSR, Forward.NAT, Forward.FULLNAT, Forward.GUE


def goes_to(bed: Bed, net: Net, dport: int = 53, sport: int = 41000) -> str:
    return bed.expect(net.frame(udp(sport, dport)), Verdict.FORWARDED).backend


@pytest.mark.parametrize(
    "balance", [Balance.HASH, Balance.ROUND_ROBIN, Balance.RANDOM], ids=lambda b: b.name
)
@both
def test_weights_1_and_10_are_not_half_and_half(bed: Bed, net: Net, balance: Balance) -> None:
    """Weights once counted in the first pass of the fill only."""
    backends = (backend(net, 1, weight=1), backend(net, 2, weight=10))
    made = pool(net, backends=backends, size=1021)
    bed.load(one(net, DSR, pools=(made,), balance=balance))
    shares = Counter(goes_to(bed, net, sport=20000 + i) for i in range(1100))
    assert abs(shares["b1"] - 100) < 50, shares


@both
def test_load_on_one_service_keeps_no_other_from_learning(bed: Bed, net: Net) -> None:
    """The limiter of new connections was one for all services."""

    def attempt() -> None:
        frontends = {"busy": 80, "quiet": 81}
        made = pool(net, 1)
        bed.load(
            World(
                tuple(
                    service(
                        net, made, name=name, gate=5, forward=DSR,
                        frontends=((net.vip, port, "udp"),),
                    )
                    for name, port in frontends.items()
                )
            )
        )  # fmt: skip
        for i in range(50):
            goes_to(bed, net, 80, 20000 + i)
        assert len(bed.flows(net.version)) == 5
        goes_to(bed, net, 81)
        assert len(bed.flows(net.version)) == 6

    bed.within_one_tick(attempt)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 100, 1001, 1400])
def test_gues_outer_checksum_around_a_datagram_without_one(bed: Bed, size: int) -> None:
    """It was derived from an inner checksum that was not there."""
    made = pool(V6, backends=(backend(V6, 1),))
    bed.load(World((service(V4, made, forward=GUE),)))
    frame = V4.frame(udp(41000, 53, bytes(i * 31 & 0xFF for i in range(size)), checksum=0))
    out = bed.expect(frame, Verdict.FORWARDED).frame
    assert problems(out) == []
    assert describe(out)["udp.checksum"] != "0x0"


@both
def test_gues_outer_checksum_around_an_icmp_error(bed: Bed, net: Net) -> None:
    bed.load(World((service(net, pool(V6), forward=GUE),)))
    for size in (0, 1, 7, 500):
        quoted = ip(net.vip, net.client, tcp(80, 41000, "A", bytes(size)))
        for segment in (unreachable(net.version, quoted), too_big(net.version, 1280, quoted)):
            frame = eth(ip(net.far, net.vip, segment))
            out = bed.expect(frame, Verdict.ICMP_FORWARDED).frame
            assert problems(out) == []
            assert describe(out)["udp.checksum"] != "0x0"


FOREIGN = {
    "ping": lambda net, dst: ip(net.client, dst, ping(net.version)),
    "first fragment": lambda net, dst: cut(ip(net.client, dst, udp(1, 53, bytes(200))), 0, 104),
    "later fragment": lambda net, dst: cut(ip(net.client, dst, udp(1, 53, bytes(200))), 104, 104),
    "options": lambda net, dst: (
        ipv4(net.client, dst, tcp(1, 80, "S"), options=b"\x94\4\0\0")
        if net.version == 4
        else ipv6(net.client, dst, tcp(1, 80, "S"), extensions=(hop_by_hop(),))
    ),
    "expiring": lambda net, dst: ip(net.client, dst, tcp(1, 80, "S"), ttl=1),
    "malformed": lambda net, dst: ip(net.client, dst, tcp(1, 80, "S", offset=2)),
}


@pytest.mark.parametrize("packet", FOREIGN.values(), ids=FOREIGN)
@both
def test_what_is_for_no_service_is_neither_dropped_nor_answered(
    bed: Bed, net: Net, packet: object
) -> None:
    bed.load(one(net, echo=True, frontends=((net.vip, None, "tcp"), (net.vip, None, "udp"))))
    for dst in (net.foreign, net.node, net.backends[0]):
        bed.expect(eth(packet(net, dst)), Verdict.NOT_OURS)  # type: ignore[operator]


@both
def test_every_one_of_65536_echo_checksums_is_right(bed: Bed, net: Net) -> None:
    """Patched without end-around carry, seven of them were wrong."""
    bed.load(one(net, echo=True))
    probe = bytearray(net.frame(ping(net.version, b"\0\0", ident=0x1234, seq=0)))
    at = 14 + (20 if net.version == 4 else 40)
    (checksum,) = struct.unpack_from("!H", probe, at + 2)
    pseudo = 0 if net.version == 4 else _pseudo_sum(net)
    for value in range(65536):
        struct.pack_into("!H", probe, at + 8, value)
        struct.pack_into("!H", probe, at + 2, (checksum - value) % 0xFFFF)
        out = bed.instance.run(bytes(probe)).frame
        assert out[at] in (0, 129)
        assert (sum(struct.unpack_from("!5H", out, at)) + pseudo) % 0xFFFF == 0, hex(value)


def _pseudo_sum(net: Net) -> int:
    reply = ip(net.vip, net.client, ping(6, b"\0\0"))
    addresses: tuple[int, ...] = struct.unpack("!16H", reply[8:40])
    return sum(addresses) + 10 + 58


@pytest.mark.parametrize(
    "tags", [((0x8100, 1),), ((0x8100, 0xE005),), ((0x88A8, 5), (0x8100, 6))], ids=str
)
@pytest.mark.parametrize("forward", Forward, ids=lambda f: f.name)
@both
def test_tagged_frames_are_balanced_too(
    bed: Bed, net: Net, forward: Forward, tags: tuple[tuple[int, int], ...]
) -> None:
    bed.load(one(net, forward))
    frame = eth(net.packet(udp(41000, 53)), tags=tags)
    out = bed.expect(frame, Verdict.FORWARDED).frame
    assert out[12 : 12 + 4 * len(tags)] == frame[12 : 12 + 4 * len(tags)]


@both
def test_without_its_last_backend_a_service_forwards_nothing(bed: Bed, net: Net) -> None:
    """The old table went on forwarding, and removed backends kept their flows for ever."""
    bed.load(one(net, DSR))
    assert goes_to(bed, net) == "b1"
    table = bed.maps.tables.get(1)
    bed.configure(one(net, DSR, pools=(pool(net, 0),)))
    bed.maps.tables.put(1, table)  # even if the slots still named it
    bed.expect(net.frame(udp(41000, 53)), Verdict.NO_BACKEND)
    bed.expect(net.frame(udp(41001, 53)), Verdict.NO_BACKEND)
    assert bed.flows(net.version) == {}


@pytest.mark.parametrize("forward", Forward, ids=lambda f: f.name)
@both
def test_a_udp_flow_survives_a_change_of_the_table(bed: Bed, net: Net, forward: Forward) -> None:
    """It was stored in one map and looked up in another."""
    bed.load(one(net, forward, pools=(pool(net, 2, slots=("b1",) * 61),)))
    assert goes_to(bed, net) == "b1"
    bed.configure(one(net, forward, pools=(pool(net, 2, slots=("b2",) * 61),)))
    assert goes_to(bed, net) == "b1"
    assert goes_to(bed, net, sport=41001) == "b2"


@both
def test_the_search_for_a_port_ends_at_65535(bed: Bed, net: Net) -> None:
    """A 16-bit counter never exceeds 65535: such a loop does not end."""
    bed.load(reconfigured(one(net, FULLNAT), port_low=65532, port_high=65535))
    ports = set()
    for i in range(4):
        out = bed.expect(net.frame(udp(41000 + i, 53)), Verdict.FORWARDED).frame
        ports.add(str(describe(out)["udp"]).split()[0])
    assert ports == {"65532", "65533", "65534", "65535"}
    bed.expect(net.frame(udp(41004, 53)), Verdict.PORTS_TAKEN)


@pytest.mark.parametrize("forward", Forward, ids=lambda f: f.name)
@both
def test_a_recycled_id_never_takes_a_flow_to_another_service(
    bed: Bed, net: Net, forward: Forward
) -> None:
    """The index of a removed backend is given to another service's: the old flow must not follow."""
    first = service(
        net, pool(net, name="old", backends=(backend(net, 1),)), name="first", forward=forward
    )
    bed.load(World((first,)))
    assert goes_to(bed, net) == "b1"
    other = service(
        net, pool(net, name="new", backends=(backend(net, 2, incarnation=2),)), name="other",
        forward=forward, frontends=((net.vip2, 80, "tcp"),),
    )  # fmt: skip
    emptied = service(net, pool(net, 0, "old"), name="first", forward=forward)
    bed.configure(World((emptied, other)))
    assert bed.world.index("new/b2") == 1
    bed.expect(net.frame(udp(41000, 53)), Verdict.NO_BACKEND)


@both
def test_health_of_a_recycled_id_is_not_inherited(bed: Bed, net: Net) -> None:
    """The new owner of an index is unknown until somebody probed it."""

    def made(incarnation: int) -> Pool:
        return pool(net, backends=(backend(net, 1, incarnation=incarnation),), no_spares=True)

    bed.load(one(net, DSR, pools=(made(1),), flags=4))
    bed.set_health("web/b1", HealthState.UP)
    entry = bed.maps.health.get(1)
    bed.configure(one(net, DSR, pools=(made(2),), flags=4))
    bed.maps.health.put(1, entry)
    bed.expect(net.frame(udp(41000, 53)), Verdict.NO_BACKEND)


def test_the_program_is_far_from_the_verifiers_limit(bed: Bed) -> None:
    """A million instructions; the known balancers need about a hundred thousand."""
    assert bed.instance.program_info().verified < 500_000


def test_nothing_is_pinned_into_the_root(bed: Bed) -> None:
    """Pin paths are the loader's business, not the object's."""
    here = {path.name for path in Path("/sys/fs/bpf").iterdir()}
    assert not here & {"flows4", "flows6", "backends", "services", "settings", "lb", "cpus"}


def test_both_families_are_told_apart_by_their_maps(bed: Bed) -> None:
    """One map for both would cost IPv4 a 40-byte key."""
    bed.load(World((service(V4, name="four"), service(V6, pool(V6, name="p6"), name="six"))))
    for net in (V4, V6):
        bed.expect(net.frame(udp(41000, 53)), Verdict.FORWARDED)
    assert bed.remembered(4) == bed.remembered(6) == (1, 1, 0)
    assert bed.maps.flows4.key.size == 16
    assert {key.proto for key in bed.flows(4)} == {UDP}
    bed.expect(
        V4.frame(udp(41000, 53)),
        Verdict.FORWARDED,
        to_backend(ip(V4.client, V4.backends[0], udp(41000, 8080), ttl=63)),
    )
