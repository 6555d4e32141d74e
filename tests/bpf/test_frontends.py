"""Which packets are for which frontend: exact port, any port, marks, ids that no longer mean anything. §2."""

from typing import Any

import pytest

from bpf import abi
from bpf.abi import AddressKind, Forward, Verdict
from tests.support.bed import Bed
from tests.support.frames import eth, ip, tcp, udp
from tests.support.scenes import Net, both, one, pool, service, to_backend
from tests.support.world import World, frontend_key, make_id, prefilter_bucket

SYN = tcp(41000, 80, "S")


def exact_and_any(net: Net) -> World:
    """b1 serves port 80 of the address, b2 every other TCP port; the second address is b3's."""
    return World(
        (
            service(
                net, pool(net, 1, "web"), name="www",
                frontends=((net.vip, 80, "tcp"),), forward=Forward.DSR,
            ),
            service(
                net, pool(net, 2, "any", slots=("b2",) * 61), name="rest",
                frontends=((net.vip, None, "tcp"),), forward=Forward.DSR,
            ),
            service(
                net, pool(net, 3, "other", slots=("b3",) * 61), name="other",
                frontends=((net.vip2, 80, "tcp"), (net.vip2, 80, "udp")), forward=Forward.DSR,
            ),
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("address", "segment", "backend"),
    [
        ("vip", tcp(41000, 80, "S"), "b1"),
        ("vip", tcp(41000, 81, "S"), "b2"),
        ("vip", tcp(41000, 0, "S"), "b2"),
        ("vip", tcp(0, 0, "S"), "b2"),
        ("vip", tcp(41000, 65535, "S"), "b2"),
        ("vip", tcp(80, 20480, "S"), "b2"),  # 80 in the other byte order
        ("vip", udp(41000, 80), None),
        ("vip2", tcp(41000, 80, "S"), "b3"),
        ("vip2", udp(41000, 80), "b3"),
        ("vip2", tcp(41000, 81, "S"), None),
        ("vip2", udp(41000, 0), None),
        ("foreign", tcp(41000, 80, "S"), None),
    ],
)
@both
def test_the_exact_port_wins_over_any_port(
    bed: Bed, net: Net, address: str, segment: object, backend: str | None
) -> None:
    bed.load(exact_and_any(net))
    outcome = bed.send(net.frame(segment, dst=getattr(net, address)))  # type: ignore[arg-type]
    if backend is None:
        assert outcome.verdict == Verdict.NOT_OURS
    else:
        assert (outcome.verdict, outcome.backend) == (Verdict.FORWARDED, backend)


@pytest.mark.parametrize("port", [1, 80, 443, 1024, 40000, 65534, 65535])
@both
def test_every_port_number_is_a_port(bed: Bed, net: Net, port: int) -> None:
    bed.load(one(net, frontends=((net.vip, port, "tcp"), (net.vip, port, "udp"))))
    bed.expect(
        net.frame(tcp(port, port, "S")),
        Verdict.FORWARDED,
        to_backend(ip(net.client, net.backends[0], tcp(port, 8080, "S"), ttl=63)),
    )
    bed.expect(net.frame(udp(port, port)), Verdict.FORWARDED)
    bed.expect(net.frame(udp(port, port - 1)), Verdict.NOT_OURS)


@both
def test_any_port_keeps_the_clients_port_whatever_the_backends(bed: Bed, net: Net) -> None:
    bed.load(one(net, frontends=((net.vip, None, "tcp"),)))
    bed.expect(
        net.frame(tcp(41000, 8443, "S")),
        Verdict.FORWARDED,
        to_backend(ip(net.client, net.backends[0], tcp(41000, 8443, "S"), ttl=63)),
    )


@both
def test_a_stale_exact_frontend_leaves_the_packet_to_the_next(bed: Bed, net: Net) -> None:
    world = bed.load(exact_and_any(net))
    _entries(bed, net).put(frontend_key(net.vip, 80, 6), make_id(9, 1))
    bed.maps.frontends.put(world.index("www/0"), abi.Frontend())  # a CPU may remember it
    assert bed.expect(net.frame(SYN), Verdict.FORWARDED).backend == "b2"


def _entries(bed: Bed, net: Net) -> Any:
    return bed.maps.frontends4 if net.version == 4 else bed.maps.frontends6


@pytest.mark.parametrize("what", ["frontend id", "frontend gone", "service id", "service gone"])
@both
def test_an_id_that_no_entry_repeats_is_no_frontend(bed: Bed, net: Net, what: str) -> None:
    world = bed.load(one(net, Forward.DSR))
    maps, frontend, service_index = bed.maps, world.index("www/0"), world.index("www")
    if what == "frontend id":
        entry = maps.frontends.get(frontend)
        entry.id = make_id(frontend, 2)
        maps.frontends.put(frontend, entry)
    elif what == "frontend gone":
        maps.frontends.put(frontend, abi.Frontend())
    elif what == "service id":
        entry = maps.services.get(service_index)
        entry.id = make_id(service_index, 2)
        maps.services.put(service_index, entry)
    else:
        maps.services.put(service_index, abi.Service())
    bed.expect(net.frame(SYN), Verdict.NOT_OURS)


@both
def test_an_index_beyond_the_map_is_no_frontend(bed: Bed, net: Net) -> None:
    bed.load(one(net))
    for value in (make_id(63, 1), make_id(64, 1), 0xFFFFFFFF, 1):
        _entries(bed, net).put(frontend_key(net.vip, 80, 6), value)
        bed.expect(net.frame(SYN), Verdict.NOT_OURS)


@both
def test_a_prefilter_that_says_yes_wrongly_changes_nothing(bed: Bed, net: Net) -> None:
    """Another address in the same bucket: the maps behind it have the last word."""
    bed.load(one(net))
    every = sum(AddressKind)
    for where in (net.foreign, net.client):
        bed.maps.prefilter.view()[prefilter_bucket(where)] = every
    for segment in (SYN, udp(5000, 53), tcp(41000, 80, "A", offset=3)):
        bed.expect(net.frame(segment, dst=net.foreign), Verdict.NOT_OURS)


@both
def test_a_service_address_of_the_other_family_is_another_address(bed: Bed, net: Net) -> None:
    """::192.0.2.10 has the bytes of 192.0.2.10, and is none of ours."""
    if net.version == 4:
        bed.load(one(net))
        frame = eth(ip("2001:db8:c::7", "::192.0.2.10", SYN))
    else:
        bed.load(one(net, frontends=(("c000:20a::", 80, "tcp"),)))
        frame = eth(ip("198.51.100.7", "192.0.2.10", SYN))
    bed.expect(frame, Verdict.NOT_OURS)


@both
def test_two_services_share_an_address_and_nothing_else(bed: Bed, net: Net) -> None:
    bed.load(exact_and_any(net))
    for port, backend in ((80, "b1"), (443, "b2")):
        for flags in ("S", "A", "PA"):
            outcome = bed.expect(net.frame(tcp(41000, port, flags)), Verdict.FORWARDED)
            assert outcome.backend == backend
    assert bed.counted("www").packets == bed.counted("rest").packets == 3
