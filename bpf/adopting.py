"""What is pinned under an instance's name, proved to be what this version takes it to be.

Names, shapes and the ABI are compared before anything is read. Nothing is made or changed.
"""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpf import mapset, pins, program, record
from bpf.abi import Abi, Meta
from bpf.errors import AbiMismatch, KernelError, NotLoaded
from bpf.maps import Map
from bpf.mapset import AnyMap, Maps
from bpf.pins import Pins
from bpf.program import Loaded, ProgramInfo
from bpf.record import Note
from bpf.tables import open_pin


@dataclass(frozen=True, slots=True)
class Version:
    """A pinned program, and what it was made of; `note` is None where nobody kept that."""

    program: ProgramInfo
    note: Note | None


def adopted(home: Pins, *, read_only: bool) -> tuple[Loaded, Maps]:
    """Typed maps over what is pinned, after every one of them proved to be what we think."""
    found = programs(home, read_only=read_only)
    try:
        maps = opened(home, read_only=read_only)
    except KernelError:
        close(found)
        raise
    try:
        _check_abi(home, maps.meta)
    except KernelError:
        close(found)
        maps.close()
        raise
    return found, maps


def programs(home: Pins, *, read_only: bool) -> Loaded:
    main = open_pin(home.program, read_only=read_only)
    if main is None:
        why = (
            f"({home.program} is not there); the reconciler loads it when it starts"
            if pins.is_mounted()
            else f"that could be seen here: {pins.BPFFS} is no BPF file system in this mount namespace"
        )
        raise NotLoaded(f"instance {home.directory.name}: nothing is loaded {why}")
    sweep = open_pin(home.sweep, read_only=read_only)
    return Loaded(main, -1 if sweep is None else sweep, {})


def opened(home: Pins, *, read_only: bool) -> Maps:
    fds = {
        name: open_pin(home.map(name), read_only=read_only and name not in mapset.MAPPED)
        for name in mapset.names()
    }
    here = {name: fd for name, fd in fds.items() if fd is not None}
    try:
        for name in fds:
            _check_map(home, name, here.get(name))
    except AbiMismatch:
        for fd in here.values():
            os.close(fd)
        raise
    return typed(here, home.directory, writable=not read_only)


def _check_map(home: Pins, name: str, fd: int | None) -> None:
    if fd is None and not home.exists:
        raise NotLoaded(f"instance {home.directory.name}: was torn down meanwhile")
    if fd is None:
        raise AbiMismatch(f"{home.map(name)}: not pinned. {remedy(home)}")
    called, key, value = mapset.identity(fd)
    if called not in mapset.names_in_kernel(name):
        raise AbiMismatch(f"{home.map(name)}: is a map called {called}. {remedy(home)}")
    program.check_shape(f"{home.map(name)}", name, (key, value), remedy(home))


def _check_abi(home: Pins, metas: Map[int, Meta]) -> None:
    meta = metas.get(0)
    if meta is None or meta.abi != Abi.VERSION:
        raise AbiMismatch(
            f"{home.map('meta')}: these maps are of ABI {meta.abi if meta else 'none'}, this"
            f" version speaks {int(Abi.VERSION)}. {remedy(home)}"
        )


def open_map(instance: str, name: str) -> Map[Any, Any]:
    """One map to write to, for a process that may open no other: only `meta` is read besides."""
    home = Pins.of(instance)
    with closing(_alone(home, "meta", read_only=True)) as metas:
        _check_abi(home, metas)
    return _alone(home, name, read_only=False)


def _alone(home: Pins, name: str, *, read_only: bool) -> Map[Any, Any]:
    fd = open_pin(home.map(name), read_only=read_only)
    _check_map(home, name, fd)
    assert fd is not None  # noqa: S101 -- or the check had failed
    found = mapset.open_map(name, fd, home.directory, writable=not read_only)
    assert isinstance(found, Map)  # noqa: S101 -- tables are nobody's alone
    return found


def remedy(home: Pins) -> str:
    name = home.directory.name
    return (
        f"forwarding goes on as it is; `reconciler teardown --instance {name}` and a start"
        " load it anew (flows are forgotten), or run the version that loaded it"
    )


def check_spoken(elf: bytes, path: Path) -> None:
    spoken = record.abi_of(elf)
    if spoken not in (None, Abi.VERSION):
        raise AbiMismatch(f"{path}: speaks ABI {spoken}, this version {int(Abi.VERSION)}")


def place(home: Pins) -> int:
    """Another number once another directory has this name."""
    try:
        return home.directory.stat().st_ino
    except FileNotFoundError:
        return 0


def version(home: Pins, path: Path) -> Version | None:
    fd = open_pin(path, read_only=True)
    if fd is None:
        return None
    try:
        found = program.info(fd)
    finally:
        os.close(fd)
    return Version(found, record.note(home.records / str(found.id)))


def typed(fds: dict[str, int], directory: Path | None, *, writable: bool = True) -> Maps:
    maps: dict[str, AnyMap] = {
        name: mapset.open_map(name, fds[name], directory, writable=writable)
        for name in mapset.names()
    }
    return Maps(maps)


def close(loaded: Loaded) -> None:
    for fd in loaded.maps.values():
        os.close(fd)
    for fd in (loaded.program, loaded.sweep):
        if fd >= 0:
            os.close(fd)
