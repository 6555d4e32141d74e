"""What the pinned maps say, read again and again: which file is applied, and who is up. Writes to no map."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address

from bpf import abi, kernel
from reconciler import ids
from tests.soak import wishes
from tests.soak.journal import Journal

PACE = 0.05
Member = tuple[str, str]  # pool, host
NO_NEW = int(abi.BackendFlag.NO_NEW)


@dataclass(frozen=True, slots=True)
class Sight:
    digest: bytes = b""
    up: frozenset[Member] = frozenset()
    down: frozenset[Member] = frozenset()


def _places() -> dict[tuple[bytes, int], Member]:
    return {
        (_packed(wishes.address(pool, host)), 0 if pool == "own" else wishes.BACKEND_PORT): (
            pool,
            host,
        )
        for pool in wishes.POOLS
        for host in wishes.HOSTS
    }


def _packed(address: str) -> bytes:
    """As it stands in an entry: 16 bytes, IPv4 in the first four."""
    return ip_address(address).packed.ljust(16, b"\0")


PLACES = _places()


def members(instance: kernel.Instance) -> dict[int, Member]:
    """Which entry is whose, but for those that drain or are gone from the file."""
    entries = [
        (at, one)
        for at, one in instance.maps.backends.items()
        if ids.index(one.id) == at and not one.flags & NO_NEW
    ]
    return {at: found for at, one in entries if (found := _member(one))}


def _member(entry: abi.Backend) -> Member | None:
    return PLACES.get((_address(entry), entry.port))


def _address(entry: abi.Backend) -> bytes:
    whole = bytes(entry.addr)
    return whole[:4].ljust(16, b"\0") if entry.family == 4 else whole


def sight(instance: kernel.Instance) -> Sight:
    meta = instance.maps.meta.get(0)
    states: dict[abi.HealthState, set[Member]] = {state: set() for state in abi.HealthState}
    for at, entry in instance.maps.backends.items():
        health, member = instance.maps.health.get(at), _member(entry)
        if member and health and health.id == entry.id and ids.index(entry.id) == at:
            states[abi.HealthState(health.state)].add(member)
    applied = bytes(meta.digest) if meta and meta.phase == abi.Phase.IDLE else b""
    up = frozenset(states[abi.HealthState.UP])
    return Sight(applied, up, frozenset(states[abi.HealthState.DOWN]) - up)


class Watch:
    """Looks every few hundredths of a second, ends troubles that are over, and tells of falls."""

    def __init__(
        self, instance: kernel.Instance, journal: Journal, fell: Callable[[Member], None]
    ) -> None:
        self._instance, self._journal, self._fell = instance, journal, fell
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.sight = Sight()

    def __enter__(self) -> "Watch":
        self.sight = sight(self._instance)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(PACE):
            before, self.sight = self.sight, sight(self._instance)
            for member in sorted(self.sight.down & before.up):
                self._fell(member)
            self._journal.look()
