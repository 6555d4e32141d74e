"""The shortcut decides nothing differently: §12.

It takes frames without tags only, so a tag sends the same packet the long way. Both must come to
the same verdict, the same bytes (but for the tag), and leave the same behind.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from bpf import abi
from bpf.abi import BackendFlag, Balance, Forward, HealthState, ServiceFlag, SettingFlag, Verdict
from tests.support.bed import BACKENDS, CLIENTS, Action, Bed, reconfigured
from tests.support.frames import Segment, eth, ip, ipv4, tcp, udp
from tests.support.scenes import V4, Net, backend, from_backend, one, pool
from tests.support.world import World

TAG = ((0x8100, 5),)
IPV4 = pytest.mark.parametrize("net", [V4], ids=["IPv4"])  # IPv6 always goes the long way
LONG = b"as long as the headers of TCP: shorter ones go the long way"
MODES = pytest.mark.parametrize("forward", Forward, ids=lambda f: f.name)
Prepare = Callable[[], None]


def trace(bed: Bed, net: Net, packet: bytes, tags: tuple[tuple[int, int], ...], at: int) -> Any:
    """What becomes of a packet, and what is remembered and counted afterwards."""
    frame = eth(packet, tags=tags) if at == CLIENTS else from_backend(packet, tags=tags)
    outcome = bed.send(frame, at)
    out = outcome.frame
    if tags:
        assert out[12:16] == frame[12:16]
        out = out[:12] + out[16:]
    return (
        outcome.verdict.name,
        outcome.action.name,
        out if outcome.action != Action.DROP else b"",
        *(_timeless(bed, name, net.version) for name in ("flows", "returns", "opening")),
        _counts(bed.counted("www")),
        _counts(bed.counted("web/b1")),
        bed.live("web/b1"),
    )


def _timeless(bed: Bed, name: str, version: int) -> Any:
    entries = dict(getattr(bed.maps, f"{name}{version}").items())
    flows = entries if name == "flows" else {key: entry.flow for key, entry in entries.items()}
    return {key: (f.backend, f.frontend, f.state, bool(f.hop)) for key, f in flows.items()}


def _counts(counters: abi.Counters) -> tuple[int, int, int]:
    return counters.packets, counters.flows, counters.reply_packets


def same_both_ways(bed: Bed, net: Net, prepare: Prepare, packet: bytes, at: int = CLIENTS) -> str:
    """Within one tick, since the shortcut is for flows seen in it. The verdict's name."""

    def attempt() -> list[Any]:
        traces = []
        for tags in ((), TAG):
            prepare()
            traces.append(trace(bed, net, packet, tags, at))
        return traces

    short, long = bed.within_one_tick(attempt)
    assert short == long
    return str(short[0])


FLAGS = ("S", "A", "PA", "FA", "F", "R", "RA", "SA", "P", "AUEC", "")


def _tcp_packet(flags: str, net: Net) -> bytes:
    return net.packet(tcp(41000, 80, flags))


TO_SERVICE: dict[str, Callable[[Net], bytes]] = {
    **{f"TCP {flags}": partial(_tcp_packet, flags) for flags in FLAGS},
    "data": lambda net: net.packet(tcp(41000, 80, "PA", b"odd", options=b"\1" * 12)),
    "UDP": lambda net: net.packet(udp(41000, 53, LONG)),
    "empty UDP": lambda net: net.packet(udp(41000, 53, b"")),
    "UDP without checksum": lambda net: net.packet(udp(41000, 53, LONG, checksum=0)),
    "UDP with a wrong checksum": lambda net: net.packet(udp(41000, 53, LONG, checksum=0xFFFF)),
    "UDP shorter than its segment": lambda net: net.packet(udp(41000, 53, LONG, length=9)),
    "UDP longer than its segment": lambda net: net.packet(
        udp(41000, 53, LONG, length=len(LONG) + 9)
    ),
    "UDP length 7": lambda net: net.packet(udp(41000, 53, LONG, length=7)),
    "TCP offset 4": lambda net: net.packet(tcp(41000, 80, offset=4)),
    "TCP offset 6": lambda net: net.packet(tcp(41000, 80, offset=6)),
    "short UDP": lambda net: net.packet(udp(41000, 53, b"x")),
    "TTL 0": lambda net: net.packet(tcp(41000, 80), ttl=0),
    "TTL 1": lambda net: net.packet(tcp(41000, 80), ttl=1),
    "UDP, TTL 1": lambda net: net.packet(udp(41000, 53, LONG), ttl=1),
    "TTL 2": lambda net: net.packet(tcp(41000, 80), ttl=2),
    "TTL 255": lambda net: net.packet(udp(41000, 53, LONG), ttl=255),
    "type of service": lambda net: net.packet(tcp(41000, 80), tos=0xB9),
    "1500 bytes": lambda net: net.packet(tcp(41000, 80, "A", bytes(1460))),
    "1453 bytes": lambda net: net.packet(udp(41000, 53, bytes(1425))),
    "1501 bytes": lambda net: net.packet(tcp(41000, 80, "A", bytes(1461))),
    "padded": lambda net: net.packet(tcp(41000, 80)) + bytes(6),
    "another port": lambda net: net.packet(tcp(41000, 81)),
    "another address": lambda net: net.packet(tcp(41000, 80), dst=net.foreign),
}


