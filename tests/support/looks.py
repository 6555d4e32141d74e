"""One look over the fake, as tests of plans, guards and reports need it."""

from reconciler.compile import Surroundings
from reconciler.look import Live, View, look
from reconciler.model import Config, Node
from reconciler.overrides import Overrides
from tests.support.configs import NODE
from tests.support.fake_dataplane import ROOM, FakeMaps


def live_of(maps: FakeMaps, now: int = 0, overrides: Overrides = ()) -> Live:
    state, flows = maps.read(), maps.flows()
    return Live(state, maps.health(), Surroundings(), ROOM, overrides, flows, now)


def view_of(
    config: Config,
    maps: FakeMaps,
    *,
    allow_removals: bool = False,
    now: int = 0,
    overrides: Overrides = (),
    node: Node = NODE,
) -> View:
    return look(config, node, live_of(maps, now, overrides), allow_removals=allow_removals)
