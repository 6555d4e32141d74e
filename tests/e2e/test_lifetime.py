"""What becomes of traffic when the program is replaced, or when whoever loaded it dies.

Loading and replacing is done by the user of the reconciler's unit, with its capabilities.
"""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.synchronize import Event

import pytest

from bpf import kernel
from bpf.abi import Forward
from tests.support.balanced import Balanced, Case
from tests.support.unit import unit
from tests.support.wait import until

CASES = [Case(Forward.NAT, 4, 4), Case(Forward.DSR, 6, 6)]
REPLACEMENTS = 10
ENOUGH = 300  # of requests and of probes: each replacement has seen some


@pytest.fixture(params=CASES, ids=str)
def bed(request: pytest.FixtureRequest) -> Iterator[Balanced]:
    with Balanced(request.param) as bed:
        yield bed


def test_replacing_the_program_under_load_loses_nothing(bed: Balanced) -> None:
    bed.load()
    with bed.under_load() as load:
        for _ in range(REPLACEMENTS):
            before = load.requests, load.echoes
            assert unit("reconciler").doing(bed.instance.replace)
            until(
                lambda seen=before: load.requests > seen[0] and load.echoes > seen[1],
                what="traffic after a replacement",
            )
        until(lambda: min(load.requests, load.echoes) > ENOUGH, 60, what="enough traffic")
    assert load.failures == []
    assert load.lost == 0
    assert set(load.answered) == {"b1", "b2", "b3"}


def test_a_flow_survives_the_replacement_of_the_program(bed: Balanced) -> None:
    bed.load()
    with bed.connect() as connection:
        first = connection.get().backend
        unit("reconciler").doing(bed.instance.replace)
        assert connection.get().backend == first


def test_traffic_goes_on_when_the_loading_process_is_killed(bed: Balanced) -> None:
    context = multiprocessing.get_context("fork")
    loaded = context.Event()
    process = context.Process(target=_load_and_linger, args=(bed, loaded))
    process.start()
    try:
        assert loaded.wait(60), "the loading process did not finish loading"
        with bed.connect() as connection, bed.under_load() as load:
            first = connection.get().backend
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            until(lambda: min(load.requests, load.echoes) > ENOUGH, 60, what="enough traffic")
            assert connection.get().backend == first
    finally:
        process.kill()
        process.join()
        kernel.Instance.open(bed.lab.prefix).teardown()
    assert load.lost == 0


def _load_and_linger(bed: Balanced, loaded: Event) -> None:
    bed.load()
    loaded.set()
    signal.pause()


def test_after_teardown_nobody_answers_and_nothing_is_left(bed: Balanced) -> None:
    bed.load()
    bed.instance.teardown()
    assert bed.lab.prefix not in kernel.instances()
    with pytest.raises(OSError, match=r"refused|unreachable|timed out|No route"):
        bed.connect()
