"""One test bed per forwarding mode and family: what must hold in each of them."""

import hashlib
from collections import Counter
from collections.abc import Iterator

import pytest

from bpf.abi import Forward, Verdict
from tests.support.balanced import Balanced, Case
from tests.support.server import body
from tests.support.traffic import backends_of

SIZE = 1_000_000
FAMILIES = (4, 6)
CASES = [
    *(Case(f, n, n) for f in (Forward.NAT, Forward.FULLNAT, Forward.DSR) for n in FAMILIES),
    *(Case(f, i, o) for f in (Forward.IPIP, Forward.GUE) for i in FAMILIES for o in FAMILIES),
    *(Case(Forward.NAT, n, n, arms=1) for n in FAMILIES),
    *(Case(Forward.DSR, n, n, arms=1) for n in FAMILIES),
]
WEIGHTS = (1, 2, 3)
SOURCE_PORTS = range(20000, 20200)


@pytest.fixture(scope="module", params=CASES, ids=str)
def bed(request: pytest.FixtureRequest) -> Iterator[Balanced]:
    with Balanced(request.param, weights=WEIGHTS) as bed:
        yield bed.load()


def test_a_large_answer_arrives_intact(bed: Balanced) -> None:
    with bed.connect() as connection:
        assert connection.get(f"/bytes/{SIZE}").body == body(SIZE)


def test_a_large_request_arrives_intact(bed: Balanced) -> None:
    with bed.connect() as connection:
        answer = connection.post(body(SIZE))
    assert answer.body.decode() == hashlib.sha256(body(SIZE)).hexdigest()


def test_200_concurrent_connections_spread_by_weight(bed: Balanced) -> None:
    expected = [bed.chosen(port) for port in SOURCE_PORTS]
    got = backends_of(bed.lab.client, bed.address, 80, SOURCE_PORTS)
    assert got == expected
    shares = Counter(got)
    for name, weight in zip(("b1", "b2", "b3"), WEIGHTS, strict=True):
        assert abs(shares[name] - 200 * weight / sum(WEIGHTS)) < 20


def test_udp_comes_back(bed: Balanced) -> None:
    for size in (0, 1, 700, 1400 - bed.case.overhead):
        assert bed.udp_echo(b"u" * size) == b"u" * size


def test_what_cannot_fit_is_told_to_the_client(bed: Balanced) -> None:
    """All links carry 1500 bytes: only a tunnel's headers make a client's segments too big."""
    overhead = bed.case.overhead
    with bed.connect() as connection:
        connection.post(body(SIZE))
        assert connection.path_mtu == 1500 - overhead
    assert bool(bed.count(Verdict.TOO_BIG_ANSWERED)) == bool(overhead)


def test_nothing_went_wrong_on_the_way(bed: Balanced) -> None:
    """Runs last in each bed: no packet of all the above was dropped for a reason of ours."""
    expected = {
        Verdict.NOT_OURS,
        Verdict.FORWARDED,
        Verdict.RETURNED,
        Verdict.RETURN_PASSED,
        Verdict.TOO_BIG_ANSWERED,
    }
    others = {v.name: bed.count(v) for v in Verdict if v not in expected}
    assert not {name: count for name, count in others.items() if count}
    assert bed.count(Verdict.FORWARDED) > 1000
