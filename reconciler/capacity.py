"""What the maps have room for, service by service. Pure.

Whoever is served already keeps that place, and comes before who is new; among equals
the name decides, not the order of the file.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

from bpf import abi
from reconciler import pieces
from reconciler.compile import by_name, known_backends, known_frontends
from reconciler.dataplane import State, Where
from reconciler.encode import FrontendKey
from reconciler.ids import LARGER, NoRoom
from reconciler.model import Config, Node, Service
from reconciler.parts import part_hash, parts_of, pool_hash
from reconciler.problems import Mark, Problem

# Which of the node's sizes limits what; index 0 of an array is nobody's.
SETTINGS = {
    Where.SERVICES: "services",
    Where.POOLS: "pools",
    Where.BACKENDS: "backends",
    Where.FRONTENDS: "frontends",
    Where.FRONTENDS4: "frontends",
    Where.FRONTENDS6: "frontends",
    Where.REPLIES4: "backends",
    Where.REPLIES6: "backends",
}
ARRAYS = (Where.SERVICES, Where.POOLS, Where.BACKENDS, Where.FRONTENDS)
Needs = Mapping[Where, set[Hashable]]


@dataclass(frozen=True, slots=True)
class Want:
    """What is wanted of the maps."""

    config: Config  # all of it: how large they would have to be
    mixed: Config  # what is tried now
    standing: Config  # what is in the maps
    node: Node

    def order(self) -> list[Service]:
        """What is in the maps already has its place; growing comes before what is new."""
        served = self.standing.services
        return sorted(
            self.mixed.services.values(), key=lambda one: (one.name not in served, one.name)
        )


def beyond(want: Want, actual: State, room: Mapping[str, int], error: NoRoom) -> dict[str, str]:
    """Services that do not fit, and what each would need."""
    free = {
        where: room[setting] - len(actual[where]) - (where in ARRAYS)
        for where, setting in SETTINGS.items()
    }
    held = _held(actual)
    found: dict[str, str] = {}
    for service in want.order():
        new = {where: need - held[where] for where, need in _needs(want.mixed, want.node, service)}
        short = next((where for where, names in new.items() if len(names) > free[where]), None)
        if short is not None:
            found[service.name] = _said(want, room, short, len(new[short]))
            continue
        for where, names in new.items():
            free[where] -= len(names)
            held[where] |= names
    return found or _lacking(want, error)


def _lacking(want: Want, error: NoRoom) -> dict[str, str]:
    """Everything has a place, but not while what it replaces has one too."""
    return {
        service.name: f"{error} (or wait: what is replaced has a place until then)"
        for service in want.order()
        if any(need & error.lacking for _, need in _needs(want.mixed, want.node, service))
    }


def _held(actual: State) -> dict[Where, set[Hashable]]:
    return {
        Where.SERVICES: set(by_name(actual.services)),
        Where.POOLS: set(by_name(actual.pools)),
        Where.BACKENDS: set(known_backends(actual)),
        Where.FRONTENDS: set(known_frontends(actual)),
        Where.FRONTENDS4: set(actual.frontends4),
        Where.FRONTENDS6: set(actual.frontends6),
        Where.REPLIES4: set(actual.replies4),
        Where.REPLIES6: set(actual.replies6),
    }


def _said(want: Want, room: Mapping[str, int], where: Where, more: int) -> str:
    setting = SETTINGS[where]
    size = needed(want.config, want.node)[setting]
    if size <= room[setting]:
        return (
            f"{more} more {setting} do not fit until what they replace is gone:"
            f" sizes.{setting} in node.yaml is {room[setting]}"
        )
    return (
        f"{more} more {setting} do not fit. The whole file needs sizes.{setting} of at least"
        f" {size} in node.yaml, which says {room[setting]}:"
        f" raise it; {LARGER}"
    )


def needed(config: Config, node: Node) -> dict[str, int]:
    """The least sizes that hold a configuration."""
    together: dict[Where, set[Hashable]] = {where: set() for where in SETTINGS}
    for service in config.services.values():
        for where, need in _needs(config, node, service):
            together[where] |= need
    sizes = dict.fromkeys(SETTINGS.values(), 0)
    for where, names in together.items():
        setting = SETTINGS[where]
        sizes[setting] = max(sizes[setting], len(names) + (where in ARRAYS))
    return sizes


def problems(config: Config, node: Node, room: Mapping[str, int]) -> list[Problem]:
    """Services that do not fit into empty maps of this node."""
    want = Want(config, config, Config({}, {}), node)
    short = [name for name, size in needed(config, node).items() if size > room[name]]
    if not short:
        return []
    nothing = NoRoom(short[0], 0, 0)
    return [
        Problem(Mark(config.services[name].origin.line, 1), f"services[{name}]: {message}")
        for name, message in beyond(want, State(), room, nothing).items()
    ]


def _needs(config: Config, node: Node, service: Service) -> Iterator[tuple[Where, set[Hashable]]]:
    """Names by which entries are recognised, and keys."""
    parts = list(parts_of(service))
    pools = {key for part in parts for key in part.pools}
    keys: set[FrontendKey] = set()
    replies: set[FrontendKey] = set()
    for part in parts:
        own = [config.pools[key.pool] for key in part.pools]
        nobody = [0] * len(part.frontends)
        keys |= pieces.marks(part).keys() | pieces.keys(part, nobody).keys()
        replies |= pieces.answers(part, nobody, own, [defaultdict(int)] * len(own)).keys()
    yield Where.SERVICES, set(map(part_hash, parts))
    yield Where.POOLS, {pool_hash(key, node.table_size) for key in pools}
    yield (
        Where.BACKENDS,
        {n for name in service.pools for n in pieces.roll(config.pools[name]).names},
    )
    yield Where.FRONTENDS, {name for part in parts for name in pieces.frontend_names(part)}
    yield from _split(keys, Where.FRONTENDS4, Where.FRONTENDS6)
    yield from _split(replies, Where.REPLIES4, Where.REPLIES6)


def _split(
    keys: set[FrontendKey], four: Where, six: Where
) -> Iterator[tuple[Where, set[Hashable]]]:
    yield four, {key for key in keys if isinstance(key, abi.Frontend4Key)}
    yield six, {key for key in keys if isinstance(key, abi.Frontend6Key)}
