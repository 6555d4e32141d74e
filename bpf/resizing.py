"""An instance goes over to maps of other sizes, while packets flow.

Beside it a whole instance is made: new maps where a size changes, the same maps where none
does, what the old ones say, and a program over all that. Then every link is updated, what
came in meanwhile is copied too, and the two directories change names. Whoever is killed
before the first link has done nothing; after it, the next process goes on from there. Needs the lock.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bpf import copying, link, mapset, pins, program, record, replacing
from bpf.mapset import AnyMap, Maps, Sizes
from bpf.pins import Pins, entries, preceding
from bpf.program import Loaded
from bpf.tables import TableMap, open_pin, pin


def beside(home: Pins) -> Pins:
    return Pins(home.directory.with_name(pins.RESIZING + home.directory.name))


def changed(maps: Maps, sizes: Sizes) -> list[str]:
    return [name for name in mapset.SETTING if maps[name].max_entries != sizes.of(name)]


def needed(maps: Maps, name: str) -> int:
    """How large a map has to be for what is in it."""
    source: Any = maps[name]
    if isinstance(source, TableMap):
        return max(source.indexes(), default=-1) + 1
    if source.array:
        return max((at for at, _ in source.items()), default=-1) + 1
    return sum(len(keys) // source.key.size for keys, _ in source.raw())


def prepare(home: Pins, maps: Maps, path: Path, sizes: Sizes) -> None:
    """All of the new instance, pinned beside the old one. Nothing runs by it yet."""
    there = beside(home)
    pins.remove(there.directory)
    try:
        _make(home, there, maps, path, sizes)
    except BaseException:
        pins.remove(there.directory)
        raise


def _make(home: Pins, there: Pins, maps: Maps, path: Path, sizes: Sizes) -> None:
    elf, other = program.content(path), changed(maps, sizes)
    same = {name: maps[name].fd for name in mapset.names() if name not in other}
    with _loaded(path, sizes, same) as loaded:
        there.make()
        for name, fd in loaded.maps.items():
            if name in other:
                pin(fd, there.map(name))
                mapset.share(name, there.map(name))
            else:
                os.link(home.map(name), there.map(name))
        with _opened(there, other) as fresh:
            for name in copying.order(other):
                copying.copy(maps[name], fresh[name])
        _link_all(home, there)
        _keep_running(home, there, sizes, loaded.maps)
        replacing.keep(there, loaded.program, elf)
        replacing.pin_programs(loaded, there.program, there.sweep)


def complete(home: Pins) -> None:
    """Finish what somebody began to switch; undo what nobody did."""
    there = beside(home)
    if not there.directory.exists():
        return
    if _is_under_way(home, there):
        switch(home)
    else:
        pins.remove(there.directory)


def switch(home: Pins) -> None:
    """From link to link; then what came in between; then the name."""
    there = beside(home)
    _update_links(home, there)
    _catch_up(home, there)
    _link_all(home, there)
    number = replacing.id_of(there.program)
    record.took_over(there.records / str(number))
    pins.exchange(home.directory, there.directory)
    pins.remove(there.directory)


def _is_under_way(home: Pins, there: Pins) -> bool:
    number = replacing.id_of(there.program)
    links = (link.link_info(home.link(name)) for name in home.interfaces())
    return number is not None and any(known and known.prog_id == number for known in links)


def _update_links(home: Pins, there: Pins) -> None:
    new, old = open_pin(there.program), open_pin(home.program)
    try:
        if new is not None and old is not None:
            replacing.update_links(home, new, old)
    finally:
        for fd in (new, old):
            if fd is not None:
                os.close(fd)


def _catch_up(home: Pins, there: Pins) -> None:
    """Of maps that are two by now."""
    names = [n for n in copying.LATE if not home.map(n).samefile(there.map(n))]
    with _opened(home, [*names, "hops"]) as old, _opened(there, [*names, "hops"]) as new:
        hops = copying.Hops(old["hops"], new["hops"])  # type: ignore[arg-type]
        for name in names:
            copying.catch_up(name, old[name], new[name], hops)  # type: ignore[arg-type]


def _link_all(home: Pins, there: Pins) -> None:
    """Second names of what both have: tables, links and what checks need, as they are now."""
    if (home.directory / pins.VIA).exists():
        (there.directory / pins.VIA).mkdir(exist_ok=True)
    for folder in ("links", pins.VIA, *pins.TABLES):
        for name in entries(there.directory / folder):
            (there.directory / folder / name).unlink()
        for name in entries(home.directory / folder):
            os.link(home.directory / folder / name, there.directory / folder / name)


def _keep_running(home: Pins, there: Pins, sizes: Sizes, maps: dict[str, int]) -> None:
    """What runs now, loaded over the new maps: the one to go back to."""
    elf = record.object_of(home.records / str(replacing.id_of(home.program)))
    if elf is None:
        return
    with record.as_file(elf) as path, _loaded(path, sizes, maps) as before:
        replacing.keep(there, before.program, elf)
        replacing.pin_programs(before, preceding(there.program), preceding(there.sweep))


@contextmanager
def _loaded(path: Path, sizes: Sizes, maps: dict[str, int]) -> Iterator[Loaded]:
    loaded = program.load(path, sizes, maps)
    try:
        yield loaded
    finally:
        for fd in (*loaded.maps.values(), loaded.program, loaded.sweep):
            if fd >= 0:
                os.close(fd)


@contextmanager
def _opened(home: Pins, names: list[str]) -> Iterator[dict[str, AnyMap]]:
    found: dict[str, AnyMap] = {}
    with ExitStack() as stack:
        for name in names:
            fd = open_pin(home.map(name))
            if fd is not None:
                found[name] = mapset.open_map(name, fd, home.directory)
                stack.callback(found[name].close)
        yield found
