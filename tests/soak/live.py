"""The instance as it is now: who has gone over to other maps has another directory of that name. Changes nothing."""

import contextlib
import threading
from collections.abc import Callable

from bpf import adopting
from bpf.kernel import Instance, KernelError
from bpf.pins import Pins

Where = Callable[[], Instance]


class Live:
    """Several threads look at once, so what one may still read is closed at the end only."""

    def __init__(self, name: str) -> None:
        self._pins = Pins.of(name)
        self._lock = threading.Lock()
        self._opened: list[Instance] = []
        self._place = 0
        self._open()

    def now(self) -> Instance:
        with self._lock:
            if adopting.place(self._pins) not in (0, self._place):
                with contextlib.suppress(KernelError):  # half-way: the next look finds it
                    self._open()
            return self._opened[-1]

    def close(self) -> None:
        for instance in self._opened:
            instance.close()

    def _open(self) -> None:
        """Of a place that has become another meanwhile, the next look knows."""
        place = adopting.place(self._pins)
        self._opened.append(Instance.open(self._pins.directory.name))
        self._place = place
