"""Which backend a packet gets, by docs/packet-path.md §4. Draws no number: the draws are arguments,
so that a test can try every one of them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bpf.abi import BackendFlag, Balance, HealthState, Limit, ServiceFlag
from tests.support.model import hashing
from tests.support.model.config import Backend, Config, Pool, Service, index
from tests.support.model.parse import TCP, Tuple

Usable = Callable[[Backend, int | None], bool]  # at a slot; None: whatever the ramp
Draws = tuple[int, ...]
Starts = tuple[
    Callable[[int], int], ...
]  # table size -> first slot; two of them: least connections


@dataclass(frozen=True, slots=True)
class Start:
    """Where the walks of one packet begin, in tables of any size."""

    slots: Starts

    @classmethod
    def hashed(cls, service: Service, client: Tuple) -> "Start":
        h = hashing.tuple_hash(client, service.hash)
        return cls((lambda size: hashing.slot(h, size),))

    @classmethod
    def cursor(cls, cursor: int) -> "Start":
        return cls((lambda size: cursor % size,))

    @classmethod
    def drawn(cls, draws: Draws) -> "Start":
        return cls(tuple(_scaled(draw) for draw in draws))


def _scaled(draw: int) -> Callable[[int], int]:
    return lambda size: (draw * size) >> 32


def draws_needed(service: Service, client: Tuple, *, syn: bool) -> int:
    """How many random numbers a choice for this packet takes."""
    if client.protocol == TCP and not syn:
        return 0
    return {Balance.RANDOM: 1, Balance.LEAST_CONNECTIONS: 2}.get(Balance(service.balance), 0)


def by_cursor(service: Service, client: Tuple, *, syn: bool) -> bool:
    return service.balance == Balance.ROUND_ROBIN and (client.protocol != TCP or syn)


class Chooser:
    """Chooses in one configuration, with the live counts of one moment."""

    def __init__(self, config: Config, live: Callable[[int], int]) -> None:
        self._config = config
        self._live = live

    def choose(self, service: Service, start: Start, retry: int = 0) -> Backend | None:
        for number, pool in enumerate(map(self._config.pool, service.pools)):
            if pool is None or service.short_pools >> number & 1:
                continue
            if backend := self._pick(pool, start, retry, self._usable):
                return backend
        return self._whole(service, start, retry)

    def _whole(self, service: Service, start: Start, retry: int) -> Backend | None:
        if service.flags & ServiceFlag.FAIL_CLOSED or not service.pools:
            return None
        first = self._config.pool(service.pools[0])
        return self._pick(first, start, retry, _not_forced_down) if first else None

    def _pick(self, pool: Pool, start: Start, retry: int, usable: Usable) -> Backend | None:
        found = [self._walk(pool, slot(pool.size), retry, usable) for slot in start.slots]
        walked = [backend for backend in found if backend]
        return self._fewer(*walked) if len(walked) == 2 else next(iter(walked), None)

    def _fewer(self, one: Backend, other: Backend) -> Backend:
        load = self._live(index(one.id)) * (other.weight or 1)
        return one if load <= self._live(index(other.id)) * (one.weight or 1) else other

    def _walk(self, pool: Pool, slot: int, retry: int, usable: Usable) -> Backend | None:
        first = (slot + retry * pool.step) % pool.size
        for step in range(Limit.WALK_STEPS + 1):
            at = (first + step * pool.step) % pool.size
            backend = self._config.backend(pool.table[at])
            if backend and usable(backend, at):
                return backend
        spare = self._config.backend(pool.spare[first]) if pool.spare else None
        return spare if spare and usable(spare, None) else None

    def _usable(self, backend: Backend, slot: int | None) -> bool:
        if backend.flags & BackendFlag.FORCED_DOWN:
            return False
        if backend.flags & BackendFlag.FORCED_UP:
            return True
        state, ramp = self._config.health(backend)
        if state == HealthState.UP:
            return slot is None or hashing.slot_hash(slot) <= ramp
        return state == HealthState.UNKNOWN and bool(backend.flags & BackendFlag.ASSUME_UP)

    def distinct_draws(self, service: Service, count: int) -> Iterator[Draws]:
        """Draws that stand for all there are: one for each way the walks can go, retries included."""
        ones = self._distinct(service)
        if count == 1:
            return ((one,) for one in ones)
        return ((one, other) for one in ones for other in ones)

    def _distinct(self, service: Service) -> list[int]:
        pools = [pool for pool in map(self._config.pool, service.pools) if pool]
        edges = {0} | {-(-(k << 32) // pool.size) for pool in pools for k in range(pool.size)}
        ways: dict[tuple[object, ...], int] = {}
        for draw in sorted(edges):
            ways.setdefault(self._way(pools, draw), draw)
        return list(ways.values())

    def _way(self, pools: list[Pool], draw: int) -> tuple[object, ...]:
        return tuple(
            self._walk(pool, _scaled(draw)(pool.size), retry, usable)
            for pool in pools
            for retry in range(Limit.RETURN_TRIES + 1)
            for usable in (self._usable, _not_forced_down)
        )


def _not_forced_down(backend: Backend, slot: int | None) -> bool:
    return not backend.flags & BackendFlag.FORCED_DOWN
