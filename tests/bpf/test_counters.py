"""What is counted where: verdicts, services, backends, and the time that packets took. §6."""

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from bpf import abi
from bpf.abi import Forward, Verdict
from tests.support.bed import BACKENDS, Bed, reconfigured
from tests.support.frames import eth, icmp, ip, tcp, udp, unreachable
from tests.support.scenes import V4, V6, Net, backend, both, from_backend, one, pool, service
from tests.support.world import Health, World

MODES = pytest.mark.parametrize("forward", Forward, ids=lambda f: f.name)


def counts(
    packets: int = 0, size: int = 0, flows: int = 0, replies: int = 0, back: int = 0
) -> abi.Counters:
    return abi.Counters(
        packets=packets, bytes=size, flows=flows, reply_packets=replies, reply_bytes=back
    )


@MODES
@both
def test_a_forwarded_packet_counts_for_its_service_and_backend(
    bed: Bed, net: Net, forward: Forward
) -> None:
    """With the length that it came in with, padding and all, whatever is put around it."""
    bed.load(one(net, forward))
    frames = [
        net.frame(tcp(41000, 80)),
        net.frame(tcp(41000, 80, "PA", bytes(500))) + b"padding",
        net.frame(udp(41000, 53)),
    ]
    for frame in frames:
        bed.expect(frame, Verdict.FORWARDED)
    want = counts(3, sum(map(len, frames)), 2)
    assert bed.counted("www") == bed.counted("web/b1") == want


@both
def test_replies_count_apart(bed: Bed, net: Net) -> None:
    bed.load(one(net))
    there = net.frame(udp(41000, 53), src=net.client)
    silent = net.frame(udp(41000, 53), src=net.silent)
    for frame in (there, silent):
        bed.expect(frame, Verdict.FORWARDED)
    quoted = ip(net.client, net.backends[0], udp(41000, 8080), ttl=63)
    replies = [
        (ip(net.backends[0], net.client, udp(8080, 41000)), Verdict.RETURNED),
        (ip(net.backends[0], net.silent, udp(8080, 41000)), Verdict.RETURN_PASSED),
        (
            ip(net.backends[0], net.client, unreachable(net.version, quoted)),
            Verdict.ICMP_RETURNED,
        ),
    ]
    for packet, verdict in replies:
        bed.expect(from_backend(packet), verdict, at=BACKENDS)
    back = sum(len(packet) + 14 for packet, _ in replies)
    want = counts(2, len(there) + len(silent), 2, 3, back)
    assert bed.counted("www") == bed.counted("web/b1") == want


@both
def test_a_forwarded_error_counts_like_a_packet(bed: Bed, net: Net) -> None:
    bed.load(one(net))
    quoted = ip(net.vip, net.client, tcp(80, 41000))
    frame = eth(ip(net.far, net.vip, unreachable(net.version, quoted)))
    bed.expect(frame, Verdict.ICMP_FORWARDED)
    assert bed.counted("www") == bed.counted("web/b1") == counts(1, len(frame), 0)


@both
def test_each_service_and_backend_counts_its_own(bed: Bed, net: Net) -> None:
    pools = [pool(net, name=f"p{i}", backends=(backend(net, i),)) for i in (1, 2)]
    bed.load(
        World(
            tuple(
                service(net, made, name=made.name + "s", frontends=((net.vip, port, "tcp"),))
                for made, port in zip(pools, (80, 81), strict=True)
            )
        )
    )
    for port in (80, 81, 81, 81):
        bed.expect(net.frame(tcp(41000, port)), Verdict.FORWARDED)
    assert [bed.counted(n).packets for n in ("p1s", "p2s", "p1/b1", "p2/b2")] == [1, 3, 1, 3]
    assert [bed.counted(n).flows for n in ("p1s", "p2s", "p1/b1", "p2/b2")] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("fields", "frame", "verdict"),
    [
        ({"health": Health.DOWN}, V4.frame(tcp(1, 80)), Verdict.NO_BACKEND),
        ({"ifindex": 0}, V4.frame(tcp(1, 80)), Verdict.NO_NEXT_HOP),
        ({}, V4.frame(tcp(1, 80), ttl=1), Verdict.TTL_EXPIRED),
        ({}, V4.frame(tcp(1, 80, offset=1)), Verdict.BAD_TCP),
        ({"mtu": 50}, V4.frame(tcp(1, 80, "A", bytes(20))), Verdict.TOO_BIG),
        ({"mtu": 600}, V4.frame(tcp(1, 80, "A", bytes(800))), Verdict.TOO_BIG_ANSWERED),
        ({}, V4.frame(tcp(1, 81)), Verdict.NOT_OURS),
        ({}, V4.frame(icmp(8)), Verdict.NOT_OURS),
    ],
    ids=lambda v: v.name if isinstance(v, Verdict) else "",
)
def test_what_is_not_sent_counts_a_verdict_only(
    bed: Bed, fields: dict[str, object], frame: bytes, verdict: Verdict
) -> None:
    made = one(V4, pools=(pool(V4, backends=(backend(V4, 1, **fields),)),))
    closed = replace(made.services[0], flags=abi.ServiceFlag.FAIL_CLOSED)
    bed.load(replace(made, services=(closed,)))
    bed.expect(frame, verdict)
    assert bed.counted("www") == bed.counted("web/b1") == counts()


