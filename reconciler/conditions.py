"""What holds of a running reconciler, each said as a condition with a reason and since when. Pure.

Two questions are never mixed: whether the maps say what the file says, and whether
the backends are well. Nothing here acts on an answer.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from reconciler.agreement import Peer

PARTLY = "PartiallyApplied"
STALE = 15.0  # seconds: healthcheck reports every five


class Holds(StrEnum):
    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Type(StrEnum):
    READY = "Ready"  # the maps forward what a file says, on every interface that is named
    CONFIG_VALID = "ConfigValid"  # the newest content of the source was accepted
    SOURCE_FRESH = "SourceFresh"  # the source can be read
    IN_SYNC = "InSync"  # the maps are what the accepted configuration says
    DATAPLANE_HEALTHY = "DataplaneHealthy"  # the program is attached wherever it should be
    PROGRAM_CURRENT = "ProgramCurrent"  # the program is the one that this version comes with
    HEALTH_FRESH = "HealthFresh"  # healthcheck runs and reports
    STALLED = "Stalled"  # something else writes the maps, and is not fought any more
    SUSPENDED = "Suspended"  # the source is not followed: somebody said so
    OVERRIDDEN = "Overridden"  # backends are forced up or down: somebody said so
    PEERS_AGREE = "PeersAgree"  # the peers forward what this node forwards
    PEERS_ANSWER = "PeersAnswer"  # they can be asked


# Conditions that are to be False; all others are to be True.
ALARMS = frozenset({Type.STALLED, Type.SUSPENDED, Type.OVERRIDDEN})


@dataclass(frozen=True, slots=True)
class Condition:
    type: Type
    status: Holds
    reason: str
    message: str = ""
    since: float = 0.0  # seconds since the epoch

    @property
    def well(self) -> bool:
        return self.status is (Holds.FALSE if self.type in ALARMS else Holds.TRUE)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that did not work, in one word and in a sentence."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Observed:
    """What the loop saw last."""

    now: float
    converged: bool = False  # a pass of this process ended with an empty plan
    source: Trouble | None = None
    rejected: Trouble | None = None
    apply: Trouble | None = None
    refused: tuple[str, ...] = ()  # guardrails
    blocked: tuple[str, ...] = ()  # services that could not be applied
    interfaces: tuple[str, ...] = ()  # as configured
    attached: tuple[str, ...] = ()
    outdated: Trouble | None = None  # what runs is not this version's program
    checked: bool = False  # whether any backend has a check
    reported_at: float | None = None  # of health.json
    checker: tuple[str, ...] = ()  # what hinders healthcheck, as it says
    stalled: Trouble | None = None
    left: int = 0  # entries that others changed and that are not repaired
    suspended: Trouble | None = None
    overrides: tuple[str, ...] = ()
    peers: tuple[Peer, ...] = ()
    clock: float = 0.0  # that peers' times are of


def judge(seen: Observed) -> tuple[Condition, ...]:
    """Every condition, in the order of `Type`."""
    sync = _in_sync(seen)
    dataplane = _dataplane(seen)
    return (
        _ready(seen, sync, dataplane),
        _trouble(Type.CONFIG_VALID, seen.rejected, "Accepted"),
        _trouble(Type.SOURCE_FRESH, seen.source, "Readable"),
        sync,
        dataplane,
        _trouble(Type.PROGRAM_CURRENT, seen.outdated, "Current"),
        _health(seen),
        _alarm(Type.STALLED, seen.stalled, "NoFight"),
        _alarm(Type.SUSPENDED, seen.suspended, "Following"),
        _overridden(seen),
        _agree(seen),
        _answer(seen),
    )


def follow(
    before: Iterable[Condition], judged: Iterable[Condition], now: float
) -> tuple[Condition, ...]:
    """With the time since when each has had its status."""
    known: Mapping[Type, Condition] = {condition.type: condition for condition in before}
    return tuple(_since(known.get(condition.type), condition, now) for condition in judged)


def _since(before: Condition | None, now_is: Condition, now: float) -> Condition:
    same = before is not None and before.status is now_is.status
    return replace(now_is, since=before.since if before and same else now)


def _ready(seen: Observed, sync: Condition, dataplane: Condition) -> Condition:
    if not seen.converged:
        reason = sync.reason if sync.status is Holds.FALSE else "NoPassYet"
        return Condition(Type.READY, Holds.FALSE, reason, sync.message)
    if dataplane.status is not Holds.TRUE:
        return Condition(Type.READY, Holds.FALSE, dataplane.reason, dataplane.message)
    if seen.blocked:  # all the others are forwarded: no reason to leave this node
        message = f"not as the file says: {'; '.join(seen.blocked)}"
        return Condition(Type.READY, Holds.TRUE, PARTLY, message)
    return Condition(Type.READY, Holds.TRUE, "Forwarding")


def _in_sync(seen: Observed) -> Condition:
    if seen.apply is not None:
        return Condition(Type.IN_SYNC, Holds.FALSE, seen.apply.reason, seen.apply.message)
    if seen.refused:
        return Condition(Type.IN_SYNC, Holds.FALSE, "RemovalsRefused", "; ".join(seen.refused))
    if seen.blocked:
        return Condition(Type.IN_SYNC, Holds.FALSE, PARTLY, "; ".join(seen.blocked))
    if seen.left:
        message = f"{seen.left} map entries that others changed are left as they are: see drift"
        return Condition(Type.IN_SYNC, Holds.FALSE, "DriftLeft", message)
    if not seen.converged:
        return Condition(Type.IN_SYNC, Holds.UNKNOWN, "NoPassYet")
    return Condition(Type.IN_SYNC, Holds.TRUE, "Converged")


def _dataplane(seen: Observed) -> Condition:
    missing = sorted(set(seen.interfaces) - set(seen.attached))
    if missing:
        message = f"no program on {', '.join(missing)}"
        return Condition(Type.DATAPLANE_HEALTHY, Holds.FALSE, "NotAttached", message)
    return Condition(Type.DATAPLANE_HEALTHY, Holds.TRUE, "Attached")


def _health(seen: Observed) -> Condition:
    if not seen.checked:
        return Condition(Type.HEALTH_FRESH, Holds.TRUE, "NothingToCheck")
    if seen.reported_at is None:
        message = "health.json is not there: verdicts stay as they are. Does healthcheck run?"
        return Condition(Type.HEALTH_FRESH, Holds.FALSE, "NoReport", message)
    if seen.now - seen.reported_at > STALE:
        age = f"the last report is {seen.now - seen.reported_at:.0f} s old"
        message = f"{age}: verdicts stay as they are. Does healthcheck run?"
        return Condition(Type.HEALTH_FRESH, Holds.FALSE, "StaleReport", message)
    if seen.checker:
        return Condition(
            Type.HEALTH_FRESH, Holds.FALSE, "CheckerInTrouble", "; ".join(seen.checker)
        )  # fmt: skip
    return Condition(Type.HEALTH_FRESH, Holds.TRUE, "Reporting")


def _overridden(seen: Observed) -> Condition:
    if not seen.overrides:
        return Condition(Type.OVERRIDDEN, Holds.FALSE, "NoOverrides")
    return Condition(Type.OVERRIDDEN, Holds.TRUE, "ForcedByOperator", "; ".join(seen.overrides))


def _agree(seen: Observed) -> Condition:
    """What a silent peer last said does not count for ever."""
    asked = [peer for peer in seen.peers if peer.identity and not peer.silent(seen.clock)]
    differing = [peer for peer in asked if peer.differs(seen.clock)]
    if differing:
        message = "; ".join(f"{peer.name}: {', '.join(peer.differences)}" for peer in differing)
        return Condition(Type.PEERS_AGREE, Holds.FALSE, "PeersDiffer", message)
    if len(asked) < len(seen.peers):
        return Condition(Type.PEERS_AGREE, Holds.UNKNOWN, "NotAllHeard")
    return Condition(Type.PEERS_AGREE, Holds.TRUE, "Agree" if asked else "NoPeers")


def _answer(seen: Observed) -> Condition:
    """Milder: a peer that is being restarted is no fault of this node's, and forwards all the same."""
    silent = [peer for peer in seen.peers if peer.silent(seen.clock)]
    if silent:
        message = "; ".join(f"{peer.name} ({peer.address}): {peer.trouble}" for peer in silent)
        return Condition(Type.PEERS_ANSWER, Holds.FALSE, "PeersSilent", message)
    return Condition(Type.PEERS_ANSWER, Holds.TRUE, "Answering" if seen.peers else "NoPeers")


def _trouble(kind: Type, trouble: Trouble | None, well: str) -> Condition:
    if trouble is None:
        return Condition(kind, Holds.TRUE, well)
    return Condition(kind, Holds.FALSE, trouble.reason, trouble.message)


def _alarm(kind: Type, trouble: Trouble | None, well: str) -> Condition:
    if trouble is None:
        return Condition(kind, Holds.FALSE, well)
    return Condition(kind, Holds.TRUE, trouble.reason, trouble.message)
