"""Backends that are gone from the file and still have flows. Pure.

Nothing but their entries tells of them: no name, no pool, no slot. What an entry
says stands; which pool's drain applies is read off the slots while there are any.
"""

from collections.abc import Mapping

from bpf import abi
from reconciler import encode, ids
from reconciler.dataplane import State
from reconciler.drain import KEPT, NO_NEW, Policies, begun, deadline
from reconciler.model import Address, Drain
from reconciler.pieces import NextHop


def lingering(
    desired: State,
    actual: State,
    flows: Mapping[int, int],
    now: int,
    policies: Policies,
    hops: Mapping[Address, NextHop],
) -> State:
    """The desired state, with removed backends that have flows and time left."""
    removed = {
        at: entry
        for at, entry in actual.backends.items()
        if at not in desired.backends and at == ids.index(entry.id) and flows.get(at)
    }
    if not removed:
        return desired
    pool_of = _pools_of(actual)
    stay = {
        at: _leaving(
            entry, policies.pools.get(pool_of.get(entry.id, 0), policies.default), now, hops
        )
        for at, entry in removed.items()
    }
    stay = {at: entry for at, entry in stay.items() if entry.until == KEPT or entry.until > now}
    if not stay:
        return desired
    fields = {name: getattr(desired, name) for name in State.__dataclass_fields__}
    fields["backends"] = {**desired.backends, **stay}
    fields["prefilter"] = _with_replies(desired, actual, stay)
    return State(**fields)


def _pools_of(actual: State) -> dict[int, int]:
    """Hashed pool by backend id, as far as slots still tell."""
    return {
        number: actual.pools[at].name
        for at, slots in actual.tables.items()
        if at in actual.pools
        for number in set(slots)
    }


def _leaving(
    entry: abi.Backend, policy: Drain, now: int, hops: Mapping[Address, NextHop]
) -> abi.Backend:
    left = abi.Backend.from_bytes(bytes(entry))
    left.until = begun(entry) or deadline(policy, 0, now)
    left.flags = entry.flags | NO_NEW
    hop = hops.get(encode.address(entry.addr, entry.family))
    if hop is not None:
        left.ifindex, left.mtu = hop.ifindex, hop.mtu
        left.dmac, left.smac = tuple(hop.dmac), tuple(hop.smac)
    return left


def _with_replies(
    desired: State, actual: State, stay: Mapping[int, abi.Backend]
) -> Mapping[int, int]:
    """Replies of those that stay are still looked at, if they were."""
    kinds = dict(desired.prefilter)
    for entry in stay.values():
        at = encode.bucket(encode.address(entry.addr, entry.family))
        kept = actual.prefilter.get(at, 0) & abi.AddressKind.NAT_BACKEND
        if kept:
            kinds[at] = kinds.get(at, 0) | kept
    return kinds
