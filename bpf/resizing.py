"""An instance goes over to maps of other sizes, while packets flow and others write what it says.

Beside it a whole instance is made: new maps where a size changes, the same maps where none does, a
program over all that, and the flows, which take the time. Nobody waits for that: who makes it holds
a claim on the directory, by which others see that somebody is at it. Then, under the lock and
briefly, what only its holders write is copied, every link is updated and the two directories change
names. The last flows follow without it. Whoever is killed before the first link has done nothing;
after it, the next process goes on from there.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bpf import (
    carrying,
    copying,
    libbpf,
    link,
    mapset,
    objects,
    pins,
    program,
    record,
    repinning,
    replacing,
)
from bpf.errors import Busy, KernelError
from bpf.mapset import AnyMap, Maps, Sizes
from bpf.pins import Pins, entries, preceding, unheard
from bpf.program import Loaded
from bpf.tables import TableMap, open_pin, pin

LATE = "late-"  # and a tick: the flows of this directory that were seen since then are to follow


def beside(home: Pins) -> Pins:
    return Pins(home.directory.with_name(pins.RESIZING + home.directory.name))


def is_under_way(home: Pins) -> bool:
    """Whether somebody goes over to other sizes, or began to and was killed."""
    return beside(home).directory.exists()


def changed(maps: Maps, sizes: Sizes) -> list[str]:
    return [name for name in mapset.SETTING if maps[name].max_entries != sizes.of(name)]


def needed(maps: Maps, name: str) -> int:
    """How large a map has to be for what is in it."""
    source: Any = maps[name]
    if isinstance(source, TableMap):
        return max(source.indexes(), default=-1) + 1
    if source.array:
        return max((at for at, _ in source.items()), default=-1) + 1
    return int(source.count())


def memory(maps: Maps, name: str, sizes: Sizes) -> tuple[int, int]:
    """Bytes of the kernel's that a map takes now, and about as many as it will with these sizes."""
    source: Any = maps[name]
    now = libbpf.memory(source.fd)
    return now, now * (sizes.of(name) or 0) // source.max_entries


# ---- the steps, in their order


@contextmanager
def begun(home: Pins) -> Iterator[None]:
    """Claimed as long as this lasts, so that nobody takes it for left behind. Entered with the lock."""
    there = beside(home)
    try:
        there.directory.mkdir()
    except FileExistsError:
        raise Busy(
            f"{there.directory}: another process goes over to other sizes; wait for it"
        ) from None
    claims = [_claim(one.directory) for one in (there, home)]
    try:
        yield
    finally:
        for handle in filter(None, claims):
            os.close(handle)


def prepare(
    home: Pins, maps: Maps, path: Path, sizes: Sizes, working: Callable[[], None] = unheard
) -> int:
    """The new instance but for what is quickly copied, pinned beside the old one. Without the lock.

    Nothing runs by it yet. Since which tick there may be more flows.
    """
    _check_pinned(home)
    there, elf, other = beside(home), objects.content(path), changed(maps, sizes)
    same = {name: maps[name].fd for name in mapset.names() if name not in other}
    with _loaded(path, sizes, same) as loaded:
        there.make()
        for name, fd in loaded.maps.items():
            if name in other:
                pin(fd, there.map(name))
                mapset.share(name, there.map(name))
            else:
                os.link(home.map(name), there.map(name))
        working()
        _keep_running(home, there, sizes, loaded.maps)
        replacing.keep(there, loaded.program, elf)
        replacing.pin_programs(loaded, there.program, there.sweep)
    working()
    with _both(home, there, [name for name in other if name in carrying.CARRIED]) as pairs:
        return carrying.carry(pairs.values(), working)


def switch(home: Pins, since: int) -> None:
    """What only holders of the lock write; from link to link; the name. Needs the lock."""
    _check_pinned(home)
    there = beside(home)
    other = [name for name in _different(home, there) if name not in carrying.CARRIED]
    with _both(home, there, other) as pairs:
        for name in copying.order(other):
            copying.copy(*pairs[name])
    _link_all(home, there)
    _mark(home, since)
    _go_over(home)


