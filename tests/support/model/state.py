"""What the program remembers between packets, as values. Changes are listed, never made in place:
one packet may have several outcomes, and each is judged from the same state.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

from bpf.abi import FlowState, Verdict
from tests.support.model.config import STATELESS, Service, index
from tests.support.model.parse import Tuple


class Action(IntEnum):
    """What XDP does with a frame; numbers as in linux/bpf.h."""

    DROP = 1
    PASS = 2
    TX = 3
    REDIRECT = 4


@dataclass(frozen=True, slots=True)
class Flow:
    """A remembered choice; `port` is fullnat's source port, else 0."""

    backend: int
    frontend: int
    seen: int
    port: int = 0
    state: int = 0

    @property
    def closed(self) -> bool:
        return bool(self.state & FlowState.CLOSED)

    def marked(self, state: int, service: Service) -> "Flow":
        """With more state, and closed when that closes it."""
        state |= self.state
        both = FlowState.CLIENT_FIN | FlowState.BACKEND_FIN
        one_sided = service.forward in STATELESS and state & FlowState.CLIENT_FIN
        if state & FlowState.RESET or state & both == both or one_sided:
            state |= FlowState.CLOSED
        return replace(self, state=int(state))

    def at(self, now: int) -> "Flow":
        return self if self.seen == now else replace(self, seen=now)


@dataclass(frozen=True, slots=True)
class Return:
    """Whose replies a reply tuple are."""

    client: Tuple
    flow: Flow


@dataclass(frozen=True, slots=True)
class Counts:
    packets: int = 0
    bytes: int = 0
    flows: int = 0
    reply_packets: int = 0
    reply_bytes: int = 0

    def plus(self, **more: int) -> "Counts":
        return replace(self, **{name: getattr(self, name) + n for name, n in more.items()})


@dataclass(frozen=True, slots=True)
class Gate:
    tick: int = 0
    taken: int = 0


Key = tuple[str, Any]  # which store, and the key in it
State = Mapping[Key, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One thing that may happen to a packet."""

    verdict: Verdict
    action: Action
    frame: bytes
    egress: int = 0  # interface, when it is sent
    changes: tuple[tuple[Key, Any], ...] = ()  # None: deleted
    exact: bool = True  # False: the outer UDP checksum vouches for an inner one that is wrong


class Memory:
    """The state as one packet sees it: what was, and what it has changed so far."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._changes: dict[Key, Any] = {}

    def get(self, store: str, key: Any) -> Any:
        if (store, key) in self._changes:
            return self._changes[store, key]
        return self._state.get((store, key))

    def put(self, store: str, key: Any, value: Any) -> None:
        self._changes[store, key] = value

    def delete(self, store: str, key: Any) -> None:
        self._changes[store, key] = None

    def flow(self, store: str, client: Tuple) -> Flow | None:
        found: Flow | None = self.get(store, client)
        return found

    def answer(self, store: str, reply: Tuple) -> Return | None:
        found: Return | None = self.get(store, reply)
        return found

    def live(self, at: int) -> int:
        return int(self.get("live", at) or 0)

    def more_live(self, backend: int, by: int) -> None:
        at = index(backend)
        self.put("live", at, max(self.live(at) + by, 0))

    def count(self, store: str, whole: int, **more: int) -> None:
        counts: Counts = self.get(store, index(whole)) or Counts()
        self.put(store, index(whole), counts.plus(**more))

    def changes(self) -> tuple[tuple[Key, Any], ...]:
        return tuple(
            (key, value) for key, value in self._changes.items() if self._state.get(key) != value
        )


def applied(state: State, changes: tuple[tuple[Key, Any], ...]) -> State:
    """The state after an outcome."""
    new = dict(state)
    for key, value in changes:
        if value is None:
            new.pop(key, None)
        else:
            new[key] = value
    return new
