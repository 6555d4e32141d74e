"""Reads the counters out of the maps, and keeps the book of whose they are. Counts nothing itself.

The book lives as long as the maps do: it names the map that it is about, and with
another one it begins anew.
"""

import json
import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from bpf import abi
from bpf.kernel import Instance
from reconciler import ids, ledger, published
from reconciler.compile import Desired
from reconciler.ledger import Ledger
from reconciler.rates import Count, Reading, Tally

NAME = "counters.json"
log = logging.getLogger("reconciler")


def read(instance: Instance) -> Reading:
    maps = instance.maps
    cpus = maps.cpus.per_cpu(0)
    latency = [list(cpu.latency) for cpu in cpus]
    return Reading(
        at=time.monotonic(),
        services={at: Count.of(entry) for at, entry in maps.service_counts.items()},
        backends={at: Count.of(entry) for at, entry in maps.backend_counts.items()},
        live=dict(maps.live.items()),
        cpus=tuple(tuple(Tally(each.packets, each.bytes) for each in cpu.verdict) for cpu in cpus),
        latency=tuple(map(sum, zip(*latency, strict=True))),
    )


class Books:
    """One ledger for services and one for backends, in one file."""

    def __init__(self, run_dir: Path, instance: Instance) -> None:
        self._path = run_dir / NAME
        self._instance = instance
        self._map = instance.maps.meta.id  # never another one while counters go on
        self.services, self.backends = self._kept()
        self._followed: object = None  # those of the last time

    def follow(self, desired: Desired) -> None:
        """Before anything new is counted: whose each index is from now on."""
        if self._followed == (desired.parts, desired.backends):
            return
        self._followed = desired.parts, desired.backends
        services = {ids.index(number): str(part) for number, part in desired.parts.items()}
        backends = {
            ids.index(number): f"{pool}/{name}"
            for (pool, name), number in desired.backends.items()
        }  # fmt: skip
        if self.services.fits(services) and self.backends.fits(backends):
            return
        counts = self._instance.maps
        self.services = self.services.follow(services, _counts(counts.service_counts.items()))
        self.backends = self.backends.follow(backends, _counts(counts.backend_counts.items()))
        self._keep()

    def _kept(self) -> tuple[Ledger, Ledger]:
        try:
            content = json.loads(self._path.read_text())
            if content["map"] != self._map:
                return Ledger(), Ledger()
            return ledger.parse(content["services"]), ledger.parse(content["backends"])
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s: %r; counters of removed backends are forgotten", self._path, error)
        return Ledger(), Ledger()

    def _keep(self) -> None:
        published.publish_json(
            self._path,
            {
                "map": self._map,
                "services": ledger.document(self.services),
                "backends": ledger.document(self.backends),
            },
        )


def _counts(entries: Iterable[tuple[int, abi.Counters]]) -> Mapping[int, Count]:
    return {at: Count.of(entry) for at, entry in entries}
