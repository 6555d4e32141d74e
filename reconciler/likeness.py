"""When two programs do the same with a packet, and what to call it when they do not. Pure."""

from dataclasses import dataclass
from enum import StrEnum

ETHERNET, MACS = 14, 12
ADDRESSES = {0x0800: (30, 34), 0x86DD: (38, 54)}  # where the outer destination is in a frame


class Kind(StrEnum):
    VERDICT = "verdict"  # also what the kernel is told to do
    BACKEND = "backend"  # it goes somewhere else
    BYTES = "bytes"  # to the same place, but written otherwise


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a packet: why, what XDP does with it, and how it leaves."""

    verdict: str
    action: str
    frame: bytes

    @property
    def place(self) -> bytes:
        """Whom the frame is for: next hop and outer destination."""
        first, last = ADDRESSES.get(int.from_bytes(self.frame[MACS:ETHERNET]), (0, 0))
        return self.frame[:6] + self.frame[first:last]


@dataclass(frozen=True, slots=True)
class Difference:
    """One packet that the new program treats otherwise; backends are ids, 0 where not asked."""

    what: str
    kind: Kind
    running: Outcome
    new: Outcome
    running_backend: int = 0
    new_backend: int = 0


def differ(what: str, running: Outcome, new: Outcome, *, drawn: bool) -> Difference | None:
    """`drawn`: chance chooses the backend, so only the verdict has to be the same."""
    kind = _kind(running, new, drawn=drawn)
    return None if kind is None else Difference(what, kind, running, new)


def _kind(running: Outcome, new: Outcome, *, drawn: bool) -> Kind | None:
    if (running.verdict, running.action) != (new.verdict, new.action):
        return Kind.VERDICT
    if drawn or running.frame == new.frame:
        return None
    return Kind.BACKEND if running.place != new.place else Kind.BYTES


def first_difference(running: bytes, new: bytes) -> str:
    """Where two frames part, as bytes of both."""
    if len(running) != len(new):
        return f"{len(running)} and {len(new)} bytes long"
    at = next(i for i, (one, other) in enumerate(zip(running, new, strict=True)) if one != other)
    return f"byte {at}: {running[at]:02x} and {new[at]:02x}"
