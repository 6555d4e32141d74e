"""Which name each id in the maps stands for. Pure.

Whoever compiled the configuration knows; everybody else finds out by the hashes
of names that the entries carry, and names nothing that these do not prove.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from reconciler.compile import Desired
from reconciler.dataplane import State
from reconciler.model import Config
from reconciler.parts import Part, PoolKey, backend_hash, part_hash, parts_of, pool_hash


@dataclass(frozen=True, slots=True)
class Roster:
    services: Mapping[int, Part] = field(default_factory=dict)  # by id
    pools: Mapping[int, PoolKey] = field(default_factory=dict)  # by id
    backends: Mapping[tuple[str, str], int] = field(default_factory=dict)

    @classmethod
    def of(cls, desired: Desired) -> "Roster":
        return cls(desired.parts, desired.pools, desired.backends)

    @classmethod
    def recovered(cls, config: Config, state: State) -> "Roster":
        """What a configuration names of what the maps say."""
        services = {entry.name: entry.id for entry in state.services.values()}
        pools = {(entry.name, entry.size): entry.id for entry in state.pools.values()}
        backends = {entry.name: entry.id for entry in state.backends.values()}
        parts = [part for service in config.services.values() for part in parts_of(service)]
        keys = {key for part in parts for key in part.pools}
        sizes = {entry.size for entry in state.pools.values()}
        return cls(
            {services[part_hash(p)]: p for p in parts if part_hash(p) in services},
            {
                pools[pool_hash(key, size), size]: key
                for key in keys
                for size in sizes
                if (pool_hash(key, size), size) in pools
            },
            {
                (pool.name, name): backends[backend_hash(pool.name, name)]
                for pool in config.pools.values()
                for name in pool.backends
                if backend_hash(pool.name, name) in backends
            },
        )

    def backend_names(self) -> Mapping[str, Mapping[int, str]]:
        """By pool and id."""
        found: dict[str, dict[int, str]] = {}
        for (pool, name), number in self.backends.items():
            found.setdefault(pool, {})[number] = name
        return found
