"""A pool falls below its panic share and comes back: which one packets meet, from pass to pass over the same maps."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf import abi
from bpf.abi import HealthState, Verdict
from reconciler.maps import PinnedMaps
from tests.support import frames
from tests.support.box import CLIENT, WAN_LAN, Box, boxed, mac_of

ADDRESSES = {f"10.1.2.10{n}": mac_of(n) for n in range(1, 6)}
WEB, SORRY = [f"10.1.2.10{n}" for n in range(1, 5)], "10.1.2.105"
TEXT = """\
apiVersion: evenkeel/v1
checks: {alive: {type: tcp}}
pools:
  web:
    check: alive
    backends:
      web1: {address: 10.1.2.101, port: 8080}
      web2: {address: 10.1.2.102, port: 8080}
      web3: {address: 10.1.2.103, port: 8080}
      web4: {address: 10.1.2.104, port: 8080}
  sorry: {check: alive, backends: {sorry1: {address: 10.1.2.105, port: 8080}}}
services:
  www: {addresses: [192.0.2.10], ports: [80/tcp], pools: [web, sorry], panic: 40%, fail: closed}
"""
NO_MARGIN = TEXT.replace("panic: 40%", "panic: 40%, recover: 40%")


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with boxed(f"ek{os.getpid()}quorum", tmp_path) as made:
        for address, mac in ADDRESSES.items():
            made.neighbour(address, mac)
        yield made


CLIENTS = itertools.count(20000)


def who_serves(box: Box, *, web: int, sorry: int = 1, text: str = TEXT) -> str:
    """One look of a reconciler that knows only the maps, with so many backends up; then a new client."""
    up = WEB[:web] + [SORRY] * sorry
    reported(box, up, text)
    box.reconcile(text, WAN_LAN)
    packet = frames.ip(CLIENT[4], "192.0.2.10", frames.tcp(next(CLIENTS), 80, "S"))
    outcome = box.send(frames.eth(packet))
    if outcome.verdict == Verdict.NO_BACKEND:
        return "nobody"
    met = next(at for at, mac in ADDRESSES.items() if mac == outcome.frame[:6].hex(":"))
    assert met in up
    return "sorry" if met == SORRY else "web"


def reported(box: Box, up: list[str], text: str) -> None:
    """What healthcheck would have written of those that are there; at first nobody is."""
    instance = box.bed.instance
    if not PinnedMaps(instance).read().backends:
        box.reconcile(text, WAN_LAN)
    for at, entry in PinnedMaps(instance).read().backends.items():
        address = ".".join(map(str, bytes(entry.addr)[:4]))
        state = HealthState.UP if address in up else HealthState.DOWN
        instance.maps.health.put(at, abi.Health(id=entry.id, state=state, ramp=255))


def test_one_backend_that_comes_and_goes_at_the_edge_does_not_move_clients(box: Box) -> None:
    assert who_serves(box, web=2) == "web", "two of four are 50 %"
    assert who_serves(box, web=1) == "sorry"
    assert [who_serves(box, web=web) for web in (2, 1, 2, 1, 2)] == ["sorry"] * 5
    assert who_serves(box, web=3) == "web", "clearly more than 40 %"
    assert who_serves(box, web=2) == "web"


def test_recover_at_the_panic_share_is_without_a_margin(box: Box) -> None:
    served = [who_serves(box, web=web, text=NO_MARGIN) for web in (2, 1, 2, 1)]
    assert served == ["web", "sorry", "web", "sorry"]


def test_a_pool_waits_only_while_another_serves(box: Box) -> None:
    assert who_serves(box, web=1) == "sorry"
    assert who_serves(box, web=2) == "sorry"
    assert who_serves(box, web=2, sorry=0) == "web", "rather than drop"
    assert who_serves(box, web=2) == "web", "and then there is no reason to move again"
    assert who_serves(box, web=1, sorry=0) == "nobody", "below the share and told to fail closed"
