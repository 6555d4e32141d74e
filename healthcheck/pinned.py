"""The pinned health map. The only module that writes to the kernel, and the only map it writes to.

An entry carries the whole id of its backend. Whatever carries another incarnation is somebody else's, and means
nothing to the data plane: so entries are written over, and never cleaned up before.
"""

from collections.abc import Iterable
from pathlib import Path

from bpf.abi import Health, HealthState, IdLayout
from bpf.kernel import KernelError, Map, open_map
from bpf.pins import Pins
from healthcheck.health import State
from healthcheck.verdicts import Verdict, Verdicts, VerdictsError

_TO_KERNEL = {
    State.UNKNOWN: HealthState.UNKNOWN,
    State.UP: HealthState.UP,
    State.DOWN: HealthState.DOWN,
}
_FROM_KERNEL = {int(value): state for state, value in _TO_KERNEL.items()}


class PinnedVerdicts:
    def __init__(self, pinned: Map[int, Health]) -> None:
        self._map = pinned

    def read(self) -> dict[int, Verdict]:
        try:
            entries = self._map.items()
        except (KernelError, OSError) as error:
            raise VerdictsError(str(error)) from error
        said = {
            entry.id: Verdict(_FROM_KERNEL.get(entry.state, State.UNKNOWN), entry.ramp)
            for _, entry in entries
        }
        said.pop(0, None)  # of nobody
        return said

    def write(self, verdicts: Iterable[tuple[int, Verdict]]) -> None:
        try:
            self._map.put_many(
                (
                    id_ & IdLayout.INDEX_MASK,
                    Health(id=id_, state=_TO_KERNEL[one.state], ramp=one.ramp),
                )
                for id_, one in verdicts
            )
        except (KernelError, OSError) as error:
            raise VerdictsError(str(error)) from error

    def close(self) -> None:
        self._map.close()


def open_pinned(path: Path, name: str) -> Verdicts:
    """The health map of this instance, provided that it is the one that was meant."""
    try:
        pinned = Pins.of(name).map("health")
        if path != pinned:
            raise VerdictsError(
                f"the targets name {path}, instance {name} has {pinned}: "
                "nothing is written; use the --instance that the reconciler uses"
            )
        return PinnedVerdicts(open_map(name, "health"))
    except (KernelError, OSError) as error:
        raise VerdictsError(str(error)) from error
