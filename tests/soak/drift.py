"""What somebody may do to the maps behind the reconciler's back: what it is, what it may cost, and when it is mended."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random

from bpf import abi, libbpf
from bpf.kernel import Instance
from bpf.pins import Pins
from bpf.tables import open_pin
from tests.soak import consequences
from tests.soak.excuses import Trouble
from tests.soak.watch import Member, members
from tests.soak.wishes import OFFERS, Offer


@dataclass(frozen=True, slots=True)
class Meddling:
    what: str
    do: Callable[[], object]
    mended: Callable[[], bool]
    costs: Callable[[float], Iterable[Trouble]]


def nothing(_: float) -> Iterable[Trouble]:
    return ()


def another_weight(instance: Instance, whim: Random) -> Meddling:
    at, _ = _some_member(instance, whim)
    entry = instance.maps.backends.get(at)
    assert entry is not None
    entry.weight += 7
    return Meddling(
        f"another weight in backends entry {at}",
        lambda: instance.maps.backends.put(at, entry),
        lambda: _number(instance, at) != entry.id or _weight(instance, at) != entry.weight,
        nothing,
    )


def no_backend(instance: Instance, whim: Random) -> Meddling:
    at, (pool, host) = _some_member(instance, whim)
    what = f"backends entry {at} ({pool}/{host}) emptied"
    return Meddling(
        what,
        lambda: instance.maps.backends.put(at, abi.Backend()),
        lambda: (pool, host) in members(instance).values(),
        lambda began: consequences.no_backend(what, pool, host, began),
    )


def no_table(instance: Instance, whim: Random) -> Meddling:
    tables = instance.maps.tables
    at = whim.choice(sorted(tables.items()))
    what = f"table {at} deleted"
    return Meddling(
        what,
        lambda: tables.delete(at),
        lambda: at in tables.items(),
        lambda began: [consequences.no_table(what, began)],
    )


def no_frontend(instance: Instance, whim: Random) -> Meddling:
    found = [(key, offer) for key, _ in instance.maps.frontends4.items() if (offer := _offer(key))]
    key, offer = whim.choice(sorted(found, key=lambda pair: bytes(pair[0])))
    what = f"frontend {offer.name} {key.proto} deleted"
    return Meddling(
        what,
        lambda: instance.maps.frontends4.delete_many([key]),
        lambda: any(bytes(one) == bytes(key) for one, _ in instance.maps.frontends4.items()),
        lambda began: [consequences.unseen(what, began, frozenset({offer.name}))],
    )


def a_stranger(instance: Instance, whim: Random) -> Meddling:
    key = abi.Frontend4Key(addr=0xC0000263, port=whim.randint(1, 65535), proto=6)
    maps = instance.maps
    return Meddling(
        f"a stranger's frontend, port {key.port}",
        lambda: maps.frontends4.put(key, maps.frontends4.items()[0][1]),
        lambda: all(bytes(one) != bytes(key) for one, _ in maps.frontends4.items()),
        nothing,
    )


def no_prefilter(instance: Instance, _: Random) -> Meddling:
    memory = instance.maps.prefilter.view()
    what = "prefilter emptied"

    def empty() -> None:
        memory[:] = bytes(len(memory))

    return Meddling(
        what, empty, lambda: any(bytes(memory)), lambda at: [consequences.unseen(what, at)]
    )


def detached(instance: Instance, _: Random) -> Meddling:
    """As `bpftool link detach pinned` does it."""
    what = "program detached from wan"

    def detach() -> None:
        link = open_pin(Pins.of(instance.name).link("wan"))
        assert link is not None
        try:
            assert libbpf.lib().bpf_link_detach(link) == 0
        finally:
            os.close(link)

    return Meddling(
        what,
        detach,
        lambda: {"wan", "lan"} <= {one.interface for one in instance.attachments()},
        lambda at: [consequences.unseen(what, at)],
    )


HARMLESS = (another_weight, a_stranger)
KINDS = (*HARMLESS, no_backend, no_table, no_frontend, no_prefilter, detached)


def _some_member(instance: Instance, whim: Random) -> tuple[int, Member]:
    """One that stays: of who is gone from the file the entry alone tells, and nobody could write it again."""
    return whim.choice(sorted(members(instance).items()))


def _number(instance: Instance, at: int) -> int:
    entry = instance.maps.backends.get(at)
    return entry.id if entry else 0


def _weight(instance: Instance, at: int) -> int:
    entry = instance.maps.backends.get(at)
    return entry.weight if entry else 0


def _offer(key: abi.Frontend4Key) -> Offer | None:
    return next((o for o in OFFERS.values() if o.port == key.port and ":" not in o.address), None)
