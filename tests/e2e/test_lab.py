"""The lab itself: what its users rely on when something goes wrong."""

import multiprocessing
import signal

import pytest

from tests.support import namespace
from tests.support.lab import Lab, clean, leftovers
from tests.support.wait import until


def build_and_linger() -> None:
    with Lab(1):
        signal.pause()


def test_what_a_killed_process_leaves_is_found_and_removed() -> None:
    process = multiprocessing.get_context("fork").Process(target=build_and_linger)
    process.start()
    prefix = f"ek{process.pid}n"
    until(lambda: list(namespace.FOLDER.glob(f"{prefix}*-b1")), what="the lab")
    assert not [name for name in leftovers() if name.startswith(prefix)]
    process.kill()
    process.join()
    mine = [name for name in leftovers() if name.startswith(prefix)]
    assert len(mine) == 4
    clean(mine)
    assert not list(namespace.FOLDER.glob(f"{prefix}*"))


def test_a_failure_leaves_nothing() -> None:
    lab = Lab(1)
    with pytest.raises(RuntimeError, match="no-such-device"), lab:
        lab.client.ip("link set no-such-device up\n")
    assert not list(namespace.FOLDER.glob(f"{lab.prefix}-*"))


def test_a_server_that_cannot_start_is_an_error() -> None:
    with Lab(1) as lab:
        lab.serve(lab.backends[0], 80)
        with pytest.raises(RuntimeError, match="b1: the server on ports"):
            lab.serve(lab.backends[0], 80)
