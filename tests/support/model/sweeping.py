"""The sweep, by docs/packet-path.md §6: what is idle goes, what is left is counted anew."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.support.model.config import Config, Service, index
from tests.support.model.flows import ANSWERING, FLOWS, OPENING, RETURNS, age
from tests.support.model.parse import Tuple
from tests.support.model.state import Flow, Key, Return, State


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did: how many entries went, how many live flows are left."""

    expired: int
    flows: int
    changes: tuple[tuple[Key, Any], ...]


def sweep(config: Config, state: State, now: int) -> Swept:
    entries = [(key, value) for key, value in state.items() if isinstance(value, Flow | Return)]
    gone = [key for key, value in entries if _expired(config, key, value, now)]
    kept = dict(entries)
    for key in gone:
        del kept[key]
    live = Counter(index(flow.backend) for flow in _live(kept))
    counted = {("live", at): None for store, at in state if store == "live"}
    changes = {**dict.fromkeys(gone), **counted, **{("live", at): n for at, n in live.items()}}
    return Swept(len(gone), live.total(), tuple(changes.items()))


def _live(kept: dict[Key, Any]) -> Iterator[Flow]:
    for (store, _), value in kept.items():
        if store in (FLOWS, OPENING) and not value.closed:
            yield value


def _expired(config: Config, key: Key, value: Flow | Return, now: int) -> bool:
    store, about = key
    flow = value.flow if isinstance(value, Return) else value
    frontend = config.frontend(flow.frontend)
    if frontend is None or config.backend(flow.backend) is None:
        return True
    return age(flow, now) > _limit(config, store, about, flow, config.service_of(frontend))


def _limit(config: Config, store: str, about: Tuple, flow: Flow, service: Service) -> int:
    if store in (OPENING, ANSWERING):
        return config.settings.closing
    if flow.closed:
        return config.settings.rest if store == RETURNS else config.settings.closing
    return service.idle(about.protocol)
