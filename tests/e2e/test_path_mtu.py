"""A narrow link before the client: its router's errors must reach the backend that sent too much."""

import pytest

from bpf.abi import Forward, Verdict
from tests.support.balanced import Balanced, Case
from tests.support.server import body

SIZE = 1_000_000
CASES = [
    *(Case(f, n, n) for f in (Forward.NAT, Forward.FULLNAT, Forward.DSR) for n in (4, 6)),
    Case(Forward.IPIP, 4, 4),
    Case(Forward.GUE, 6, 6),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_router_behind_the_balancer_reaches_the_backend(case: Case) -> None:
    with Balanced(case, weights=(1,), router=True) as bed, bed.load().connect() as connection:
        assert connection.get(f"/bytes/{SIZE}").body == body(SIZE)
        assert bed.count(Verdict.ICMP_FORWARDED) > 0
