"""The ways that checks with `via: service` take to a backend: as clients of each service do. Pure.

A way is a service's address and a port; the backend's family decides which addresses
there are. Every one of them is probed, and the backend is up if all of them answer.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from bpf import abi
from reconciler import ids
from reconciler.model import (
    Address,
    Backend,
    Check,
    CheckType,
    Config,
    Forward,
    Pool,
    Proto,
    Service,
)

Name = tuple[bytes, bytes, int]  # backend's address, service's address, abi.Forward
NUMBERS = 1 << abi.ProbeLayout.NUMBER_BITS
UDP = (CheckType.UDP, CheckType.DNS)


@dataclass(frozen=True, slots=True)
class Way:
    """What a probe is sent to, and how clients' packets get there."""

    service: str
    address: Address
    port: int
    forward: Forward


@dataclass(frozen=True, slots=True)
class Misfit:
    """Why a pool cannot be checked so: about a service, or one backend of the pool, or its check."""

    message: str
    hint: str
    service: str = ""
    backend: tuple[str, str] = ("", "")
    check: str = ""


def proto_of(check: Check) -> Proto:
    return Proto.UDP if check.type in UDP else Proto.TCP


def ways(services: Iterable[Service], pool: Pool, backend: Backend) -> tuple[Way, ...]:
    """Of a backend, each once: services may share an address."""
    found: dict[tuple[Address, int, Forward], Way] = {}
    for service in services:
        port = _port(service, pool, backend)
        for address in service.addresses:
            if port and address.version == backend.address.version:
                key = (address, port, service.forward)
                found.setdefault(key, Way(service.name, address, port, service.forward))
    return tuple(found.values())


def all_ways(config: Config) -> dict[tuple[str, str], tuple[Way, ...]]:
    """By pool and backend; of pools that are not checked so, nothing."""
    users = _users(config.services.values(), config.pools)
    return {
        (name, backend.name): ways(services, config.pools[name], backend)
        for name, services in users.items()
        for backend in config.pools[name].backends.values()
    }


def name_of(backend: Address, way: Way) -> Name:
    return backend.packed, way.address.packed, abi.Forward[way.forward.name]


def marks(names: Iterable[Name], known: Mapping[Name, int]) -> dict[Name, int]:
    """A mark for each: the one that it has, else one that says nothing now.

    Where the search for one begins is a hash, so that a mark that was let go of is hardly ever
    another's by the time that the last socket with it is gone.
    """
    taken = set(known.values())
    found: dict[Name, int] = {}
    for name in names:
        number = known.get(name) or _free(name, taken)
        taken.add(number)
        found[name] = number
    return found


def _free(name: Name, taken: set[int]) -> int:
    start = ids.hashed(f"probe {name[0].hex()} {name[1].hex()} {name[2]}")
    numbers = (_mark((start + step) % NUMBERS) for step in range(NUMBERS))
    return next(mark for mark in numbers if mark not in taken)


def _mark(number: int) -> int:
    return abi.ProbeLayout.MARK << abi.ProbeLayout.NUMBER_BITS | number


def _port(service: Service, pool: Pool, backend: Backend) -> int:
    """The check's own, else the service's first of its protocol; 0: none."""
    if pool.check is None or pool.check.port:
        return pool.check.port or 0 if pool.check else 0
    ports = _ports(service, pool.check)
    return (ports[0] or backend.port) if ports else 0


def _ports(service: Service, check: Check) -> list[int]:
    return [port.number for port in service.ports if port.proto is proto_of(check)]


def _users(services: Iterable[Service], pools: Mapping[str, Pool]) -> dict[str, list[Service]]:
    """Who sends clients to the pools that are checked so, in the order of names."""
    found: dict[str, list[Service]] = {}
    for service in sorted(services, key=lambda one: one.name):
        for name in dict.fromkeys(service.pools):
            check = pools[name].check if name in pools else None
            if check and check.via_service:
                found.setdefault(name, []).append(service)
    return found


# ---- what cannot be


def misfits(services: Mapping[str, Service], pools: Mapping[str, Pool]) -> Iterator[Misfit]:
    count: dict[str, int] = {}
    for name, users in _users(services.values(), pools).items():
        pool = pools[name]
        for service in users:
            yield from _misfits(service, pool)
        if pool.check:
            several = sum(len(ways(users, pool, b)) for b in pool.backends.values())
            count[pool.check.name] = count.get(pool.check.name, 0) + several
    if sum(count.values()) > abi.ProbeLayout.LIMIT:
        message = f"{sum(count.values())} addresses to probe, more than {abi.ProbeLayout.LIMIT:d}"
        hint = "leave `via: service` to the pools with the fewest services and addresses"
        yield Misfit(message, hint, check=max(count, key=lambda name: count[name]))


def _misfits(service: Service, pool: Pool) -> Iterator[Misfit]:
    check = pool.check
    if check is None:
        return
    if service.forward.translates:
        message = f"forwards by {service.forward} to pool {pool.name!r}, whose check is via service"
        hint = "its backends answer on their own address: use a check without `via`"
        yield Misfit(message, hint, service=service.name)
        return
    if not check.port and not _ports(service, check):
        proto = proto_of(check).name.lower()
        message = f"has no {proto} port for check {check.name!r} of pool {pool.name!r}"
        yield Misfit(message, "give the check a `port`", service=service.name)
        return
    yield from _unreachable(service, pool)


def _unreachable(service: Service, pool: Pool) -> Iterator[Misfit]:
    families = {address.version for address in service.addresses}
    for backend in pool.backends.values():
        version, where = backend.address.version, (pool.name, backend.name)
        if version not in families:
            message = f"service {service.name!r} has no IPv{version} address to check it by"
            hint = (
                f"add one, or put IPv{version} backends into a pool that is checked without `via`"
            )
            yield Misfit(message, hint, backend=where)
        elif not _port(service, pool, backend):
            message = f"service {service.name!r} is for any port: none to check"
            yield Misfit(message, "give the backend or the check a port", backend=where)
