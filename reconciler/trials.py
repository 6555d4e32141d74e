"""Runs the file's `tests:` through a shadow of the program, or without the right to, through the model.

The shadow is loaded for this, with maps of its own, pinned and attached nowhere:
what forwards is neither read nor written.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bpf.kernel import KernelError
from reconciler import shadows
from reconciler.expect import HERE, Outcome, Stage, by_model, failures, named, stage
from reconciler.model import Config, Node, Packet
from reconciler.packet.build import frame
from reconciler.problems import Problem
from reconciler.shadows import Watched


@dataclass(frozen=True, slots=True)
class Tried:
    """How the tests of a file went."""

    count: int = 0
    by: str = ""  # what they were run through
    problems: tuple[Problem, ...] = ()

    def __str__(self) -> str:
        return f"{self.count} test{'' if self.count == 1 else 's'} by {self.by}"


def tried(config: Config, node: Node | None = None, path: Path | None = None) -> Tried:
    """`path`: the program in that object, and not in this version's."""
    if not config.tests:
        return Tried()
    staged = stage(config, node or Node(interfaces={}))
    packets = [test.packet for test in config.tests]
    try:
        outcomes, how = _by_program(staged, packets, path), "the program itself, in a shadow"
    except (KernelError, OSError) as error:
        outcomes = [by_model(staged, packet) for packet in packets]
        how = f"the reference model (no program: {str(error).partition(chr(10))[0]})"
    return Tried(len(packets), how, tuple(failures(config, outcomes)))


def _by_program(
    staged: Stage, packets: Iterable[Packet], path: Path | None = None
) -> list[Outcome]:
    with shadows.of_state(staged.state, staged.health, path=path) as shadow:
        watched = Watched(shadow, staged.state)
        return [_outcome(watched, staged, packet) for packet in packets]


def _outcome(watched: Watched, staged: Stage, packet: Packet) -> Outcome:
    shadows.forget(watched.shadow)
    seen = watched.send(frame(packet), HERE)
    return named(staged, packet, seen.verdict.name.lower(), seen.backend)
