"""The bench's own BPF objects: compiled when a source is newer, loaded, their maps and programs found.

It pins nothing and touches no map but the object's own.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from bpf import libbpf

ROOT = Path(__file__).parents[2]


class BenchError(Exception):
    """What was measured did not do what it is measured for."""


def compiled(source: Path, clang: str = "clang") -> Path:
    """The object of a source beside this file."""
    made = ROOT / "build/bench" / source.with_suffix(".o").name
    sources = [source, ROOT / "bpf/abi.h"]
    if made.exists() and all(made.stat().st_mtime > s.stat().st_mtime for s in sources):
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    machine = os.uname().machine
    flags = ["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Wextra", "-Wno-unused-parameter"]
    command = [clang, *flags, f"-I/usr/include/{machine}-linux-gnu", "-c", str(source)]
    try:
        subprocess.run([*command, "-o", str(made)], check=True)
    except FileNotFoundError:
        raise BenchError(f"no {clang}: sudo make setup, or apt-get install clang") from None
    except subprocess.CalledProcessError:
        raise BenchError(f"{source}: does not compile, see above") from None
    return made


class Object:
    """One loaded copy. `entries` sizes maps that the source leaves open."""

    def __init__(self, source: Path, entries: Mapping[str, int] | None = None) -> None:
        self._path = compiled(source)
        self._object = libbpf.lib().bpf_object__open_file(bytes(self._path), None)
        if not self._object:
            raise BenchError(f"open {self._path}: {os.strerror(ctypes.get_errno())}")
        self._load(entries or {})

    def _load(self, entries: Mapping[str, int]) -> None:
        library = libbpf.lib()
        for name, count in entries.items():
            library.bpf_map__set_max_entries(self._find(name), count)
        with libbpf.captured() as log:
            if error := library.bpf_object__load(self._object):
                self.close()
                said = "\n".join(log)
                raise BenchError(f"load {self._path} (as root?): {os.strerror(-error)}\n{said}")

    def _find(self, name: str) -> int:
        library, found = libbpf.lib(), None
        while found := library.bpf_object__next_map(self._object, found):
            if library.bpf_map__name(found).decode() == name:
                return int(found)
        raise BenchError(f"no map {name} in {self._path}")

    def map(self, name: str) -> int:
        """File descriptor of a map."""
        return int(libbpf.lib().bpf_map__fd(self._find(name)))

    def program(self, name: str) -> int:
        """File descriptor of one of the object's own programs."""
        found = libbpf.lib().bpf_object__find_program_by_name(self._object, name.encode())
        if not found:
            raise BenchError(f"no program {name} in {self._path}")
        return int(libbpf.lib().bpf_program__fd(found))

    def close(self) -> None:
        libbpf.lib().bpf_object__close(self._object)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
