"""Pins of maps that somebody removed, put back by who still holds the maps. Writes no entry."""

from __future__ import annotations

import os

from bpf import libbpf, mapset, program
from bpf.mapset import Maps
from bpf.pins import Pins
from bpf.tables import open_pin, pin


def missing(home: Pins) -> tuple[str, ...]:
    return tuple(name for name in mapset.names() if not home.map(name).exists())


def pin_again(home: Pins, name: str, fd: int) -> None:
    pin(fd, home.map(name))
    mapset.share(name, home.map(name))


def pin_shared(home: Pins, maps: Maps) -> None:
    """Where another process went over to other maps: of those only that its program uses too.

    `meta` is used by none: it is the same as long as any other is, since it has but one size.
    """
    gone = missing(home)
    if not gone:
        return
    held = {name: libbpf.info(maps[name].fd, libbpf.MapInfo).id for name in mapset.names()}
    used = _used(home)
    shared = {name for name, number in held.items() if number in used}
    if shared:
        shared |= held.keys() - mapset.SETTING.keys()
    for name in shared.intersection(gone):
        pin_again(home, name, maps[name].fd)


def _used(home: Pins) -> frozenset[int]:
    found: set[int] = set()
    for path in (home.program, home.sweep):
        fd = open_pin(path, read_only=True)
        if fd is not None:
            try:
                found |= program.map_ids(fd)
            finally:
                os.close(fd)
    return frozenset(found)
