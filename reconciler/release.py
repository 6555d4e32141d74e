"""Which program runs, and whether it is the one that this version of Evenkeel comes with.

A start adopts what is pinned and goes on: only `reconciler upgrade` replaces a
program. Nothing is loaded here.
"""

import time
from dataclasses import fields
from pathlib import Path

from bpf import record
from bpf.kernel import Instance, KernelError, NotLoaded, Sizes, Version, default_object
from reconciler.conditions import Trouble
from reconciler.facts import Moment, Program

REMEDY = "Run `reconciler upgrade`"
RESIZING = Trouble(
    "Resizing",
    "another process copies flows into maps of other sizes; everything goes on meanwhile",
)
_digests: dict[tuple[Path, int, int], str] = {}


def outdated(instance: Instance, sizes: Sizes) -> Trouble | None:
    """What an upgrade would change; None if nothing, or if that cannot be known."""
    if differing := differing_sizes(instance.sizes(), sizes):
        message = f"node.yaml says {differing}: the maps are as they were made. {REMEDY}"
        return Trouble("SizesDiffer", message)
    try:
        note, ours = instance.running().note, digest_of(default_object())
    except (OSError, KernelError):
        return None
    if note is None:
        return Trouble("UnknownProgram", f"nobody kept what the program was made of. {REMEDY}")
    if note.object == ours:
        return None
    here = f"{record.version()}, object {ours}"
    return Trouble("OtherProgram", f"the program is of {note.named}; this is {here}. {REMEDY}")


def waiting(since: float) -> Trouble:
    """A pass waits for another process, which has the kernel boundary's lock."""
    at = time.strftime("%H:%M:%S", time.localtime(since))
    return Trouble(
        "Waiting",
        f"passes wait since {at} for another process that loads, replaces or removes a program or its maps;"
        " what is pinned forwards as it is",
    )


def differing_sizes(made: Sizes, wanted: Sizes) -> str:
    """`flows4: 500000 instead of 262144, ...`; empty if none does."""
    names = (one.name for one in fields(Sizes))
    pairs = ((name, getattr(made, name), getattr(wanted, name)) for name in names)
    return ", ".join(
        f"sizes.{name}: {new} instead of {old}" for name, old, new in pairs if old != new
    )


def digest_of(path: Path) -> str:
    """Read anew only when the file is another one: it is asked for every second."""
    known = path.stat()
    key = (path, known.st_ino, known.st_mtime_ns)
    if key not in _digests:
        _digests.clear()
        _digests[key] = record.digest(path.read_bytes())
    return _digests[key]


def programs(instance: Instance) -> tuple[Program, ...]:
    """What runs, and what is kept from before, in this order; empty where all is gone."""
    try:
        found = (instance.running(), instance.previous())
    except NotLoaded:
        return ()
    return tuple(_program(version) for version in found if version)


def _program(version: Version) -> Program:
    note = version.note
    return Program(
        id=version.program.id,
        tag=version.program.tag,
        version=note.version if note else "",
        object=note.object if note else "",
        since=Moment(note.since) if note else None,
    )
