"""Where packets go while a plan is carried out, one operation after the other: examples to read."""

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from itertools import groupby

import pytest

from bpf import abi
from reconciler import encode
from reconciler.compile import Surroundings
from reconciler.dataplane import State
from reconciler.look import Live, look
from reconciler.model import (
    AdminState,
    Backend,
    Balance,
    Config,
    Method,
    Pool,
    Port,
    Proto,
    Service,
)
from reconciler.overrides import Forced, Override, Overrides
from tests.support.configs import NODE, UNLIMITED, VIPS
from tests.support.fake_dataplane import ROOM, FakeMaps
from tests.support.judge import Place, route

A, B, C = (Backend(name, ip_address(f"10.0.0.{i}")) for i, name in enumerate("abc", 1))
NAMES = {encode.abi_address(backend.address): backend.name for backend in (A, B, C)}
PORTS = {"g": Port(80, Proto.TCP), "h": Port(443, Proto.TCP)}


def away(backend: Backend) -> Backend:
    return replace(backend, weight=0)


def down(backend: Backend) -> Backend:
    return replace(backend, state=AdminState.DOWN)


def config(services: dict[str, str], **pools: Backend) -> Config:
    """Each pool has one backend, and each service the pools that its letters name."""
    return Config(
        {name: service(name, used) for name, used in services.items()},
        {name: Pool(name, {one.name: one}) for name, one in pools.items()},
        UNLIMITED,
    )


def service(name: str, pools: str) -> Service:
    balance = Balance(Method.MAGLEV)
    return Service(name, (VIPS[0],), (PORTS[name],), tuple(pools), balance=balance)


def states(before: Config, after: Config, overrides: Overrides) -> Iterator[State]:
    maps = FakeMaps()
    maps.apply(look(before, NODE, live(maps, ()), allow_removals=True).ops)
    ops = look(after, NODE, live(maps, overrides), allow_removals=True).ops
    yield maps.read()
    for op in ops:
        maps.apply([op])
        yield maps.read()


def live(maps: FakeMaps, overrides: Overrides) -> Live:
    return Live(maps.read(), {}, Surroundings(), ROOM, overrides)


def way(name: str, before: Config, after: Config, overrides: Overrides = ()) -> list[str]:
    """Where the packets of a service go, from the first operation to the last."""
    packet = encode.key_of(VIPS[0], PORTS[name].number, PORTS[name].proto)
    places = [
        "/".join(sorted({called(route(state, packet, draw, {})) for draw in range(7)}))
        for state in states(before, after, overrides)
    ]
    return [place for place, _ in groupby(places)]


def called(place: Place) -> str:
    how, address, _ = place
    return NAMES.get(abi.Address.from_bytes(address), how) if address else how


OLD = config({"h": "p"}, p=A, q=away(B), r=away(C))


@pytest.mark.parametrize("gone", [away(A), down(A)])
def test_another_pool_is_known_before_the_only_one_is_exhausted(gone: Backend) -> None:
    new = config({"h": "pqr"}, p=gone, q=away(B), r=C)
    assert way("h", OLD, new) == ["a", "c"]


def test_the_next_pool_is_filled_before_the_first_one_is_emptied() -> None:
    old, new = config({"h": "pq"}, p=A, q=away(B)), config({"h": "pq"}, p=away(A), q=B)
    assert way("h", old, new) == ["a", "b"]
    assert way("h", new, old)[-1] == "a"
    assert "dropped" not in way("h", new, old)


def test_the_next_pool_is_filled_before_the_first_one_has_only_who_is_forced_down() -> None:
    old, new = config({"h": "pq"}, p=A, q=away(B)), config({"h": "pq"}, p=down(C), q=B)
    assert way("h", old, new) == ["a", "b"]


@pytest.mark.parametrize("left", [away(A), down(C)])
def test_who_comes_to_an_exhausted_pool_does_not_meet_who_was_in_it(left: Backend) -> None:
    old = config({"g": "q", "h": "p"}, p=A, q=B, r=away(C))
    new = config({"g": "p", "h": "pr"}, p=left, q=B, r=replace(B, name="c"))
    assert way("g", old, new) == ["b", "dropped"]
    assert way("h", old, new) == ["a", "b"]


def test_nor_when_who_was_in_it_comes_back_up_as_it_goes() -> None:
    old = config({"g": "q", "h": "p"}, p=down(A), q=B)
    new = config({"g": "pq", "h": "p"}, p=away(A), q=B)
    assert way("g", old, new) == ["b"]


def test_nor_when_an_override_alone_exhausts_it() -> None:
    old = config({"g": "q", "h": "p"}, p=A, q=B)
    new = config({"g": "pq", "h": "p"}, p=C, q=B)
    forced = Override("p", "c", Forced.DOWN, reason="", by="", since=0, until=1)
    assert way("g", old, new, (forced,)) == ["b"]
    assert way("h", old, new, (forced,)) == ["a", "dropped"]
