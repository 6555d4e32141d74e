"""What somebody may do to the maps behind the reconciler's back: what it is, what it may cost, and when it is mended."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from random import Random
from typing import Any

from bpf import abi, libbpf, mapset
from bpf.kernel import Instance
from bpf.pins import Pins
from bpf.tables import open_pin
from reconciler import encode, ids
from tests.soak import consequences
from tests.soak.excuses import Trouble
from tests.soak.live import Where
from tests.soak.watch import Member, members
from tests.soak.wishes import OFFERS, Offer

STRANGER = {4: "192.0.2.99", 6: "2001:db8::99"}


@dataclass(frozen=True, slots=True)
class Meddling:
    what: str
    do: Callable[[], object]
    mended: Callable[[], bool]
    costs: Callable[[float], Iterable[Trouble]]


def nothing(_: float) -> Iterable[Trouble]:
    return ()


# ---- entries


def another_weight(live: Where, whim: Random) -> Meddling:
    at, _ = _some_member(live(), whim)
    entry = live().maps.backends.get(at)
    assert entry is not None
    entry.weight += 7
    return Meddling(
        f"another weight in backends entry {at}",
        lambda: live().maps.backends.put(at, entry),
        lambda: _number(live(), at) != entry.id or _weight(live(), at) != entry.weight,
        nothing,
    )


def no_backend(live: Where, whim: Random) -> Meddling:
    at, (pool, host) = _some_member(live(), whim)
    what = f"backends entry {at} ({pool}/{host}) emptied"
    return Meddling(
        what,
        lambda: live().maps.backends.put(at, abi.Backend()),
        lambda: (pool, host) in members(live()).values(),
        lambda began: consequences.no_backend(what, pool, host, began),
    )


def no_service(live: Where, whim: Random) -> Meddling:
    found = sorted((offer.name, one.service) for one, offer in _frontends(live()))
    name, number = whim.choice(found)
    entry = live().maps.services.get(ids.index(number))
    assert entry is not None
    what = f"services entry {ids.index(number)} ({name}) emptied"
    return Meddling(
        what,
        lambda: live().maps.services.put(ids.index(number), abi.Service()),
        lambda: entry.name in _names(live().maps.services),
        lambda began: [consequences.no_service(what, name, began)],
    )


def no_pool(live: Where, whim: Random) -> Meddling:
    pools = [(at, one) for at, one in live().maps.pools.items() if ids.index(one.id) == at]
    at, entry = whim.choice(sorted(pools, key=lambda pair: pair[0]))
    what = f"pools entry {at} emptied"
    return Meddling(
        what,
        lambda: live().maps.pools.put(at, abi.Pool()),
        lambda: entry.name in _names(live().maps.pools),
        lambda began: [consequences.no_table(what, began)],
    )


def no_table(live: Where, whim: Random) -> Meddling:
    at = whim.choice(sorted(live().maps.tables.items()))
    what = f"table {at} deleted"
    return Meddling(
        what,
        lambda: live().maps.tables.delete(at),
        lambda: at in live().maps.tables.items(),
        lambda began: [consequences.no_table(what, began)],
    )


def no_frontend(live: Where, whim: Random) -> Meddling:
    """Of either family."""
    one, offer = whim.choice(
        sorted(_frontends(live()), key=lambda pair: (pair[1].name, pair[0].proto))
    )
    address, maps = ip_address(offer.address), f"frontends{one.family}"
    key = encode.key_of(address, one.port, one.proto)
    what = f"frontend {offer.name} {one.proto} deleted"
    return Meddling(
        what,
        lambda: _entries(live(), maps).delete_many([key]),
        lambda: _entries(live(), maps).get(key) is not None,
        lambda began: [consequences.unseen(what, began, frozenset({offer.name}))],
    )


def a_stranger(live: Where, whim: Random) -> Meddling:
    family = whim.choice(sorted(STRANGER))
    key = encode.key_of(ip_address(STRANGER[family]), whim.randint(1, 65535), 6)
    maps = f"frontends{family}"
    return Meddling(
        f"a stranger's frontend of IPv{family}, port {key.port}",
        lambda: _entries(live(), maps).put(key, _entries(live(), maps).items()[0][1]),
        lambda: _entries(live(), maps).get(key) is None,
        nothing,
    )


def no_prefilter(live: Where, _: Random) -> Meddling:
    what = "prefilter emptied"

    def empty() -> None:
        memory = live().maps.prefilter.view()
        memory[:] = bytes(len(memory))

    return Meddling(
        what,
        empty,
        lambda: any(bytes(live().maps.prefilter.view())),
        lambda at: [consequences.unseen(what, at)],
    )


# ---- pins


def detached(live: Where, _: Random) -> Meddling:
    """As `bpftool link detach pinned` does it."""

    def detach() -> None:
        link = open_pin(Pins.of(live().name).link("wan"))
        assert link is not None
        try:
            assert libbpf.lib().bpf_link_detach(link) == 0
        finally:
            os.close(link)

    return _without_program("program detached from wan", live, detach)


def unpinned_link(live: Where, _: Random) -> Meddling:
    """Nobody else holds it: so the program goes with it."""
    pin = Pins.of(live().name).link("lan")
    return _without_program("link of lan unpinned", live, pin.unlink)


def _without_program(what: str, live: Where, do: Callable[[], object]) -> Meddling:
    return Meddling(
        what,
        do,
        lambda: {"wan", "lan"} <= {one.interface for one in live().attachments()},
        lambda at: [consequences.unseen(what, at)],
    )


def unpinned_map(live: Where, whim: Random) -> Meddling:
    """The program holds it, and so does the reconciler, who alone can pin it again."""
    name = whim.choice(mapset.names())
    pin = Pins.of(live().name).map(name)
    return Meddling(f"map {name} unpinned", pin.unlink, pin.exists, nothing)


HARMLESS = (another_weight, a_stranger, unpinned_map)
KINDS = (
    *HARMLESS, no_backend, no_service, no_pool, no_table, no_frontend, no_prefilter, detached,
    unpinned_link,
)  # fmt: skip
WHO_HOLDS_MENDS = (unpinned_map,)  # not who starts: forwarding goes on, and status says what to do


def _some_member(instance: Instance, whim: Random) -> tuple[int, Member]:
    """One that stays: of who is gone from the file the entry alone tells, and nobody could write it again."""
    return whim.choice(sorted(members(instance).items()))


def _number(instance: Instance, at: int) -> int:
    entry = instance.maps.backends.get(at)
    return entry.id if entry else 0


def _weight(instance: Instance, at: int) -> int:
    entry = instance.maps.backends.get(at)
    return entry.weight if entry else 0


def _frontends(instance: Instance) -> Iterator[tuple[abi.Frontend, Offer]]:
    known = {(encode.abi_address(ip_address(o.address)), o.port): o for o in OFFERS.values()}
    places = {(bytes(address), port): offer for (address, port), offer in known.items()}
    for at, one in instance.maps.frontends.items():
        if ids.index(one.id) == at and (offer := places.get((bytes(one.addr), one.port))):
            yield one, offer


def _entries(instance: Instance, name: str) -> Any:
    return instance.maps[name]


def _names(entries: Any) -> set[int]:
    return {one.name for at, one in entries.items() if ids.index(one.id) == at}
