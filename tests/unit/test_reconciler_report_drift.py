"""What others change: what counts as that, since when, when it is a fight, and what is said of it."""

import pytest

from bpf import abi
from reconciler import config as configuration
from reconciler.conditions import Holds, Observed, Trouble, Type, judge
from reconciler.dataplane import Put, State, Where
from reconciler.drift import REPAIRS, SPAN, Difference, Vigil, differences, harmless
from reconciler.model import DriftPolicy
from tests.support.fake_dataplane import FakeMaps
from tests.support.looks import view_of

ONE = Difference(Where.FRONTENDS, 1, "missing")
TEXT = """\
apiVersion: evenkeel/v1
pools: {web: {backends: {web1: {address: 10.0.0.1, port: 80}, web2: {address: 10.0.0.2, port: 80}}}}
services: {www: {addresses: [192.0.2.1], ports: [80/tcp], pools: [web]}}
"""


def repaired(vigil: Vigil, now: float) -> bool:
    """Whether the difference was repaired, or else left."""
    left = vigil.look([ONE], now, 0)
    vigil.repaired(now, left=left)
    return not left


def test_so_many_repairs_are_a_fight_and_one_fewer_is_none() -> None:
    vigil = Vigil(DriftPolicy.RESTORE)
    assert all(repaired(vigil, now) for now in range(REPAIRS))
    assert not repaired(vigil, REPAIRS)
    assert vigil.fought == (ONE,)
    assert vigil.left == 1


def test_repairs_that_are_far_apart_are_none() -> None:
    vigil = Vigil(DriftPolicy.RESTORE)
    assert all(repaired(vigil, now * SPAN / (REPAIRS - 1)) for now in range(50))


def test_nobody_is_fought_until_the_time_is_over() -> None:
    vigil = Vigil(DriftPolicy.RESTORE)
    for now in range(REPAIRS + 1):
        repaired(vigil, now)
    assert not repaired(vigil, REPAIRS + SPAN - 1)
    assert repaired(vigil, REPAIRS + SPAN)


def test_when_it_was_well_last_and_when_it_was_found_stay() -> None:
    vigil = Vigil(DriftPolicy.REPORT)
    vigil.look([], 10, 0)
    for now in (20, 30):
        assert vigil.look([ONE], now, 0)
        assert [(one.well, one.found) for one in vigil.seen] == [(10, 20)]
    assert not vigil.look([], 40, 0)
    assert vigil.seen == ()


def test_another_configuration_begins_anew() -> None:
    vigil = Vigil(DriftPolicy.RESTORE)
    for now in range(REPAIRS + 1):
        repaired(vigil, now)
    vigil.anew()
    assert vigil.fought == ()
    assert repaired(vigil, REPAIRS + 2)


def applied() -> FakeMaps:
    maps = FakeMaps()
    maps.apply(view_of(configuration.load(TEXT), maps).ops)
    return maps


def test_health_next_hops_and_overrides_are_no_drift() -> None:
    maps = applied()
    entry = next(iter(maps.content[Where.BACKENDS].values()))
    entry.dmac, entry.mtu, entry.flags = (2,) * 6, 9000, entry.flags | abi.BackendFlag.FORCED_UP
    next(iter(maps.content[Where.SERVICES].values())).short_pools = 1
    maps.content[Where.SPARES].clear()
    ops = view_of(configuration.load(TEXT), maps).ops
    assert {op.where for op in ops} == {Where.BACKENDS, Where.SERVICES, Where.SPARES}
    assert list(differences(ops, maps.read())) == []
    assert harmless(ops, maps.read()) == ops


@pytest.mark.parametrize("where", [Where.BACKENDS, Where.TABLES, Where.FRONTENDS])
def test_what_is_left_gets_no_half_of_a_repair(where: Where) -> None:
    maps = applied()
    del maps.content[where][1]
    ops = view_of(configuration.load(TEXT), maps).ops
    assert ops
    assert list(differences(ops, maps.read()))
    for op in harmless(ops, maps.read()):
        assert isinstance(op, Put)
        assert op.key in maps.read()[op.where]


def test_drift_that_is_left_is_out_of_sync_and_a_fight_is_an_alarm() -> None:
    fight = Trouble("Fighting", "frontends4 ...")
    judged = {one.type: one for one in judge(Observed(1.0, converged=True, left=2, stalled=fight))}
    assert (judged[Type.IN_SYNC].status, judged[Type.IN_SYNC].reason) == (Holds.FALSE, "DriftLeft")
    assert not judged[Type.STALLED].well
    assert judged[Type.READY].well, "it forwards"
    assert not list(differences([], State()))
