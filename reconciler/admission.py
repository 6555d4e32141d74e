"""Which services can be applied, and what stands in for those that cannot. Pure.

One service that does not fit, or that the kernel refused, is no reason to keep the
others waiting. It stays what it is in the maps, or absent; the file is accepted all
the same. Nothing is ever removed because something else could not be written.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial

from reconciler import capacity
from reconciler.compile import Desired, Surroundings, compile_config
from reconciler.dataplane import State
from reconciler.ids import NoRoom
from reconciler.memo import Memo
from reconciler.model import Address, Config, Node, Port, Service
from reconciler.overrides import Overrides
from reconciler.overrides import applied as with_overrides
from reconciler.parts import part_hash, parts_of

NOTHING = Config({}, {})


class Why(StrEnum):
    NO_ROOM = "NoRoom"
    REFUSED = "KernelError"
    WAITS = "WaitsForAnother"


@dataclass(frozen=True, slots=True)
class Blocked:
    """A service that is not what the file says, and why."""

    service: str
    why: Why
    message: str
    frozen: bool = False  # not even what it was can be written: its entries stay as they are

    def __str__(self) -> str:
        return f"services[{self.service}]: {self.message}"


Blocks = Mapping[str, Blocked]


@dataclass(frozen=True, slots=True)
class Admission:
    config: Config  # the file, with what is in the maps for services that are blocked
    desired: Desired
    blocked: Blocks


def admit(
    config: Config,
    standing: Config | None,
    failed: Blocks,
    node: Node,
    actual: State,
    around: Surroundings,
    room: Mapping[str, int],
    now: int,
    memo: Memo | None = None,
    overrides: Overrides = (),
) -> Admission:
    """As much of `config` as can be; `standing` is what the maps were made from."""
    blocked = failed
    forced = partial(with_overrides, overrides=overrides)
    while True:
        mixed, blocked = mix(config, standing or NOTHING, blocked)
        try:
            desired = compile_config(mixed, node, actual, around, room, now, memo, forced)
        except NoRoom as error:
            want = capacity.Want(config, mixed, standing or NOTHING, node)
            more = capacity.beyond(want, actual, room, error)
            blocked = _further(blocked, more)
            if not more:
                raise
            continue
        return Admission(mixed, desired, blocked)


def _further(blocked: Blocks, more: Mapping[str, str]) -> Blocks:
    """Whoever is blocked already, and still does not fit, stays as it is."""
    return {
        **blocked,
        **{
            name: Blocked(name, Why.NO_ROOM, message, frozen=name in blocked)
            for name, message in more.items()
        },
    }


def mix(config: Config, standing: Config, blocked: Blocks) -> tuple[Config, Blocks]:
    """The file with what stands for the blocked ones, and who else has to wait for these."""
    if not blocked:
        return config, blocked
    while True:
        kept = {
            name: standing.services[name]
            for name, why in blocked.items()
            if name in standing.services and not why.frozen
        }
        new = {name: one for name, one in config.services.items() if name not in blocked}
        gone = {name: one for name, one in standing.services.items() if name not in blocked}
        waiting = {
            **dict(_waiting(config, standing, kept, new)),
            **dict(_covering(gone, kept, new)),
        }
        if not waiting:
            break
        blocked = {**blocked, **waiting}
    theirs = {pool for service in new.values() for pool in service.pools}
    old = {pool for service in kept.values() for pool in service.pools} - theirs
    pools = {**config.pools, **{pool: standing.pools[pool] for pool in old}}
    return replace(config, services={**new, **kept}, pools=pools), blocked


def _waiting(
    config: Config, standing: Config, kept: Mapping[str, Service], new: Mapping[str, Service]
) -> Iterator[tuple[str, Blocked]]:
    """Those who would take from a service that stays what it still has."""
    fronts = {front: name for name, service in kept.items() for front in _fronts(service)}
    left = {
        pool: name
        for name, service in kept.items()
        for pool in service.pools
        if config.pools.get(pool) != standing.pools[pool]
        and not _may_see(config.services.get(name), service, pool)
    }
    for name, service in new.items():
        for front in filter(fronts.__contains__, _fronts(service)):
            said = f"{front[0]} {front[1]} still belongs to services[{fronts[front]}]"
            yield name, Blocked(name, Why.WAITS, f"{said}, which cannot be applied")
        for pool in filter(left.__contains__, service.pools):
            said = f"pools[{pool}] is still used by services[{left[pool]}]"
            yield name, Blocked(name, Why.WAITS, f"{said}, which cannot be applied")


def _covering(
    gone: Mapping[str, Service], kept: Mapping[str, Service], new: Mapping[str, Service]
) -> Iterator[tuple[str, Blocked]]:
    """Those who would let go of a port from under an any-port service that stays, which never was to have it."""
    wide = {
        (address, port.proto): name
        for name, service in kept.items()
        for address, port in _fronts(service)
        if not port.number
    }
    covered = {front for service in new.values() for front in _fronts(service)}
    for name, service in gone.items():
        for address, port in _fronts(service):
            owner = wide.get((address, port.proto))
            if port.number and owner and (address, port) not in covered:
                said = f"{address} {port} would fall to services[{owner}]"
                yield name, Blocked(name, Why.WAITS, f"{said}, which cannot be applied")


def _fronts(service: Service) -> Iterator[tuple[Address, Port]]:
    return ((address, port) for address in service.addresses for port in service.ports)


def _may_see(wanted: Service | None, kept: Service, pool: str) -> bool:
    """Whether packets of a service that stays what it was may meet what a pool is to be."""
    if wanted is None or pool not in wanted.pools:
        return False
    return (wanted.addresses, wanted.ports, wanted.forward) == (
        kept.addresses,
        kept.ports,
        kept.forward,
    )


def frozen(
    blocked: Blocks, actual: State, config: Config, standing: Config | None, *, sure: bool
) -> set[int]:
    """Where services are in the maps that stay just as they are.

    Unless one is `sure` that the maps were made from what stands, that also takes in
    what is served and not known from there.
    """
    known = standing or NOTHING
    names = {
        name for name, why in blocked.items() if why.frozen or not (sure or name in known.services)
    }
    hashes = {
        part_hash(part)
        for each in (config, known)
        for name in names & each.services.keys()
        for part in parts_of(each.services[name])
    }
    served = _served(actual)
    return {
        at for at, entry in actual.services.items() if entry.name in hashes and entry.id in served
    }


def _served(state: State) -> set[int]:
    """Services that packets find; others are what an interrupted apply left."""
    keys = {*state.frontends4.values(), *state.frontends6.values()}
    return {entry.service for entry in state.frontends.values() if entry.id in keys}