@both
def test_a_thousand_packets_are_a_thousand(bed: Bed, net: Net) -> None:
    bed.load(one(net, Forward.DSR))
    frame = net.frame(tcp(41000, 80))
    before = bed.cpu()
    bed.instance.run(frame, repeat=1000)
    after = bed.cpu()
    index = Verdict.FORWARDED
    assert after.packets - before.packets == 1000
    assert after.verdict[index].packets - before.verdict[index].packets == 1000
    assert after.verdict[index].bytes - before.verdict[index].bytes == 1000 * len(frame)
    assert bed.counted("www").packets == 1000
    assert bed.counted("www").flows == 1


@pytest.mark.parametrize(
    ("frame", "verdict"),
    [
        (eth(bytes(5000), ethertype=0x88CC), Verdict.NOT_OURS),
        (V4.frame(tcp(1, 80, "A", bytes(6000)), dst=V4.foreign), Verdict.NOT_OURS),
        (V6.frame(udp(1, 53, bytes(6000)), dst=V6.foreign), Verdict.NOT_OURS),
        (V4.frame(udp(1, 53, bytes(6000))), Verdict.TOO_BIG_ANSWERED),
    ],
    ids=["another ethertype", "foreign IPv4", "foreign IPv6", "too big"],
)
def test_a_frame_longer_than_a_page_counts_whole(bed: Bed, frame: bytes, verdict: Verdict) -> None:
    """Jumbo frames that only pass through are the common case of a storage network."""
    bed.load(one(V4))
    bed.expect(frame, verdict)


# ---- latency ----


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """Sampling counts per CPU: stay on one."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


def sampled(bed: Bed, mask: int, packets: int) -> list[int]:
    bed.load(reconfigured(one(V4), sample_mask=mask))
    before = list(bed.cpu().latency)
    for _ in range(packets):
        bed.expect(V4.frame(tcp(41000, 80)), Verdict.FORWARDED)
    return [new - old for new, old in zip(bed.cpu().latency, before, strict=True)]


@pytest.mark.parametrize(("mask", "samples"), [(0, 64), (1, 32), (3, 16), (31, 2), (0xFFFFFFFF, 0)])
def test_one_packet_in_so_many_is_timed(bed: Bed, one_cpu: None, mask: int, samples: int) -> None:
    assert sum(sampled(bed, mask, 64)) == samples


def test_a_time_is_in_the_bucket_of_its_magnitude(bed: Bed, one_cpu: None) -> None:
    """Forwarding takes some 30 ns at least, and a packet in a million a millisecond: median between."""
    histogram = sampled(bed, 0, 200)
    median = next(b for b in range(32) if sum(histogram[: b + 1]) >= 100)
    assert 5 <= median <= 17, histogram


def test_every_kind_of_packet_is_timed(bed: Bed, one_cpu: None) -> None:
    bed.load(reconfigured(one(V4), sample_mask=0))
    for frame in (V4.frame(tcp(1, 99)), V4.frame(tcp(1, 80, offset=2)), bytes(14)):
        before = sum(bed.cpu().latency)
        bed.send(frame)
        assert sum(bed.cpu().latency) == before + 1
