"""One packet through a shadow, and the account of its way beside what the program did. Changes nothing live."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bpf import abi
from bpf.kernel import Instance, now_tick
from reconciler import ids, memory, shadows
from reconciler.dataplane import State
from reconciler.memory import Memory
from reconciler.model import Packet
from reconciler.names import Names
from reconciler.shadows import Seen, Watched
from reconciler.trace import Scene, Trace, trace

ATTEMPTS = 3  # when the clock ticks between the account and the run
ETHERNET, TAG = 14, 4


@dataclass(frozen=True, slots=True)
class Question:
    """A packet, and where and how it comes in."""

    packet: Packet
    frame: bytes
    flags: int
    ifindex: int
    tags: int = 0  # how many

    @property
    def length(self) -> int:
        """Of the IP packet."""
        return len(self.frame) - ETHERNET - TAG * self.tags


@dataclass(frozen=True, slots=True)
class World:
    """The configuration that is asked, and how to read what is remembered under it."""

    state: State
    health: Callable[[], Mapping[int, abi.Health]]
    names: Names
    commit: str = ""
    interfaces: Mapping[int, str] | None = None
    live: Instance | None = None  # whose flows are known; None: there are none


@dataclass(frozen=True, slots=True)
class Answer:
    """The account, and what the program did; None where no program could be asked."""

    question: Question
    trace: Trace
    seen: Seen | None
    differences: tuple[str, ...]


def scene_of(question: Question, world: World) -> Scene:
    return Scene(
        question.packet,
        question.length,
        question.flags,
        world.state,
        world.health(),
        remembered(world, question.packet),
        world.names,
        now_tick(),
        world.commit,
        world.interfaces or {},
    )


def remembered(world: World, packet: Packet) -> Memory:
    if world.live is None:
        return Memory()
    maps: Any = world.live.maps
    return memory.gather(lambda name, key: maps[name].get(key), world.state, packet)


def ask(question: Question, world: World, watched: Watched) -> Answer:
    """Both, at the same tick of the clock."""
    for _ in range(ATTEMPTS):
        scene = scene_of(question, world)
        shadows.forget(watched.shadow)
        flows = dict(world.live.maps.live.items()) if world.live is not None else {}
        shadows.plant(watched.shadow, scene.memory, flows)
        seen = watched.send(question.frame, question.ifindex)
        told = trace(scene)
        found = Answer(question, told, seen, differences(told, seen, world))
        if not found.differences or now_tick() == scene.now:
            break
    return found


def ask_model(question: Question, world: World) -> Answer:
    """Where no program may be loaded: the account alone."""
    return Answer(question, trace(scene_of(question, world)), None, ())


def differences(told: Trace, seen: Seen, world: World) -> tuple[str, ...]:
    """Where the account and the program do not agree, in words."""
    ending, found = told.ending, []
    if seen.verdict not in ending.verdicts:
        said = " or ".join(sorted(one.name.lower() for one in ending.verdicts))
        found.append(f"the program says {seen.verdict.name.lower()}, the trace {said}")
    elif seen.backend and seen.backend not in ending.backends:
        found.append(
            f"the program takes {_backend(seen.backend, world)},"
            f" the trace {', '.join(_backend(one, world) for one in sorted(ending.backends)) or 'nobody'}"
        )
    return tuple(found)


def _backend(number: int, world: World) -> str:
    entry = world.state.backends.get(ids.index(number))
    return world.names.backend(entry.name).name if entry is not None else f"#{number:#x}"
