"""One look over the fake, as tests of plans, guards and reports need it."""

from reconciler.compile import Surroundings
from reconciler.look import Live, View, look
from reconciler.model import Config
from tests.support.configs import NODE
from tests.support.fake_dataplane import ROOM, FakeMaps


def live_of(maps: FakeMaps, now: int = 0) -> Live:
    return Live(maps.read(), maps.health(), Surroundings(), ROOM, flows=maps.flows(), now=now)


def view_of(config: Config, maps: FakeMaps, *, allow_removals: bool = False, now: int = 0) -> View:
    return look(config, NODE, live_of(maps, now), allow_removals=allow_removals)
