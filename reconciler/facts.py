"""What a status is made from: everything that was read at one time, as values. Pure.

Facts are what both threads share, so nothing in them ever changes: there are only
new ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from bpf import abi
from bpf.link import Attachment
from reconciler.admission import Blocked
from reconciler.agreement import Peer
from reconciler.conditions import Condition
from reconciler.dataplane import State
from reconciler.ledger import Ledger
from reconciler.model import Config
from reconciler.overrides import Override
from reconciler.rates import Reading
from reconciler.roster import Roster
from reconciler.vrrp import Vrrp


class Moment(float):
    """Seconds since the epoch; in documents a time in UTC."""

    def __str__(self) -> str:
        return datetime.fromtimestamp(self, UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True, slots=True)
class Probes:
    """Results of a backend's check, as healthcheck counts them, across its restarts."""

    passed: int = 0
    failed: int = 0
    neutral: int = 0  # healthcheck's own trouble: not counted for or against
    flips: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)  # of those that did not pass


NO_PROBES = Probes()


@dataclass(frozen=True, slots=True)
class Checker:
    """What health.json says about healthcheck itself."""

    at: Moment
    probes: int = 0
    own_trouble: int = 0
    stalls: int = 0
    late: int = 0
    lateness_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Checked:
    """What health.json says about a backend."""

    check: str
    since: Moment | None
    reason: str
    detail: str
    latency_ms: float | None
    probes: Probes = NO_PROBES


@dataclass(frozen=True, slots=True)
class Daemon:
    """The process that serves this; none: the maps were read without one."""

    pid: int
    version: str
    started: Moment
    passes: Mapping[str, int] = field(default_factory=dict)  # by result
    pass_seconds: float = 0.0
    map_writes: int = 0
    drift_found: int = 0


@dataclass(frozen=True, slots=True)
class Program:
    """A pinned program and what it was made of; empty where nobody kept that."""

    id: int
    tag: str
    version: str
    object: str  # digest of its code
    since: Moment | None  # it took over


@dataclass(frozen=True, slots=True)
class Attempt:
    """The newest content that the source offered, and what became of it."""

    path: str
    generation: int  # that it has or would get
    digest: str
    commit: str
    commit_text: str
    at: Moment
    result: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Suspend:
    """The source is not followed."""

    reason: str
    by: str
    since: Moment
    until: Moment | None
    generation: int = 0  # that was gone back to; 0: none


@dataclass(frozen=True, slots=True)
class Past:
    """A generation that is kept on disk."""

    generation: int
    digest: str
    commit: str
    at: Moment
    result: str


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that was read for one status."""

    instance: str
    now: float
    tick: int
    state: State
    config: Config | None
    roster: Roster
    health: Mapping[int, abi.Health] = field(default_factory=dict)
    checked: Mapping[int, Checked] = field(default_factory=dict)  # by backend id
    checker: Checker | None = None  # None: there is no health.json
    reading: Reading = field(default_factory=Reading)
    earlier: Reading = field(default_factory=Reading)
    services: Ledger = field(default_factory=Ledger)
    backends: Ledger = field(default_factory=Ledger)
    attached: tuple[Attachment, ...] = ()
    programs: tuple[Program, ...] = ()  # what runs, and what is kept from before
    meta: abi.Meta | None = None
    daemon: Daemon | None = None
    attempt: Attempt | None = None
    conditions: tuple[Condition, ...] = ()
    overrides: tuple[Override, ...] = ()
    refused: tuple[str, ...] = ()
    blocked: tuple[Blocked, ...] = ()
    drift: tuple[str, ...] = ()
    suspends: tuple[Suspend, ...] = ()
    history: tuple[Past, ...] = ()
    vrrp: Vrrp | None = None
    peers: tuple[Peer, ...] = ()
    clock: float = 0.0  # that peers' times are of
    short_since: Mapping[str, float] = field(default_factory=dict)  # as shortage.py names them

    @property
    def seconds(self) -> float:
        return self.reading.at - self.earlier.at
