"""An answer of `explain`, for people and for machines. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bpf.abi import Verdict
from reconciler import ids
from reconciler.explaining import Answer, World
from reconciler.model import Proto
from reconciler.packet.build import FLAGS
from reconciler.packet.decode import GUE_PORT, Decoded, decode
from reconciler.packet.text import lines
from reconciler.verdicts import SENT, WHY

FORMAT = "1.0"
WIDTH = 16


@dataclass(frozen=True, slots=True)
class Told:
    """An answer, the configuration that it is about, who gave it, and what to know about it."""

    answer: Answer
    world: World
    judge: str
    notes: Sequence[str] = ()

    @property
    def verdicts(self) -> list[Verdict]:
        """The program's one; of the model all that can be."""
        seen = self.answer.seen
        return [seen.verdict] if seen else sorted(self.answer.trace.ending.verdicts)

    @property
    def service(self) -> str:
        seen = self.answer.seen
        number = (seen.service if seen else 0) or self.answer.trace.ending.service
        if ids.index(number) not in self.world.state.services:
            return ""
        named = self.world.names.service(ids.index(number), self.world.state.services)
        return named.name.partition("/")[0]

    @property
    def backends(self) -> list[str]:
        """The program's one; of the model all that can be."""
        seen = self.answer.seen
        if seen is None:
            numbers = self.answer.trace.ending.backends
        else:
            numbers = frozenset({seen.backend} if seen.backend else ())
        entries = self.world.state.backends
        return sorted(
            self.world.names.backend(entries[ids.index(one)].name).name
            for one in numbers
            if ids.index(one) in entries
        )

    @property
    def out(self) -> Decoded | None:
        """The packet that would leave."""
        seen = self.answer.seen
        if seen is None or seen.verdict not in SENT:
            return None
        settings = self.world.state.settings.get(0)
        return decode(seen.frame, gue_port=settings.gue_port if settings else GUE_PORT)

    @property
    def asked(self) -> str:
        packet, flags = self.answer.question.packet, self.answer.question.flags
        ends = (packet.source, packet.sport), (packet.destination, packet.dport)
        source, target = (f"[{a}]:{p}" if a.version == 6 else f"{a}:{p}" for a, p in ends)  # noqa: PLR2004
        said = f"{source} -> {target}/{packet.proto.name.lower()}"
        return f"{said} {_flags(flags)}" if packet.proto is Proto.TCP else said


def _flags(flags: int) -> str:
    return ",".join(name for name, bit in FLAGS.items() if bit & flags) or "none"


def document(told: Told) -> Mapping[str, Any]:
    seen, out = told.answer.seen, told.out
    return {
        "format_version": FORMAT,
        "packet": told.asked,
        "judge": told.judge,
        "notes": list(told.notes),
        "steps": [
            {"about": step.about, "found": step.found, "details": list(step.more)}
            for step in told.answer.trace.steps
        ],
        "verdicts": [verdict.name.lower() for verdict in told.verdicts],
        "why": [WHY[verdict] for verdict in told.verdicts],
        "action": seen.action.name.lower() if seen else "",
        "service": told.service,
        "backends": told.backends,
        "differences": list(told.answer.differences),
        "out": [layer.document() for layer in out.layers] if out else [],
    }


def text(told: Told) -> str:
    return "\n".join(_lines(told))


def _lines(told: Told) -> Iterator[str]:
    yield told.asked
    yield _line("asked", told.judge)
    yield from (_line("note", note) for note in told.notes)
    yield ""
    for step in told.answer.trace.steps:
        yield _line(step.about, step.found)
        yield from (_line("", f"  {detail}") for detail in step.more)
    yield ""
    for verdict in told.verdicts:
        yield _line("verdict", f"{verdict.name.lower()}: {WHY[verdict]}")
    if told.answer.seen:
        yield _line("action", f"XDP_{told.answer.seen.action.name}")
    if told.backends:
        yield _line("backend", " or ".join(told.backends))
    if told.out:
        yield from (_line("out" if not i else "", line) for i, line in enumerate(lines(told.out)))
    for difference in told.answer.differences:
        yield ""
        yield f"!!! TRACE AND PROGRAM DISAGREE: {difference}"
        yield "!!! The program decides. Ask again; if they still do, this is a bug worth reporting."


def _line(about: str, said: str) -> str:
    return f"{about:{WIDTH}} {said}".rstrip()
