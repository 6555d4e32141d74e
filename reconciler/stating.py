"""The status from what was read. Pure.

Nothing is looked up here and nothing is judged anew: what is attached, counted and
found comes as Facts, and two builds from the same Facts are equal.
"""

from collections.abc import Iterable
from typing import Any

from bpf import abi
from reconciler import drain
from reconciler.agreement import Peer
from reconciler.conditions import Condition
from reconciler.encode import TICK
from reconciler.facts import (
    Facts,
    Moment,
)
from reconciler.overrides import Override
from reconciler.serving import pools_of, services_of
from reconciler.status import (
    FORMAT,
    BlockedStatus,
    ConditionStatus,
    Content,
    CpuStatus,
    Drain,
    OverrideStatus,
    PeerStatus,
    RoleStatus,
    Status,
    VerdictStatus,
    VrrpStatus,
    plain,
)
from reconciler.vrrp import Vrrp


def build(facts: Facts) -> Status:
    totals = facts.backends.totals(facts.reading.backends)
    pools = pools_of(facts, totals)
    return Status(
        format_version=FORMAT,
        instance=facts.instance,
        at=Moment(facts.now),
        daemon=facts.daemon,
        attached=facts.attached,
        program=next(iter(facts.programs), None),
        previous_program=next(iter(facts.programs[1:]), None),
        applied=_applied(facts.meta),
        applying=facts.meta is not None and facts.meta.phase == abi.Phase.APPLYING,
        attempted=facts.attempt,
        conditions=tuple(map(_condition, facts.conditions)),
        services=services_of(facts, {pool.name: pool for pool in pools}),
        pools=pools,
        checker=facts.checker,
        live_flows=sum(facts.reading.live.values()),
        verdicts=_verdicts(facts),
        cpus=_cpus(facts),
        latency=facts.reading.latency,
        refused=facts.refused,
        blocked=tuple(BlockedStatus(b.service, b.why, b.message) for b in facts.blocked),
        drift=facts.drift,
        drains=tuple(_drains(facts)),
        overrides=tuple(map(_override, facts.overrides)),
        suspends=facts.suspends,
        history=facts.history,
        vrrp=_vrrp(facts.vrrp) if facts.vrrp else None,
        peers=tuple(_peer(one, facts.clock) for one in facts.peers),
    )


def _applied(meta: abi.Meta | None) -> Content | None:
    if meta is None or not meta.generation:
        return None
    commit = bytes(meta.commit).partition(b"\0")[0].decode(errors="replace")
    digest = bytes(meta.digest).hex()
    return Content(meta.generation, digest, commit, Moment(meta.applied_at))


def _condition(one: Condition) -> ConditionStatus:
    since = Moment(one.since)
    return ConditionStatus(one.type, one.status, one.reason, one.message, since, one.well)


def build_conditions(found: Iterable[Condition]) -> list[dict[str, Any]]:
    """As the document has them."""
    return [plain(_condition(one)) for one in found]


def _override(one: Override) -> OverrideStatus:
    times = Moment(one.since), Moment(one.until)
    return OverrideStatus(one.name, one.state, one.reason, one.by, *times)


# ---- beside this node


def _vrrp(found: Vrrp) -> VrrpStatus:
    roles = (
        RoleStatus(one.name, one.role, one.priority, Moment(one.since)) for one in found.instances
    )
    return VrrpStatus(found.running, tuple(roles))


def _peer(one: Peer, clock: float) -> PeerStatus:
    since = one.differing_since
    return PeerStatus(
        name=one.name,
        address=one.address,
        answers=one.identity is not None and not one.trouble,
        agrees=None if one.identity is None else not one.differences,
        differences=one.differences,
        differing_seconds=None if since is None else round(clock - since, 1),
        heard=None if one.heard is None else Moment(one.heard),
        trouble=one.trouble,
        digest=one.identity.digest if one.identity else "",
        commit=one.identity.commit if one.identity else "",
    )


# ---- counters


def _verdicts(facts: Facts) -> tuple[VerdictStatus, ...]:
    now, before = facts.reading.verdicts(), facts.earlier.verdicts()
    return tuple(
        VerdictStatus(
            verdict.name.lower(),
            now[verdict].packets,
            now[verdict].bytes,
            _per_second(facts, now[verdict].packets, before[verdict].packets if before else 0),
        )
        for verdict in abi.Verdict
        if now
    )


def _cpus(facts: Facts) -> tuple[CpuStatus, ...]:
    now = [sum(one.packets for one in each) for each in facts.reading.cpus]
    before = [sum(one.packets for one in each) for each in facts.earlier.cpus] or [0] * len(now)
    return tuple(
        CpuStatus(cpu, packets, _per_second(facts, packets, before[cpu]))
        for cpu, packets in enumerate(now)
    )


def _per_second(facts: Facts, now: int, before: int) -> float | None:
    return round(max(0, now - before) / facts.seconds, 1) if facts.seconds > 0 else None


def _drains(facts: Facts) -> Iterable[Drain]:
    """Draining backends, whether the file still names them or not."""
    for at, entry in sorted(facts.state.backends.items()):
        if entry.flags & abi.BackendFlag.NO_NEW and (entry.until or facts.reading.live.get(at)):
            account = facts.backends.accounts.get(at)
            ends = entry.until not in (0, drain.KEPT)
            left = max(0.0, round((entry.until - facts.tick) * TICK, 1)) if ends else None
            name = account.owner if account else f"#{entry.name:016x}"
            yield Drain(name, facts.reading.live.get(at, 0), left)
