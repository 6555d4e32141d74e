"""Killed after any operation of a plan: packets go where the old or the new file sends them,
and the next pass finishes as if nothing had happened."""

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path

import pytest

from bpf.abi import Phase, Verdict
from reconciler import config as configuration
from reconciler.dataplane import Op
from reconciler.maps import PinnedMaps
from reconciler.model import Config
from tests.support import frames
from tests.support.box import CLIENT, WAN_LAN, Box, boxed, mac_of
from tests.support.instances import die, killed_in

HEAD = """\
apiVersion: evenkeel/v1
defaults: {drain: {grace: 5m, then: flush}}
guardrails: {removed-services: 100%, removed-backends: 100%, allow-empty: true}
"""
OLD = (
    HEAD
    + """\
pools:
  web:
    backends:
      web1: {address: 10.1.2.101, port: 8080}
      web2: {address: 10.1.2.102, port: 8080}
  dns: {backends: {dns1: {address: 10.1.2.103, port: 53}}}
services:
  www: {addresses: [192.0.2.10], ports: [80/tcp], pools: [web]}
  dns: {addresses: [192.0.2.53], ports: [53/tcp], pools: [dns]}
"""
)
NOTHING = HEAD + "services: {}\n"
PLANS = {
    "the first file": (NOTHING, OLD),
    "everything goes": (OLD, NOTHING),
    "a backend moves": (OLD, OLD.replace("10.1.2.102, port: 8080", "10.1.2.104, port: 8081")),
    "weights and a third backend": (
        OLD,
        OLD.replace("web2: {", "web3: {address: 10.1.2.105, port: 80, weight: 7}\n      web2: {"),
    ),
    "a service goes over to another pool": (OLD, OLD.replace("pools: [dns]", "pools: [web]")),
    "one service for another": (
        OLD,
        OLD.replace("dns: {addresses: [192.0.2.53]", "new: {addresses: [192.0.2.54]"),
    ),
    "two services change places": (
        OLD,
        OLD.replace("192.0.2.10", "X").replace("192.0.2.53", "192.0.2.10").replace("X", "192.0.2.53")
        .replace("53/tcp", "80/tcp"),
    ),
}  # fmt: skip
_sports = count(20000)


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with boxed(f"ek{os.getpid()}crash", tmp_path_factory.mktemp("box")) as made:
        for number in range(101, 106):
            made.neighbour(f"10.1.2.{number}", mac_of(number))
        yield made


Frontend = tuple[str, int]
Backends = dict[Frontend, set[str]]


def backends_of(config: Config) -> Backends:
    """The MACs behind each frontend, by the file alone: the last octet is the MAC's too."""
    return {
        (str(address), port.number): {
            mac_of(backend.address.packed[-1])
            for pool in service.pools
            for backend in config.pools[pool].backends.values()
        }
        for service in config.services.values()
        for address in service.addresses
        for port in service.ports
    }


def packet(frontend: Frontend, sport: int, flags: str = "S") -> bytes:
    address, port = frontend
    return frames.eth(frames.ip(CLIENT[4], address, frames.tcp(sport, port, flags)))


def goes_to(box: Box, frame: bytes) -> str:
    """Whose MAC the packet leaves with; passed when the kernel gets it."""
    outcome = box.send(frame)
    if outcome.verdict == Verdict.NOT_OURS:
        return "passed"
    assert outcome.verdict == Verdict.FORWARDED, outcome.verdict
    return outcome.frame[:6].hex(":")


def allowed(frontend: Frontend, *states: Backends) -> set[str]:
    return {place for state in states for place in state.get(frontend, {"passed"})}


def one_by_one(limit: int) -> Callable[[PinnedMaps, Iterable[Op]], None]:
    """As PinnedMaps.apply, but killed after so many operations."""
    whole = PinnedMaps.apply

    def apply(self: PinnedMaps, ops: Iterable[Op]) -> None:
        for number, op in enumerate(ops):
            if number == limit:
                die()
            whole(self, [op])
        die()

    return apply


def killed_after(box: Box, text: str, operations: int) -> None:
    def child() -> None:
        PinnedMaps.apply = one_by_one(operations)  # type: ignore[method-assign]
        box.reconcile(text, WAN_LAN)

    killed_in(child)


def operations(box: Box, old: str, new: str) -> int:
    """How many there are from one to the other."""
    box.reconcile(old, WAN_LAN)
    return len(box.reconcile(new, WAN_LAN).ops)


@pytest.mark.parametrize("name", PLANS)
def test_wherever_it_is_killed_traffic_goes_on_and_the_next_pass_finishes(
    box: Box, name: str
) -> None:
    old, new = PLANS[name]
    before, after = (backends_of(configuration.load(text)) for text in (old, new))
    total = operations(box, old, new)
    assert total > 3
    for number in range(total + 1):
        box.reconcile(old, WAN_LAN)
        known = {frontend: next(_sports) for frontend in before}
        for frontend, sport in known.items():
            assert goes_to(box, packet(frontend, sport)) in before[frontend]
        killed_after(box, new, number)
        where = f"killed after {number} of {total}"
        assert_served(box, before, after, known, where)
        box.reconcile(new, WAN_LAN)
        assert_converged(box, new, after, where)


def assert_served(
    box: Box, before: Backends, after: Backends, known: dict[Frontend, int], where: str
) -> None:
    for frontend in before.keys() | after.keys():
        for _ in range(4):
            place = goes_to(box, packet(frontend, next(_sports)))
            assert place in allowed(frontend, before, after), (where, frontend)
    for frontend, sport in known.items():
        place = goes_to(box, packet(frontend, sport, "A"))
        assert place in allowed(frontend, before, after), (where, frontend, "a flow")


def assert_converged(box: Box, new: str, after: Backends, where: str) -> None:
    assert box.reconcile(new, WAN_LAN).ops == (), where
    maps = box.bed.instance.maps
    meta = maps.meta.get(0)
    assert meta is not None
    assert meta.phase == Phase.IDLE, where
    for frontend, backends in after.items():
        assert goes_to(box, packet(frontend, next(_sports))) in backends, (where, frontend)
    folder = Path("/sys/fs/bpf/evenkeel", box.place.instance)
    for name in ("tables", "spares"):
        pins = [path.name.partition("-")[0] for path in (folder / name).iterdir()]
        assert sorted(map(int, pins)) == sorted(maps[name].indexes()), (where, name)


def test_the_judge_would_see_a_packet_that_is_lost(box: Box) -> None:
    """What the others assert can fail: without its table a service reaches no one."""
    box.reconcile(OLD, WAN_LAN)
    after = backends_of(configuration.load(OLD))
    for at in box.read().tables:
        box.bed.instance.maps.tables.delete(at)
    with pytest.raises(AssertionError):
        assert_served(box, after, after, {}, "")


def test_the_command_finishes_what_a_killed_one_began(box: Box) -> None:
    new = OLD.replace("10.1.2.102, port: 8080", "10.1.2.104, port: 8081")
    box.reconcile(OLD, WAN_LAN)
    killed_after(box, new, 3)
    meta = box.bed.instance.maps.meta.get(0)
    assert meta is not None
    assert meta.phase == Phase.APPLYING
    box.write(new)
    box.run("--once")
    assert "no changes" in box.run("--dry-run", "--detailed-exitcode").stdout