def learn(bed: Bed, world: World, net: Net, *segments: Segment) -> None:
    bed.load(world)
    for segment in segments:
        assert bed.send(net.frame(segment)).verdict == Verdict.FORWARDED


BEFORE: dict[str, tuple[Segment, ...]] = {
    "unknown": (),
    "half-open": (tcp(41000, 80, "S"),),
    "known": (tcp(41000, 80), udp(41000, 53, LONG)),
}


@pytest.mark.parametrize("flags", [0, ServiceFlag.FLOWS_OFF], ids=["flows", "no flows"])
@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
@MODES
@IPV4
def test_every_packet_to_a_service(
    bed: Bed, net: Net, forward: Forward, before: tuple[Segment, ...], flags: int
) -> None:
    world = one(net, forward, flags=flags)
    for name, packet in TO_SERVICE.items():
        try:
            same_both_ways(bed, net, lambda: learn(bed, world, net, *before), packet(net))
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


TROUBLES: dict[str, Callable[[Bed], None]] = {
    "down": lambda bed: bed.set_health("web/b1", HealthState.DOWN),
    "unknown": lambda bed: bed.set_health("web/b1", HealthState.UNKNOWN),
    "forced down": lambda bed: _backend(bed, flags=BackendFlag.FORCED_DOWN),
    "draining": lambda bed: _backend(bed, flags=BackendFlag.NO_NEW),
    "next hop lost": lambda bed: _backend(bed, ifindex=0),
    "small MTU": lambda bed: _backend(bed, mtu=600),
    "another incarnation": lambda bed: _backend(bed, incarnation=2),
    "another port": lambda bed: _backend(bed, port=9090),
    "backend gone": lambda bed: bed.maps.backends.put(1, abi.Backend()),
    "service gone": lambda bed: bed.maps.services.put(1, abi.Service()),
    "kept though down": lambda bed: _service_down(bed, ServiceFlag.KEEP_DOWN),
    "flows switched off": lambda bed: _service(bed, ServiceFlag.FLOWS_OFF),
    "fail closed": lambda bed: _service_down(bed, ServiceFlag.FAIL_CLOSED),
}


def _service_down(bed: Bed, flags: int) -> None:
    _service(bed, flags)
    bed.set_health("web/b1", HealthState.DOWN)


def _backend(bed: Bed, **fields: Any) -> None:
    (service,) = bed.world.services
    changed = replace(service.pools[0].backends[0], **fields)
    made = replace(service.pools[0], backends=(changed, *service.pools[0].backends[1:]))
    bed.configure(replace(bed.world, services=(replace(service, pools=(made,)),)))


def _service(bed: Bed, flags: int) -> None:
    (service,) = bed.world.services
    bed.configure(replace(bed.world, services=(replace(service, flags=flags),)))


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
@MODES
@IPV4
def test_what_changes_within_the_tick(
    bed: Bed, net: Net, forward: Forward, trouble: Callable[[Bed], None]
) -> None:
    slots = ("b1",) * 61
    world = one(net, forward, pools=(pool(net, 2, slots=slots),))

    def prepare() -> None:
        learn(bed, world, net, tcp(41000, 80), udp(41000, 53, LONG))
        trouble(bed)

    for segment in (
        tcp(41000, 80),
        tcp(41000, 80, "S"),
        tcp(41000, 80, "FA"),
        udp(41000, 53, LONG),
    ):
        same_both_ways(bed, net, prepare, net.packet(segment))
    same_both_ways(bed, net, prepare, net.packet(udp(41000, 53, bytes(700))))


@pytest.mark.parametrize(
    "balance", [Balance.ROUND_ROBIN, Balance.LEAST_CONNECTIONS], ids=lambda b: b.name
)
@MODES
@IPV4
def test_other_balancing_methods(bed: Bed, net: Net, forward: Forward, balance: Balance) -> None:
    for flags in (0, ServiceFlag.FLOWS_OFF):
        world = one(net, forward, balance=balance, flags=flags)
        for segment in (tcp(41000, 80, "S"), tcp(41000, 80), udp(41000, 53, LONG)):
            same_both_ways(bed, net, partial(learn, bed, world, net), net.packet(segment))


