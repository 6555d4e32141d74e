"""Object files: where they are, what is in one while it is open, and one run of a program.

Of our maps nothing is known here: what to do with an open object is its callers' business.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import byref
from pathlib import Path
from typing import Any

from bpf import errors, libbpf
from bpf.errors import KernelError
from bpf.libbpf import TestRunOptions

OBJECT = "EVENKEEL_OBJECT"


def beside(name: str) -> Path:
    here = Path(__file__).parent
    installed = here / name
    return installed if installed.exists() else here.parent / "build" / name


def content(path: Path) -> bytes:
    check_file(path)
    return path.read_bytes()


def check_file(path: Path) -> None:
    if not path.is_file():
        raise KernelError(f"{path}: no such object; `make build` makes it, {OBJECT} names another")


@contextmanager
def opened(path: Path, said: list[str]) -> Iterator[int]:
    check_file(path)
    handle = libbpf.lib().bpf_object__open_file(os.fsencode(path), None)
    if not handle:
        raise errors.failed(f"{path}: opening", ctypes.get_errno(), said)
    try:
        yield handle
    finally:
        libbpf.lib().bpf_object__close(handle)


def run_on(fd: int, context: ctypes.Structure, what: str) -> None:
    """One run of a syscall program over its context, which it answers in."""
    place = ctypes.addressof(context)
    options = TestRunOptions(ctx_in=place, ctx_size_in=ctypes.sizeof(context))
    run(fd, options, what)


def run(fd: int, options: Any, what: str) -> None:  # noqa: ANN401
    code = libbpf.lib().bpf_prog_test_run_opts(fd, byref(options))
    if code < 0:
        raise errors.failed(what, code)
