"""The sweep, by batch from Python, for kernels that cannot run it themselves."""

from __future__ import annotations

from bpf.abi import Sweep
from bpf.mapset import Maps


def sweep(maps: Maps, now: int) -> Sweep:
    return Sweep(now=now)
