"""What a pinned program was made of: its object file, in a map that is pinned beside it.

So whatever runs can be loaded once more: for a shadow to compare with, or over other
maps. It lives exactly as long as the pins. Nothing here loads or runs a program.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import json
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bpf import btf, errors, libbpf
from bpf.errors import AbiMismatch, KernelError
from bpf.layout import Record as Layout
from bpf.maps import Map
from bpf.tables import open_pin, pin

ARRAY = 2  # BPF_MAP_TYPE_ARRAY
PIECE = 4096
# Sections that differ with the folder an object was built in, and not with what it does.
NOT_CODE = (".debug", ".rel.debug", ".BTF", ".rel.BTF", ".strtab", ".symtab", ".llvm")


class Piece(Layout):
    """One entry: the first is the note, as JSON; the others are the object, packed."""

    _fields_ = (("data", ctypes.c_uint8 * PIECE),)


@dataclass(frozen=True, slots=True)
class Note:
    """Which object a program was made of; `since` is when it took over, in seconds since the epoch."""

    version: str  # of Evenkeel, when it was loaded
    object: str  # digest of its code
    since: float
    packed: int  # bytes

    @property
    def named(self) -> str:
        return f"{self.version}, object {self.object}"


def version() -> str:
    try:
        return importlib.metadata.version("evenkeel")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def digest(elf: bytes) -> str:
    """Of what an object does: equal for equal sources, wherever they were compiled."""
    found = hashlib.sha256()
    try:
        for name, content in btf.sections(elf):
            if name and not name.startswith(NOT_CODE):
                found.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    except (btf.NotBtf, ValueError, IndexError) as error:
        raise KernelError(f"no object file: {error}") from error
    return found.hexdigest()[:16]


def abi_of(elf: bytes) -> int | None:
    """Which ABI an object speaks; None if it does not say."""
    try:
        found = btf.parse(btf.section(elf, ".BTF")).named(btf.Kind.ENUM, "abi")
    except (btf.NotBtf, ValueError, IndexError):
        return None
    return dict(found.values).get("ABI_VERSION") if found else None


def keep(path: Path, elf: bytes) -> None:
    """Pin an object there, with a note of what it is."""
    packed = zlib.compress(elf)
    note = Note(version(), digest(elf), time.time(), len(packed))
    count = 1 + -(-len(packed) // PIECE)
    fd = libbpf.lib().bpf_map_create(ARRAY, b"record", 4, PIECE, count, None)
    if fd < 0:
        raise errors.failed(f"{path}: keeping the object", fd)
    pieces: Map[int, Piece] = Map("record", fd, (int, Piece))
    try:
        pieces.put_many(enumerate((_piece(_text(note)), *_cut(packed))))
        path.parent.mkdir(exist_ok=True)
        pin(fd, path)
    finally:
        pieces.close()


def _text(note: Note) -> bytes:
    return json.dumps(asdict(note)).encode()


def _cut(packed: bytes) -> Iterator[Piece]:
    for start in range(0, len(packed), PIECE):
        yield _piece(packed[start : start + PIECE])


def _piece(content: bytes) -> Piece:
    return Piece.from_bytes(content.ljust(PIECE, b"\0"))


@contextmanager
def _opened(path: Path, *, read_only: bool) -> Iterator[Map[int, Piece] | None]:
    fd = open_pin(path, read_only=read_only)
    if fd is None:
        yield None
        return
    pieces: Map[int, Piece] = Map("record", fd, (int, Piece), writable=not read_only)
    try:
        yield pieces
    finally:
        pieces.close()


def note(path: Path) -> Note | None:
    """None where nothing is kept, or nothing that can be read."""
    with _opened(path, read_only=True) as pieces:
        return _note(pieces) if pieces else None


def _note(pieces: Map[int, Piece]) -> Note | None:
    first = pieces.get(0)
    try:
        return Note(**json.loads(bytes(first).rstrip(b"\0"))) if first else None
    except (ValueError, TypeError):
        return None


def object_of(path: Path) -> bytes | None:
    with _opened(path, read_only=True) as pieces:
        found = _note(pieces) if pieces else None
        if pieces is None or found is None:
            return None
        entries = dict(pieces.items())
    count = -(-found.packed // PIECE)
    packed = b"".join(bytes(entries.get(at, Piece())) for at in range(1, count + 1))
    try:
        return zlib.decompress(packed[: found.packed])
    except zlib.error as error:
        raise AbiMismatch(f"{path}: what is kept there is no object any more: {error}") from error


def took_over(path: Path) -> None:
    """Note that it did, now."""
    with _opened(path, read_only=False) as pieces:
        found = _note(pieces) if pieces else None
        if pieces and found:
            pieces.put(0, _piece(_text(replace(found, since=time.time()))))


@contextmanager
def as_file(elf: bytes) -> Iterator[Path]:
    """An object in memory, under a path that libbpf can open."""
    fd = os.memfd_create("object")
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(elf)
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
