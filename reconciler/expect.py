"""The `tests:` of lb.yaml: what packets meet, and what the file says that they should. Pure.

They are about the configuration: every backend counts as healthy and reachable,
there are no flows and no overrides. So a file passes or fails alike on every node.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address

from bpf import abi
from reconciler import choice, ids
from reconciler.compile import Desired, Surroundings, compile_config
from reconciler.dataplane import State
from reconciler.model import Address, Config, Expectation, Node, Packet
from reconciler.model import Test as Trial
from reconciler.pieces import NextHop
from reconciler.problems import Mark, Problem
from reconciler.spare import with_health

NOT_OURS, NO_BACKEND, FORWARDED = "not_ours", "no_backend", "forwarded"
ROOM = dict.fromkeys(("frontends", "services", "pools", "backends"), 1 << 19)
HERE = 1  # an interface that there is everywhere
HOP = NextHop(HERE, bytes(6), bytes(6), 65535)
# Where node.yaml is not known, or lacks what only matters on the wire.
STAND_INS: Mapping[int, Address] = {4: ip_address("127.0.0.2"), 6: ip_address("::2")}


@dataclass(frozen=True, slots=True)
class Stage:
    """What the maps would say of this configuration, had they been empty."""

    desired: Desired
    state: State
    health: Mapping[int, abi.Health]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a packet; names are empty where there is none."""

    verdict: str
    service: str = ""
    pool: str = ""
    backend: str = ""

    def __str__(self) -> str:
        if self.verdict == NOT_OURS:
            return "no service takes it"
        where = f"backend {self.backend}" if self.backend else self.verdict
        return f"service {self.service}, {where}"


def complete(node: Node) -> Node:
    """The node with what a file may need of it, where only its absence would matter."""
    return replace(
        node,
        tunnel_source={**STAND_INS, **node.tunnel_source},
        nat_source={**STAND_INS, **node.nat_source},
    )


def stage(config: Config, node: Node) -> Stage:
    node = complete(node)
    addresses = {one.address for pool in config.pools.values() for one in pool.backends.values()}
    around = Surroundings(dict.fromkeys(addresses, HOP))
    desired = compile_config(config, node, State(), around, ROOM)
    health = {
        ids.index(number): abi.Health(id=number, state=abi.HealthState.UP, ramp=255)
        for number in desired.backends.values()
    }
    return Stage(desired, with_health(desired, health), health)


def by_model(staged: Stage, packet: Packet) -> Outcome:
    """What the plain account of the program says."""
    service = choice.service_of(staged.state, packet)
    if service is None:
        return Outcome(NOT_OURS)
    backend = choice.backend_of(staged.state, staged.health, service, packet)
    verdict = FORWARDED if backend is not None else NO_BACKEND
    return named(staged, packet, verdict, backend.id if backend is not None else 0)


def named(staged: Stage, packet: Packet, verdict: str, backend: int) -> Outcome:
    """The outcome in the words of the file."""
    service = choice.service_of(staged.state, packet)
    part = staged.desired.parts[service.id].service.name if service is not None else ""
    names = {number: name for name, number in staged.desired.backends.items()}
    pool, name = names.get(backend, ("", ""))
    return Outcome(verdict, part, pool, f"{pool}/{name}" if name else "")


def failures(config: Config, outcomes: Sequence[Outcome]) -> list[Problem]:
    """Where the file says otherwise."""
    return [
        problem
        for trial, outcome in zip(config.tests, outcomes, strict=True)
        for problem in _problems(config, trial, outcome)
    ]


def _problems(config: Config, trial: Trial, outcome: Outcome) -> list[Problem]:
    mark = Mark(*trial.at)
    where = f"tests[{trial.name}]"
    if trial.expect.backend and outcome.service:
        method = config.services[outcome.service].balance.method
        if not method.hashes:
            message = f"{where}: service {outcome.service} balances by {method}"
            return [Problem(mark, message, "which backend it takes is not said: expect a pool")]
    wrong = _differences(trial.expect, outcome)
    return [Problem(mark, f"{where}: expected {'; '.join(wrong)}; got {outcome}")] if wrong else []


def _differences(expect: Expectation, outcome: Outcome) -> list[str]:
    said = (
        ("service", expect.service, outcome.service),
        ("pool", expect.pool, outcome.pool),
        ("backend", expect.backend, outcome.backend),
        ("verdict", expect.verdict, outcome.verdict),
    )
    return [f"{what} {wanted}" for what, wanted, got in said if wanted and wanted != got]
