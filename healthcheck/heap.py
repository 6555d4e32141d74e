"""After much was read and little of it kept: give back the rest, and look through what is kept no more. Frees nothing itself."""

import ctypes
import gc

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; others give back by themselves


def settle() -> None:
    """Files of megabytes were text for a moment. What was made of them stays: going through it would make probes late."""
    if _trim:
        _trim(0)
    gc.freeze()