def _go_over(home: Pins) -> None:
    """Once the first link is updated there is no way back. Also for one who was killed."""
    there = beside(home)
    _update_links(home, there)
    _follow_health(home, there)
    number = replacing.id_of(there.program)
    record.took_over(there.records / str(number))
    pins.exchange(home.directory, there.directory)


def finish(home: Pins, working: Callable[[], None] = unheard) -> None:
    """The flows of the last moments before the links were updated. Needs no lock.

    Without those of maps that somebody has unpinned since: there is no way back to them.
    """
    before = beside(home)
    since = _late(before)
    if since is None:
        return
    names = [name for name in _different(before, home) if name in carrying.CARRIED]
    with _both(before, home, [*names, "hops"]) as pairs:
        found = pairs.pop("hops", None)
        for pair in pairs.values() if found else ():
            carrying.catch_up(pair, since, carrying.Hops(*found), working)
    _unmark(before)


def complete(home: Pins, working: Callable[[], None] = unheard) -> None:
    """Finish what somebody began to switch; undo what nobody did. Needs the lock.

    Who is alive and at it is left alone.
    """
    there = beside(home)
    if not there.directory.exists():
        return
    claim = _claim(there.directory)
    if claim is None:
        return
    try:
        if _late(there) is None and _runs(home, there):
            _go_over(home)
        finish(home, working)
        pins.remove(there.directory)
        _unmark(home)
    finally:
        os.close(claim)


# ---- what they do


def _claim(directory: Path) -> int | None:
    """A descriptor to close when it is over, which the kernel does for whoever is killed; None: another has it."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _mark(home: Pins, since: int) -> None:
    """For whoever finds this directory beside the new one."""
    _unmark(home)
    (home.directory / f"{LATE}{since}").mkdir()


def _unmark(home: Pins) -> None:
    for name in entries(home.directory):
        if name.startswith(LATE):
            (home.directory / name).rmdir()


def _late(there: Pins) -> int | None:
    """Since when flows are to follow from there; None: it is no directory that was left."""
    marks = [name for name in entries(there.directory) if name.startswith(LATE)]
    return int(marks[0].removeprefix(LATE)) if marks else None


def _runs(home: Pins, there: Pins) -> bool:
    """Whether any interface runs that program."""
    number = replacing.id_of(there.program)
    links = (link.link_info(home.link(name)) for name in home.interfaces())
    return number is not None and any(known and known.prog_id == number for known in links)


def _check_pinned(home: Pins) -> None:
    if gone := repinning.missing(home):
        raise KernelError(
            f"{home.map(gone[0])}: somebody unpinned it; a running reconciler pins it again within ten"
            " seconds: start it, or try again then"
        )


def _different(one: Pins, other: Pins) -> list[str]:
    """Maps of which there are two."""
    gone = {*repinning.missing(one), *repinning.missing(other)}
    names = (name for name in mapset.SETTING if name not in gone)
    return [name for name in names if not one.map(name).samefile(other.map(name))]


def _update_links(home: Pins, there: Pins) -> None:
    new, old = open_pin(there.program), open_pin(home.program)
    try:
        if new is not None and old is not None:
            replacing.update_links(home, new, old)
    finally:
        for fd in (new, old):
            if fd is not None:
                os.close(fd)


def _follow_health(home: Pins, there: Pins) -> None:
    """Written by healthcheck, which takes no lock and goes where the name leads."""
    if "health" in _different(home, there):
        with _both(home, there, ["health"]) as pairs:
            copying.copy(*pairs["health"])


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
def _both(home: Pins, there: Pins, names: list[str]) -> Iterator[dict[str, Any]]:
    """Each of these maps that is there twice, from the one directory and from the other."""
    with _opened(home, names) as here, _opened(there, names) as new:
        yield {name: (here[name], new[name]) for name in names if name in here and name in new}


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
