"""Keeps the programs that `via: service` needs loaded and attached, while any check wants them. Decides nothing.

They are on the interfaces of node.yaml, and on those that backends are reached by.
"""

import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

from bpf import pins, tc, via
from bpf.errors import KernelError
from bpf.via import Via
from reconciler.dataplane import State, Where
from reconciler.look import View
from reconciler.maps import PinnedMaps


class Sideway:
    """Beside the data plane: what is not attached here costs only checks."""

    def __init__(self, dataplane: PinnedMaps, interfaces: Iterable[str]) -> None:
        self._dataplane, self._configured = dataplane, frozenset(interfaces)
        self._current = False  # whether this version's programs are the ones that are loaded
        self._on: frozenset[str] = frozenset()  # where this process has them
        self.drift: tuple[str, ...] = ()  # that the last `keep` put right
        self.trouble: KernelError | None = None

    def possible(self, view: View, actual: State) -> View:
        """Without probes where they cannot be sent: no reason to keep anything else waiting."""
        self.trouble = None
        if not view.held.probes:
            return view
        try:
            self._loaded()
        except KernelError as error:
            self.trouble = error
            ops = tuple(op for op in view.ops if op.where is not Where.PROBES)
            return replace(view, held=replace(view.held, probes=actual.probes), ops=ops)
        return view

    def keep(self, held: State) -> KernelError | None:
        """What hinders it: then no check can be believed that goes this way."""
        self.drift = ()
        if self.trouble:
            return self.trouble
        try:
            if held.probes:
                self._keep(self._wanted(held))
            elif self._dataplane.via:
                self._let_go()
        except KernelError as error:
            self.trouble = error
        return self.trouble

    def _keep(self, wanted: frozenset[str]) -> None:
        found = self._loaded()
        if not found.pinned:
            found.pin_again()
            self.drift += ("via: the programs for checks were not pinned any more",)
        if wanted != self._on:
            for interface in found.attached() - wanted:
                via.detach(interface)
        for interface in sorted(wanted):
            if found.attach(interface) and interface in self._on:
                self.drift += (f"interface {interface}: the filter for checks was gone",)
        self._on = wanted

    def _loaded(self) -> Via:
        found = self._dataplane.via
        if found is None or not self._current:
            found = Via.load(self._dataplane.instance.name)
            self._dataplane.use(found)
            self._current = True
        return found

    def _let_go(self) -> None:
        instance = self._dataplane.instance
        known = [found.interface for found in instance.attachments()]
        with pins.locked():
            via.remove(instance.name, known=known)
        self._dataplane.use(None)
        self._current, self._on = False, frozenset()

    def _wanted(self, held: State) -> frozenset[str]:
        """Those that there are: of a missing one the data plane tells."""
        probed = {bytes(probe.backend) for probe in held.probes.values()}
        numbers = {
            entry.ifindex
            for entry in held.backends.values()
            if entry.ifindex and bytes(entry.addr) in probed
        }
        named = set(self._configured)
        for number in numbers:
            with suppress(OSError):
                named.add(socket.if_indextoname(number))
        return frozenset(named & tc.interfaces().keys())
