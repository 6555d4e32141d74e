"""What the pinned maps say, read again and again: which file is applied, and who is up. Writes to no map.

Everything that changes there is written down: of an unexplained mishap it is the first that one wants to know.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

from bpf import abi, kernel
from reconciler import ids
from tests.soak import wishes
from tests.soak.journal import Journal
from tests.soak.live import Where

PACE = 0.05
Member = tuple[str, str]  # pool, host
NO_NEW = int(abi.BackendFlag.NO_NEW)


@dataclass(frozen=True, slots=True)
class Sight:
    digest: bytes = b""
    phase: abi.Phase = abi.Phase.IDLE
    entries: Mapping[int, tuple[Member, int, int, str]] = field(default_factory=dict)
    spared: frozenset[int] = frozenset()  # ids that spare tables name

    @property
    def applied(self) -> bytes:
        """The file that the maps were made from, when they are not being made."""
        return self.digest if self.phase is abi.Phase.IDLE else b""

    def being(self, state: abi.HealthState) -> frozenset[Member]:
        return frozenset(one for one, _, _, said in self.entries.values() if said == state.name)

    @property
    def up(self) -> frozenset[Member]:
        return self.being(abi.HealthState.UP)

    @property
    def down(self) -> frozenset[Member]:
        return self.being(abi.HealthState.DOWN) - self.up

    @property
    def passed_over(self) -> frozenset[Member]:
        """Down, and nobody's last resort: as long as a spare slot names one that is down, the pool is used whole."""
        named = {member for member, number, _, _ in self.entries.values() if number in self.spared}
        return self.down - named


def changes(before: Sight, after: Sight) -> Iterator[tuple[str, str]]:
    """What differs, and the pool that it concerns; all of them: none."""
    if (before.digest, before.phase) != (after.digest, after.phase):
        yield "", f"file {after.digest.hex()[:8]}: {after.phase.name.lower()}"
    for at in sorted({*before.entries, *after.entries}):
        old, new = before.entries.get(at), after.entries.get(at)
        if old != new:
            (pool, _), *_ = new or old  # type: ignore[misc]
            yield pool, f"backends entry {at}: {_told(new)}, was {_told(old)}"


def _told(entry: tuple[Member, int, int, str] | None) -> str:
    if entry is None:
        return "nobody's"
    member, number, flags, health = entry
    words = [flag.name.lower() for flag in abi.BackendFlag if flags & flag and flag.name]
    return " ".join(
        ("/".join(member), f"incarnation {ids.incarnation(number)}", health.lower(), *words)
    )


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
    meta, health = instance.maps.meta.get(0), dict(instance.maps.health.items())
    entries = {
        at: (member, entry.id, entry.flags, _health(health.get(at), entry.id))
        for at, entry in instance.maps.backends.items()
        if (member := _member(entry)) and ids.index(entry.id) == at
    }
    spared = _spared(instance, entries)
    if meta is None:
        return Sight(entries=entries, spared=spared)
    return Sight(bytes(meta.digest), abi.Phase(meta.phase), entries, spared)


def _spared(
    instance: kernel.Instance, entries: Mapping[int, tuple[Member, int, int, str]]
) -> frozenset[int]:
    """While tables are being replaced nobody can be ruled out."""
    try:
        return frozenset().union(*instance.maps.spares.items().values())
    except kernel.KernelError:
        return frozenset(number for _, number, _, _ in entries.values())


def _health(entry: abi.Health | None, number: int) -> str:
    known = entry is not None and entry.id == number
    return abi.HealthState(entry.state if entry and known else 0).name


class Watch:
    """Looks every few hundredths of a second, ends troubles that are over, and tells of falls."""

    def __init__(self, live: Where, journal: Journal, fell: Callable[[Member], None]) -> None:
        self._live, self._journal, self._fell = live, journal, fell
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.sight = Sight()

    def __enter__(self) -> "Watch":
        self.sight = sight(self._live())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(PACE):
            before, self.sight = self.sight, sight(self._live())
            for pool, what in changes(before, self.sight):
                self._journal.saw(pool, what)
            for member in sorted(self.sight.down & before.up):
                self._fell(member)
            self._journal.look()
