"""Names for what the maps know by hashes and ids only. Pure.

Names come from the configuration that is applied and from the one that is to be;
what neither names is shown by what the maps say about it.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bpf import abi
from reconciler import ids
from reconciler.dataplane import State
from reconciler.encode import address_bytes
from reconciler.model import NOWHERE, Config, Origin, Proto
from reconciler.parts import backend_hash, part_hash, parts_of, pool_hash

IPV6 = 6


@dataclass(frozen=True, slots=True)
class Named:
    name: str
    origin: Origin = NOWHERE


@dataclass(frozen=True, slots=True)
class Names:
    """By hash; pools also by id."""

    services: Mapping[int, Named]
    pools: Mapping[int, str]
    backends: Mapping[int, Named]
    pool_ids: Mapping[int, int]  # id -> hash

    @classmethod
    def of(cls, configs: tuple[Config | None, Config], size: int, *states: State) -> "Names":
        services: dict[int, Named] = {}
        pools: dict[int, str] = {}
        backends: dict[int, Named] = {}
        for config in filter(None, configs):
            for service in config.services.values():
                for part in parts_of(service):
                    services[part_hash(part)] = Named(str(part), service.origin)
                    pools.update((pool_hash(key, size), str(key)) for key in part.pools)
            for pool in config.pools.values():
                for backend in pool.backends.values():
                    name = backend_hash(pool.name, backend.name)
                    backends[name] = Named(f"{pool.name}/{backend.name}", backend.origin)
        found = {entry.id: entry.name for state in states for entry in state.pools.values()}
        return cls(services, pools, backends, found)

    def service(self, number: int, *states: Mapping[int, abi.Service]) -> Named:
        entry = next(state[number] for state in reversed(states) if number in state)
        return self.services.get(entry.name, Named(f"#{ids.index(number)}"))

    def pool(self, number: int) -> str:
        return self.pools.get(self.pool_ids.get(number, 0), f"#{ids.index(number)}")

    def backend(self, name: int) -> Named:
        return self.backends.get(name, Named(f"#{name:016x}"))

    def belongs(self, backend: int, pool: int) -> bool:
        """Whether the configuration puts the backend into the pool."""
        return self.backend(backend).name.startswith(f"{self.pool(pool).partition('/')[0]}/")


def address_of(packed: bytes, port: int) -> str:
    address = ipaddress.ip_address(packed)
    return f"[{address}]:{port or '*'}" if address.version == IPV6 else f"{address}:{port or '*'}"


def proto_of(number: int) -> str:
    return {p.value: p.name.lower() for p in Proto}.get(number, str(number))


def frontend_text(entry: abi.Frontend) -> str:
    return (
        f"{address_of(address_bytes(entry.addr, entry.family), entry.port)}/{proto_of(entry.proto)}"
    )


def key_text(key: Any) -> str:  # noqa: ANN401 -- the key of any map
    if isinstance(key, int):
        return f"entry {key}"
    packed = key.addr.to_bytes(4) if isinstance(key, abi.Frontend4Key) else bytes(key.addr)
    return f"{address_of(packed, key.port)}/{proto_of(key.proto)}"
