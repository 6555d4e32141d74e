"""What the maps would say if: backends whose checks failed or passed. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from bpf import abi
from bpf.abi import BackendFlag, HealthState
from reconciler import ids
from reconciler.compile import Desired
from reconciler.dataplane import State
from reconciler.expect import Stage
from reconciler.look import Live, View, look
from reconciler.model import Config, Node
from reconciler.problems import did_you_mean
from reconciler.spare import with_health

Health = Mapping[int, abi.Health]
FORCED = {
    BackendFlag.FORCED_UP: "an override forces it up, which wins over its checks",
    BackendFlag.FORCED_DOWN: "it is forced down, by an override or `state: down`, which wins over its checks",
}


class NoSuchBackend(Exception):
    """A name that the configuration does not have."""


@dataclass(frozen=True, slots=True)
class Supposed:
    """Backends by name, whose checks are taken to have failed, or passed."""

    down: tuple[str, ...] = ()
    up: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.down or self.up)

    def states(self) -> Iterator[tuple[str, HealthState]]:
        yield from ((name, HealthState.DOWN) for name in self.down)
        yield from ((name, HealthState.UP) for name in self.up)


def view(
    config: Config, node: Node, live: Live, supposed: Supposed
) -> tuple[View, Health, list[str]]:
    """What the reconciler would leave in the maps then, the health there would be, and what to say of it."""
    first = look(config, node, live)
    health = with_states(first.desired, live.health, supposed)
    found = look(config, node, replace(live, health=health))
    return found, health, [*_refused(found), *_forced(found, supposed)]


def staged(stage: Stage, supposed: Supposed) -> tuple[State, Health]:
    health = with_states(stage.desired, stage.health, supposed)
    return with_health(stage.desired, health), health


def with_states(desired: Desired, health: Health, supposed: Supposed) -> Health:
    changed = dict(health)
    for name, state in supposed.states():
        number = _id(desired, name)
        changed[ids.index(number)] = abi.Health(id=number, state=state, ramp=255)
    return changed


def _id(desired: Desired, name: str) -> int:
    pool, _, backend = name.partition("/")
    number = desired.backends.get((pool, backend))
    if number is None:
        known = [f"{pool}/{backend}" for pool, backend in desired.backends]
        raise NoSuchBackend(f"no backend {name!r} in the maps; {did_you_mean(name, known)}")
    return number


def _refused(found: View) -> Iterator[str]:
    for finding in found.findings:
        yield f"guardrail: {finding}"


def _forced(found: View, supposed: Supposed) -> Iterator[str]:
    for name, _ in supposed.states():
        entry = found.held.backends[ids.index(_id(found.desired, name))]
        yield from (f"{name}: {said}" for flag, said in FORCED.items() if entry.flags & flag)
