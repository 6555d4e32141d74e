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
    return _unhurried(entry) if where is Where.SETTINGS else entry


def _settled(entry: abi.Service) -> abi.Service:
    plain = abi.Service.from_bytes(bytes(entry))
    plain.short_pools = 0
    return plain


def _unrouted(entry: abi.Backend) -> abi.Backend:
    plain = abi.Backend.from_bytes(bytes(entry))
    plain.flags &= ~FORCED
    plain.ifindex = plain.mtu = 0
    plain.dmac = plain.smac = (0,) * 6
    return plain


def _unhurried(entry: abi.Settings) -> abi.Settings:
    plain = abi.Settings.from_bytes(bytes(entry))
    plain.hop_epoch = 0
    return plain
