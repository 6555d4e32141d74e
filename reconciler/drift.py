"""What of the maps others changed: told apart from what the reconciler itself has still to do. Pure.

Health, next hops, overrides and the end of a drain change entries too, in the
ordinary course of things; none of that is drift.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from bpf import abi
from reconciler import ids
from reconciler.dataplane import Op, Put, State, Where
from reconciler.drain import OVER
from reconciler.model import DriftPolicy

REPAIRS = 5  # of one entry within SPAN: somebody else wants it otherwise
SPAN = 300.0  # seconds; also how long nobody is fought then
FORCED = int(abi.BackendFlag.FORCED_UP | abi.BackendFlag.FORCED_DOWN)
DERIVED = (Where.SETTINGS, Where.SPARES)  # of the node, and of health


@dataclass(frozen=True, slots=True)
class Difference:
    """One entry that is not what was applied."""

    where: Where
    key: Any
    how: str  # missing, different, not ours


def differences(ops: Iterable[Op], actual: State) -> Iterator[Difference]:
    """`ops` make the maps say what is applied: those of them that undo what others did."""
    for op in ops:
        before = actual[op.where].get(op.key)
        if op.where in DERIVED or _expected(op, before):
            continue
        if not isinstance(op, Put):
            yield Difference(op.where, op.key, "not ours")
        else:
            yield Difference(op.where, op.key, "missing" if before is None else "different")


def _expected(op: Op, before: Any) -> bool:  # noqa: ANN401 -- an entry of any map
    if isinstance(op, Put) and op.where is Where.BACKENDS and op.value.until == OVER:
        return True  # whose time is over gets an entry that no flow names
    if op.where is Where.PREFILTER:
        return _of_a_drain(before or 0, op.value if isinstance(op, Put) else 0)
    if before is None:
        return False
    if not isinstance(op, Put):
        return op.where is Where.BACKENDS and _drained(before)
    return bool(configured(op.where, op.value) == configured(op.where, before))


def _of_a_drain(before: int, after: int) -> bool:
    """Replies of a removed backend are looked at for as long as it drains."""
    return before & ~after == before ^ after == abi.AddressKind.NAT_BACKEND


def _drained(entry: abi.Backend) -> bool:
    """Its time is over: that it goes now is what was applied."""
    return bool(entry.flags & abi.BackendFlag.NO_NEW and ids.index(entry.id))


def configured(where: Where, entry: Any) -> Any:  # noqa: ANN401 -- an entry of any map
    """An entry without what follows from health, next hops and overrides."""
    if where is Where.SERVICES:
        return _settled(entry)
    if where is Where.BACKENDS:
        return _unrouted(entry)
    if where is Where.PROBES:
        return _of_any_node(entry)
    return _unhurried(entry) if where is Where.SETTINGS else entry


def _settled(entry: abi.Service) -> abi.Service:
    plain = abi.Service.from_bytes(bytes(entry))
    plain.short_pools = 0
    return plain


def _unrouted(entry: abi.Backend) -> abi.Backend:
    """Whatever its next hop, what an operator forces, and how far it is drained."""
    plain = abi.Backend.from_bytes(bytes(entry))
    plain.flags &= ~FORCED
    plain.ifindex = plain.mtu = plain.until = 0
    plain.dmac = plain.smac = (0,) * 6
    if plain.flags & abi.BackendFlag.NO_NEW:
        plain.id = ids.index(plain.id)  # flushing its flows gave it another one
    return plain


def _of_any_node(entry: abi.Probe) -> abi.Probe:
    """Without what node.yaml says, as settings are not looked at either."""
    plain = abi.Probe.from_bytes(bytes(entry))
    plain.gue_port, plain.source = 0, abi.Address()
    return plain


def _unhurried(entry: abi.Settings) -> abi.Settings:
    plain = abi.Settings.from_bytes(bytes(entry))
    plain.hop_epoch = 0
    return plain


# ---- what is done about it


@dataclass(frozen=True, slots=True)
class Seen:
    """A difference, when it was found, and the last time when it was not there."""

    what: Difference
    found: float
    well: float


class Vigil:
    """What differs since when, and whether somebody fights for it. The caller tells the time."""

    def __init__(self, policy: DriftPolicy) -> None:
        self._policy = policy
        self._well = 0.0  # when everything was as it should be
        self._repairs: dict[tuple[Where, Any], list[float]] = {}
        self._yields = 0.0  # until when nobody is fought
        self.seen: tuple[Seen, ...] = ()
        self.fought: tuple[Difference, ...] = ()

    def look(self, found: Iterable[Difference], now: float, applied_at: float) -> bool:
        """What a pass finds; whether it is to be left as it is."""
        known = {(one.what.where, one.what.key): one for one in self.seen}
        well = max(self._well, applied_at)
        fresh = tuple(Seen(one, now, well) for one in found)
        self.seen = tuple(known.get((one.what.where, one.what.key), one) for one in fresh)
        if not self.seen:
            self._well = now
        if not self.seen and now >= self._yields:
            self.fought = ()
        if self._policy is not DriftPolicy.RESTORE:
            return bool(self.seen)
        return bool(self.seen) and self._is_fought(now)

    @property
    def left(self) -> int:
        """How many entries differ and stay so, and nobody said that this is no matter."""
        return 0 if self._policy is DriftPolicy.IGNORE else len(self.seen)

    def repaired(self, now: float, *, left: bool) -> None:
        """The pass wrote what it found different, unless it left it."""
        if left:
            return
        for one in self.seen:
            times = self._repairs.setdefault((one.what.where, one.what.key), [])
            times[:] = [*(time for time in times if now - time < SPAN), now]
        self.seen, self._well = (), now

    def anew(self) -> None:
        """Something else is to be applied: what was, is no measure any more."""
        self.seen, self.fought, self._yields = (), (), 0.0
        self._repairs.clear()

    def _is_fought(self, now: float) -> bool:
        if now < self._yields:
            return True
        fought = [one.what for one in self.seen if self._often(one.what, now)]
        if not fought:
            return False
        self.fought, self._yields = tuple(fought), now + SPAN
        self._repairs.clear()
        return True

    def _often(self, one: Difference, now: float) -> bool:
        times = self._repairs.get((one.where, one.key), [])
        return sum(now - time < SPAN for time in times) >= REPAIRS


def harmless(ops: Iterable[Op], actual: State) -> tuple[Op, ...]:
    """Those that may be carried out while drift is left: what health and next hops ask for."""
    present = {entry.id for entry in actual.backends.values()}
    return tuple(op for op in ops if isinstance(op, Put) and _keeps(op, actual, present))


def _keeps(op: Put, actual: State, present: set[int]) -> bool:
    if op.where is Where.SPARES:
        return present.issuperset(op.value)
    before = actual[op.where].get(op.key)
    return before is not None and (op.where is Where.SETTINGS or _expected(op, before))
