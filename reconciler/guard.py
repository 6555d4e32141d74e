"""How much change is too much. Pure.

Refuses removals only: what is refused is put back into the desired state, from
what the maps say, so that everything else of the change can still be applied and
the plan's laws hold for it as for any other.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bpf import abi
from reconciler import ids
from reconciler.dataplane import State
from reconciler.drain import NO_NEW
from reconciler.model import Guardrails

OVERRIDE = "--allow-removals"


@dataclass(frozen=True, slots=True)
class Finding:
    """One guardrail: how much would be removed, and whether that is too much."""

    what: str
    removed: int
    present: int
    limit: int  # percent
    refused: bool
    setting: str

    def __str__(self) -> str:
        share = f"{self.removed} of {self.present} {self.what} would be removed"
        if not self.refused:
            return f"{share}: ok, the limit is {self.limit} %"
        return (
            f"{share}: refused, the limit is {self.limit} %."
            f" They stay as they are. To remove them: {OVERRIDE}, or raise guardrails.{self.setting}"
        )


def guard(desired: State, actual: State, limits: Guardrails) -> tuple[State, list[Finding]]:
    """The desired state without the removals that go too far, and what was found."""
    if limits.allow_empty and not desired.services:
        limits = Guardrails(removed_services=100, removed_backends=100, allow_empty=True)
    services = _services(desired, actual, limits)
    backends = _backends(desired, actual, limits)
    held = desired
    if services.refused:
        held = with_services(held, actual, _gone(held.services, actual.services))
    if backends.refused:
        held = _with_backends(held, actual)
    return held, [finding for finding in (services, backends) if finding.removed]


def _services(desired: State, actual: State, limits: Guardrails) -> Finding:
    gone = _gone(desired.services, actual.services)
    emptied = bool(actual.services) and not desired.services and not limits.allow_empty
    setting = "allow-empty" if emptied else "removed-services"
    limit = 0 if emptied else limits.removed_services
    refused = emptied or _too_many(len(gone), len(actual.services), limit)
    return Finding("services", len(gone), len(actual.services), limit, refused, setting)


def _backends(desired: State, actual: State, limits: Guardrails) -> Finding:
    serving = _serving(actual)
    gone = _gone(desired.backends, serving)
    limit = limits.removed_backends
    refused = _too_many(len(gone), len(serving), limit)
    return Finding("backends", len(gone), len(serving), limit, refused, "removed-backends")


def _serving(actual: State) -> Mapping[int, abi.Backend]:
    """Those that take new flows: to take away one that drains takes nothing from anybody."""
    return _taken(actual.backends, lambda entry: not entry.flags & NO_NEW)


def _too_many(gone: int, present: int, limit: int) -> bool:
    return gone > 1 and gone * 100 > limit * present


def _gone(desired: Mapping[int, Any], actual: Mapping[int, Any]) -> set[int]:
    """By name: what merely gets another id is replaced, not removed."""
    other = {at: entry for at, entry in actual.items() if desired.get(at) is not entry}
    if not other:
        return set()
    names = {entry.name for entry in desired.values()}
    return {at for at, entry in other.items() if entry.name not in names}


def with_services(desired: State, actual: State, gone: set[int]) -> State:
    """The services there that would go stay, with all that they reach."""
    if not gone:
        return desired
    numbers = {actual.services[at].id for at in gone}
    frontends = _taken(actual.frontends, lambda entry: entry.service in numbers)
    pools = {
        ids.index(number)
        for at in gone
        for number in actual.services[at].pools[: actual.services[at].pool_count]
    }
    return _joined(desired, actual, {at: actual.services[at] for at in gone}, frontends, pools)


def _with_backends(desired: State, actual: State) -> State:
    """Pools that would lose backends stay as they are, and so do these."""
    gone = _gone(desired.backends, _serving(actual))
    numbers = {actual.backends[at].id for at in gone}
    pools = {
        at
        for at, slots in actual.tables.items()
        if at in desired.pools and not numbers.isdisjoint(slots)
    }
    held = {ids.index(number) for at in pools for number in set(actual.tables[at])} | gone
    return _replaced(
        desired,
        tables={**desired.tables, **_picked(actual.tables, pools)},
        spares={**desired.spares, **_picked(actual.spares, pools)},
        backends={**_picked(actual.backends, held), **desired.backends},
        probes=_probes(desired, actual, _picked(actual.backends, held)),
    )


def _joined(
    desired: State,
    actual: State,
    services: Mapping[int, abi.Service],
    frontends: Mapping[int, abi.Frontend],
    pools: Iterable[int],
) -> State:
    """The desired state and these parts of the actual one, with the backends in their tables."""
    pools = set(pools)
    held = {at for pool in pools for at in map(ids.index, set(actual.tables.get(pool, ())))}
    backends = {at: actual.backends[at] for at in held if at in actual.backends}
    numbers = {entry.id for entry in frontends.values()}
    return _replaced(
        desired,
        services={**desired.services, **services},
        frontends={**desired.frontends, **_absent(frontends, desired.frontends)},
        pools={**_picked(actual.pools, pools), **desired.pools},
        tables={**_picked(actual.tables, pools), **desired.tables},
        spares={**_picked(actual.spares, pools), **desired.spares},
        backends={**desired.backends, **_absent(backends, desired.backends)},
        probes=_probes(desired, actual, backends),
        frontends4=_keys(desired.frontends4, actual.frontends4, numbers),
        frontends6=_keys(desired.frontends6, actual.frontends6, numbers),
        replies4=_replies(desired.replies4, actual.replies4),
        replies6=_replies(desired.replies6, actual.replies6),
        prefilter=_kinds(desired.prefilter, actual.prefilter),
    )


def _keys(
    desired: Mapping[Any, int], actual: Mapping[Any, int], numbers: set[int]
) -> dict[Any, int]:
    """Keys of the kept frontends, and all markers."""
    marks = (abi.FrontendMark.MARK, abi.FrontendMark.ECHO)
    kept = {key: value for key, value in actual.items() if value in numbers or value in marks}
    return {**desired, **_absent(kept, desired)} if numbers else dict(desired)


def _replies(
    desired: Mapping[Any, abi.Reply], actual: Mapping[Any, abi.Reply]
) -> dict[Any, abi.Reply]:
    """What no longer applies names a frontend or backend that is gone: it derives nothing."""
    return {**actual, **desired} if len(desired) else dict(actual)


def _probes(
    desired: State, actual: State, backends: Mapping[int, abi.Backend]
) -> Mapping[int, abi.Probe]:
    """Checks of backends that are kept go on by the way that they went."""
    if not actual.probes:
        return desired.probes
    addresses = {(entry.family, bytes(entry.addr)) for entry in backends.values()}
    kept = _taken(actual.probes, lambda one: (one.family, bytes(one.backend)) in addresses)
    return {**kept, **desired.probes}


def _kinds(desired: Mapping[int, int], actual: Mapping[int, int]) -> dict[int, int]:
    both = desired.keys() | actual.keys()
    return {at: desired.get(at, 0) | actual.get(at, 0) for at in both}


def _picked(entries: Mapping[int, Any], keys: set[int]) -> dict[int, Any]:
    return {at: entry for at, entry in entries.items() if at in keys}


def _taken(entries: Mapping[int, Any], wanted: Any) -> dict[int, Any]:  # noqa: ANN401
    return {at: entry for at, entry in entries.items() if wanted(entry)}


def _absent(entries: Mapping[Any, Any], present: Mapping[Any, Any]) -> dict[Any, Any]:
    return {key: value for key, value in entries.items() if key not in present}


def _replaced(state: State, **changes: Any) -> State:  # noqa: ANN401 -- fields of State
    fields = {name: getattr(state, name) for name in State.__dataclass_fields__}
    return State(**{**fields, **changes})