REPLIES: dict[str, Callable[[int, int], Segment]] = {
    **{f"TCP {flags}": partial(tcp, flags=flags) for flags in ("A", "SA", "PA", "FA", "R", "S")},
    "data": lambda a, b: tcp(a, b, "PA", bytes(1400)),
    "UDP": lambda a, b: udp(a, b, LONG),
    "UDP without checksum": lambda a, b: udp(a, b, LONG, checksum=0),
    "UDP with a wrong length": lambda a, b: udp(a, b, LONG, length=100),
    "TCP offset 3": lambda a, b: tcp(a, b, offset=3),
}


@pytest.mark.parametrize("client", ["client", "narrow", "silent"])
@pytest.mark.parametrize("forward", [Forward.NAT, Forward.FULLNAT], ids=lambda f: f.name)
@IPV4
def test_every_reply(bed: Bed, net: Net, forward: Forward, client: str) -> None:
    """The first of a tick, and one whose next hop is known already."""
    src = getattr(net, client)
    world = one(net, forward)

    def prepare(warm: bool) -> None:
        bed.load(world)
        for segment in (tcp(41000, 80), udp(41000, 53, LONG)):
            bed.expect(net.frame(segment, src=src), Verdict.FORWARDED)
        for key in bed.returns(net.version) if warm else ():
            make = tcp if key.proto == 6 else udp
            bed.send(
                from_backend(ip(net.backends[0], _to(net, forward, src), make(8080, key.dport))),
                BACKENDS,
            )

    for name, make in REPLIES.items():
        for warm in (False, True):
            prepare(warm)
            ports = {key.proto: key.dport for key in bed.returns(net.version)}
            segment = make(8080, ports[make(1, 1).protocol])
            for ttl in (1, 64):
                packet = ip(net.backends[0], _to(net, forward, src), segment, ttl=ttl)
                try:
                    same_both_ways(bed, net, partial(prepare, warm), packet, BACKENDS)
                except AssertionError as error:
                    raise AssertionError(f"{name}, TTL {ttl}: {error}") from error


def _to(net: Net, forward: Forward, src: str) -> str:
    return net.nat_source if forward == Forward.FULLNAT else src


CHANGES: dict[str, Any] = {
    "hop_epoch": 9,
    "nat_source4": "10.8.0.2",
    "tunnel_source4": "10.9.0.2",
    "gue_port": 5555,
    "flags": SettingFlag.REDIRECT_ALWAYS,
}


@pytest.mark.parametrize("change", [*CHANGES.items(), ("tunnel_source4", "")], ids=str)
@MODES
def test_settings_count_at_once(bed: Bed, forward: Forward, change: tuple[str, Any]) -> None:
    """Out of the interface it came in by, so that the action tells the interface too."""
    made = pool(V4, backends=(backend(V4, 1, ifindex=CLIENTS),))
    world = one(V4, forward, pools=(made,))

    def prepare() -> None:
        learn(bed, world, V4, tcp(41000, 80), udp(41000, 53, LONG))
        bed.configure(reconfigured(world, **dict([change])))

    for segment in (tcp(41000, 80), udp(41000, 53, LONG)):
        same_both_ways(bed, V4, prepare, V4.packet(segment))


@MODES
def test_any_port_frontends(bed: Bed, forward: Forward) -> None:
    world = one(V4, forward, frontends=((V4.vip, None, "tcp"), (V4.vip, None, "udp")))
    known = (tcp(41000, 80), udp(41000, 53, LONG))
    for before in ((), known):
        for segment in (*known, tcp(41000, 80, "S"), tcp(41000, 80, "R")):
            prepare = partial(learn, bed, world, V4, *before)
            same_both_ways(bed, V4, prepare, V4.packet(segment))


def test_odd_headers_take_the_long_way(bed: Bed) -> None:
    world = one(V4)
    odd = [
        ipv4(V4.client, V4.vip, tcp(41000, 80), options=b"\1" * 4),
        ipv4(V4.client, V4.vip, tcp(41000, 80), length=30),
        ipv4(V4.client, V4.vip, tcp(41000, 80), length=100),
        ipv4(V4.client, V4.vip, tcp(41000, 80), ihl=4),
        ipv4(V4.client, V4.vip, tcp(41000, 80), df=False, mf=True),
        ipv4(V4.client, V4.vip, tcp(41000, 80), df=False, fragment_offset=8),
    ]
    for packet in odd:
        same_both_ways(bed, V4, lambda: learn(bed, world, V4, tcp(41000, 80)), packet)


def test_two_backends_named_by_one_slot_table_keep_apart(bed: Bed) -> None:
    """What the shortcut remembers of one flow it does not use for another."""
    bed.load(one(V4, Forward.DSR, pools=(pool(V4, backends=(backend(V4, 1), backend(V4, 2))),)))
    first = {
        p: bed.expect(V4.frame(tcp(p, 80)), Verdict.FORWARDED).backend for p in range(41000, 41050)
    }
    again = {
        p: bed.expect(V4.frame(tcp(p, 80)), Verdict.FORWARDED).backend for p in range(41000, 41050)
    }
    assert first == again
    assert set(first.values()) == {"b1", "b2"}
