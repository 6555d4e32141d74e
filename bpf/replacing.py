"""One program in the place of another, over the same maps, between two packets.

The new one is pinned as `program:next` before any link is touched, the old one stays as
`program:previous`. So whoever is killed half-way has said what was to happen, and the next
process completes it. Needs the lock. Whether a program is fit to take over is not judged here.
"""

from __future__ import annotations

import os
from pathlib import Path

from bpf import link, program, record
from bpf.errors import NotLoaded
from bpf.pins import Pins, entries, following, preceding
from bpf.program import Loaded
from bpf.tables import open_pin, pin


def stage(home: Pins, loaded: Loaded, elf: bytes) -> None:
    """Let a loaded program wait for its turn."""
    keep(home, loaded.program, elf)
    pin_programs(loaded, following(home.program), following(home.sweep))


def keep(home: Pins, fd: int, elf: bytes) -> None:
    """Before its program is pinned: there is none without a record."""
    record.keep(home.records / str(program.info(fd).id), elf)


def pin_programs(loaded: Loaded, main: Path, sweep: Path) -> None:
    """The sweep first: the main program's pin says that both are there."""
    if loaded.sweep >= 0:
        pin(loaded.sweep, sweep)
    pin(loaded.program, main)


def stage_previous(home: Pins) -> None:
    """Let the one before wait for its turn."""
    if not preceding(home.program).exists():
        raise nothing_before(home)
    for path in (home.sweep, home.program):
        if preceding(path).exists():
            os.link(preceding(path), following(path))


def nothing_before(home: Pins) -> NotLoaded:
    return NotLoaded(
        f"{preceding(home.program)}: no program is kept from before; `reconciler upgrade`"
        " with --object FILE takes any other"
    )


def complete(home: Pins) -> None:
    """Bring a program that waits into place; also for one who was killed."""
    waiting = following(home.program)
    new = open_pin(waiting)
    if new is None:
        following(home.sweep).unlink(missing_ok=True)
        return
    try:
        _switch(home, new)
        _keep_previous(home, program.info(new).id)
        _move_sweep(home)
        record.took_over(home.records / str(program.info(new).id))
        waiting.rename(home.program)
        forget(home)
    finally:
        os.close(new)


def _switch(home: Pins, new: int) -> None:
    old = open_pin(home.program)
    if old is None:
        return
    try:
        update_links(home, new, old)
    finally:
        os.close(old)


def update_links(home: Pins, new: int, old: int) -> None:
    """Every link that does not run it yet."""
    wanted = program.info(new).id
    for interface in home.interfaces():
        path = home.link(interface)
        known = link.link_info(path)
        if known and known.prog_id != wanted:
            link.update(path, new, old)


def _keep_previous(home: Pins, new: int) -> None:
    """The program last, as in `pin_programs`: once it is there, its sweep is not touched again."""
    old = id_of(home.program)
    if old in (None, new, id_of(preceding(home.program))):
        return
    for path in (home.sweep, home.program):
        preceding(path).unlink(missing_ok=True)
        if path.exists():
            os.link(path, preceding(path))


def _move_sweep(home: Pins) -> None:
    """Where the new object has none, the old one stays: it means the same by the same maps."""
    waiting = following(home.sweep)
    if waiting.exists():
        waiting.rename(home.sweep)
        waiting.unlink(missing_ok=True)  # a second name of the same sweep is not renamed


def forget(home: Pins) -> None:
    """Records of programs that are pinned no more."""
    pinned = {str(id_of(path(home.program))) for path in (Path, following, preceding)}
    for name in entries(home.records):
        if name not in pinned:
            (home.records / name).unlink(missing_ok=True)


def id_of(path: Path) -> int | None:
    """The id of a pinned program."""
    fd = open_pin(path, read_only=True)
    if fd is None:
        return None
    try:
        return program.info(fd).id
    finally:
        os.close(fd)


def tags(loaded: Loaded) -> tuple[str, str]:
    """What the kernel calls their code; no sweep: none."""
    return program.info(loaded.program).tag, (
        program.info(loaded.sweep).tag if loaded.sweep >= 0 else ""
    )
