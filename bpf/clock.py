"""The program's clock, as its entries note it. Knows no other."""

import time

from bpf.abi import Limit

MONOTONIC_COARSE = 6  # Linux's number; Python has no name for it


def now_tick() -> int:
    """Coarse, monotonic, about one second a tick."""
    return time.clock_gettime_ns(MONOTONIC_COARSE) >> Limit.TICK_SHIFT
