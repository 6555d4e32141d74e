"""What does not fit keeps nobody else waiting: laws of applying in part, over random configurations."""

from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st

from reconciler import capacity
from reconciler.admission import Blocked, Why
from reconciler.compile import Surroundings
from reconciler.dataplane import State
from reconciler.encode import FrontendKey
from reconciler.look import Live, View, look
from reconciler.model import Config
from reconciler.parts import part_hash, parts_of
from tests.support.configs import NODE, configs
from tests.support.fake_dataplane import FakeMaps
from tests.support.judge import DROPPED, PASSED, everywhere, packets, route, service_of

AMPLE = {"frontends": 256, "services": 64, "pools": 64, "backends": 128}
rooms = st.fixed_dictionaries(
    {
        "frontends": st.integers(2, 20),
        "services": st.integers(2, 6),
        "pools": st.integers(2, 8),
        "backends": st.integers(2, 12),
    }
)


class Box:
    """Maps of a size, and what stands in them."""

    def __init__(self, room: dict[str, int]) -> None:
        self.maps, self.room = FakeMaps(), room
        self.standing = Config({}, {})

    def look(self, config: Config, failed: tuple[str, ...] = ()) -> View:
        refused = {name: Blocked(name, Why.REFUSED, "no") for name in failed}
        live = Live(
            self.maps.read(),
            {},
            Surroundings(),
            self.room,
            standing=self.standing,
            sure=True,
            failed=refused,
        )
        return look(config, NODE, live)

    def apply(self, config: Config, failed: tuple[str, ...] = ()) -> View:
        view = self.look(config, failed)
        self.maps.apply(view.ops)
        self.standing = view.config
        return view

    def settle(self, config: Config, failed: tuple[str, ...] = ()) -> View:
        """What is removed makes room for what is new, so it may take some passes."""
        for _ in range(8):
            view = self.apply(config, failed)
            if not view.ops:
                return view
        raise AssertionError("it never comes to rest")


def fits(state: State, room: dict[str, int]) -> bool:
    arrays = all(len(state[where]) < room[capacity.SETTINGS[where]] for where in capacity.ARRAYS)
    return arrays and all(len(state[w]) <= room[s] for w, s in capacity.SETTINGS.items())


@given(st.lists(configs(), min_size=1, max_size=3), rooms)
def test_whatever_the_room_every_file_is_applied_as_far_as_it_goes(
    history: list[Config], room: dict[str, int]
) -> None:
    box = Box(room)
    for config in history:
        view = box.settle(config)
        assert fits(box.maps.read(), room)
        assert view.blocked.keys() <= config.services.keys()
        for name in config.services.keys() - view.blocked.keys():
            assert view.config.services[name] == config.services[name]
            for pool in config.services[name].pools:
                assert view.config.pools[pool] == config.pools[pool]
        for why in view.blocked.values():
            assert why.why is Why.WAITS or "sizes." in why.message


@given(st.lists(configs(), min_size=1, max_size=2), configs(), rooms, st.data())
def test_whoever_is_blocked_goes_on_as_before(
    history: list[Config], new: Config, room: dict[str, int], data: st.DataObject
) -> None:
    """By room, or because the kernel refused; after every operation of those that are applied."""
    box = Box(room)
    for config in history:
        box.settle(config)
    names = sorted(new.services.keys() | box.standing.services.keys())
    failed = tuple(data.draw(st.lists(st.sampled_from(names), unique=True))) if names else ()
    old, before = box.maps.read(), box.standing
    view = box.look(new, failed)
    assert set(failed) <= view.blocked.keys()
    ideal = Box(AMPLE)
    ideal.settle(new)
    allowed = {
        packet: everywhere(old, packet, {}) | everywhere(ideal.maps.read(), packet, {})
        for packet in packets(old, view.held)
    }
    for packet, places in allowed.items():
        if service_of(view.held, packet) is None:
            places.add(PASSED)  # full: whose place it takes has to go before it can come
    stays = {
        packet
        for packet in allowed
        if any(_owns(before, name, old, packet) for name in view.blocked)
    }
    for op in (None, *view.ops):
        box.maps.apply([op] if op else [])
        here = box.maps.read()
        for packet, places in allowed.items():
            for draw in range(NODE.table_size):
                assert route(here, packet, draw, {}) in places | {DROPPED}
        assert all(service_of(here, packet) for packet in stays)
    box.settle(new, failed)


def _owns(config: Config, name: str, state: State, packet: FrontendKey) -> bool:
    service, entry = config.services.get(name), service_of(state, packet)
    return (
        service is not None
        and entry is not None
        and entry.name in {part_hash(part) for part in parts_of(service)}
    )


@given(configs(), configs(), rooms)
def test_the_order_of_the_file_decides_nothing(
    old: Config, new: Config, room: dict[str, int]
) -> None:
    boxes = Box(room), Box(room)
    for box in boxes:
        box.settle(old)
    backwards = replace(new, services=dict(reversed(list(new.services.items()))))
    one, other = boxes[0].look(new), boxes[1].look(backwards)
    assert one.blocked == other.blocked
    assert one.held == other.held


@given(configs(), configs(), rooms)
def test_with_room_or_patience_everything_is_applied(
    old: Config, new: Config, room: dict[str, int]
) -> None:
    box = Box(room)
    box.settle(old)
    box.settle(new, tuple(new.services))
    box.room = AMPLE
    assert not box.settle(new).blocked
    fresh = Box(AMPLE)
    fresh.settle(new)
    assert len(box.maps.read().services) == len(fresh.maps.read().services)
    assert box.standing == fresh.standing


@given(configs(), configs())
def test_who_is_served_already_is_not_pushed_out_by_a_newcomer(old: Config, new: Config) -> None:
    sizes = capacity.needed(old, NODE)
    box = Box({name: max(2, size) for name, size in sizes.items()})
    assert not box.settle(old).blocked, "sizes of just what is needed do"
    both = replace(
        new,
        services={**new.services, **old.services},
        pools={**new.pools, **old.pools},
    )
    fronts = [(a, p) for s in both.services.values() for a in s.addresses for p in s.ports]
    assume(len(fronts) == len(set(fronts)))
    assert box.look(both).blocked.keys().isdisjoint(old.services)
