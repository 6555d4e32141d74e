"""What the data plane calls services and pools. Pure.

A service that translates addresses works within a family, so it is one part for
each; a pool is one table for each way of filling it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from reconciler import table
from reconciler.ids import hashed
from reconciler.model import Address, Backend, Config, Forward, Node, Pool, Port, Service
from reconciler.problems import Mark, Problem
from reconciler.table import Fill


@dataclass(frozen=True, slots=True)
class PoolKey:
    """A pool as one way of filling sees it; translating services see one family of it."""

    pool: str
    fill: Fill
    family: int = 0  # 0: both

    def __hash__(self) -> int:
        """Without the way of filling: hashes of enums are slow, and keys are looked up often."""
        return hash((self.pool, self.family))

    def __str__(self) -> str:
        return f"{self.pool}/{self.fill.value}" + (f"/ipv{self.family}" if self.family else "")


@dataclass(frozen=True, slots=True)
class Part:
    """What the data plane calls a service: all of one, or one family of it."""

    service: Service
    frontends: tuple[tuple[Address, Port], ...]
    pools: tuple[PoolKey, ...]
    family: int = 0

    def __str__(self) -> str:
        return self.service.name + (f"/ipv{self.family}" if self.family else "")


def part_hash(part: Part) -> int:
    """How a part's entry is found again in the services map."""
    return hashed(f"service {part}")


def pool_hash(key: PoolKey, size: int) -> int:
    """Likewise in the pools map: another size is another pool."""
    return hashed(f"pool {key}/{size}")


def backend_hash(pool: str, name: str) -> int:
    return hashed(f"{pool}/{name}")


def parts_of(service: Service) -> Iterator[Part]:
    """Translation works within a family, so a translating service is one for each."""
    fill = table.fill_of(service.balance.method)
    families = (4, 6) if service.forward.translates else (0,)
    for family in families:
        frontends = tuple(
            (address, port)
            for address in service.addresses
            for port in service.ports
            if family in (0, address.version)
        )
        if frontends:
            pools = tuple(PoolKey(name, fill, family) for name in service.pools)
            yield Part(service, frontends, pools, family)


def members(pool: Pool, family: int) -> list[Backend]:
    """The backends that slots may name, sorted by name."""
    return [
        backend
        for _, backend in sorted(pool.backends.items())
        if backend.takes_new and family in (0, backend.address.version)
    ]


def node_problems(config: Config, node: Node) -> list[Problem]:
    """What this configuration needs and this node's file does not give."""
    found = []
    for service in config.services.values():
        for family, setting in sorted(_sources_needed(config, service)):
            given = node.nat_source if setting == "nat-source" else node.tunnel_source
            if family not in given:
                message = f"services[{service.name}]: {service.forward} needs the node's {setting}"
                hint = f"add {setting}: {{ipv{family}: ...}} to node.yaml"
                found.append(
                    Problem(Mark(service.origin.line, 1), f"{message} of IPv{family}", hint)
                )
    return found


def _sources_needed(config: Config, service: Service) -> set[tuple[int, str]]:
    if service.forward is Forward.FULLNAT:
        return {(address.version, "nat-source") for address in service.addresses}
    if not service.forward.tunnels:
        return set()
    return {
        (backend.address.version, "tunnel-source")
        for name in service.pools
        for backend in config.pools[name].backends.values()
    }
