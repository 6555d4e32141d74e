"""The object file: open it, give its maps sizes or what is pinned, load it, test-run it.

Pins, links and what the maps say are the business of others.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from bpf import errors, libbpf, mapset, objects
from bpf.errors import AbiMismatch, KernelError
from bpf.libbpf import ProgInfo, TestRunOptions, XdpMd
from bpf.mapset import Sizes

PROGRAM, SWEEP = b"lb", b"sweep"
DATA = ".data."  # sections of the program's data are maps, too
INSTRUCTION = 8  # bytes
MAPS = 64  # that a program uses, at most: as many as the kernel allows
GROWTH = 256  # what a test run may add to a frame
LIVE_FRAMES = 1 << 1  # BPF_F_TEST_XDP_LIVE_FRAMES


class Action(IntEnum):
    ABORTED = 0
    DROP = 1
    PASS = 2
    TX = 3
    REDIRECT = 4


@dataclass(frozen=True, slots=True)
class Run:
    """What the program did with a frame; `duration` in ns, the mean over the repeats."""

    action: Action
    frame: bytes
    duration: int


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """A loaded program: instructions that the verifier walked, and that the kernel runs."""

    id: int
    name: str
    tag: str
    verified: int
    translated: int
    jited_bytes: int

    def __str__(self) -> str:
        return f"program {self.name or '?'} (id {self.id}, tag {self.tag})"


@dataclass(frozen=True, slots=True)
class Loaded:
    """File descriptors of a loaded object, owned by whoever asked for it. sweep: -1 if none."""

    program: int
    sweep: int
    maps: dict[str, int]


@dataclass(frozen=True, slots=True)
class SkbRun:
    """What a traffic control program did with a frame; `code` is one of TC_ACT_*."""

    code: int
    frame: bytes


def default_object() -> Path:
    """EVENKEEL_OBJECT, else the one beside this package, else the one that `make` builds."""
    if chosen := os.environ.get(objects.OBJECT):
        return Path(chosen)
    return objects.beside("lb.bpf.o")


def load(
    path: Path, sizes: Sizes, reuse: Mapping[str, int], log: Callable[[str], None] | None = None
) -> Loaded:
    """Load the object over the maps of `reuse`, making the others.

    A kernel that cannot load the sweep gets the program alone.
    """
    try:
        return _load(path, sizes, reuse, sweep=True)
    except KernelError as error:
        try:
            loaded = _load(path, sizes, reuse, sweep=False)
        except KernelError:
            raise error from None
        if log:
            log(f"no sweep in the kernel: {error}")
        return loaded


def _load(path: Path, sizes: Sizes, reuse: Mapping[str, int], *, sweep: bool) -> Loaded:
    with libbpf.captured() as said, objects.opened(path, said) as handle:
        _prepare(handle, path, sizes, reuse)
        lib = libbpf.lib()
        second = lib.bpf_object__find_program_by_name(handle, SWEEP)
        if second and not sweep:
            lib.bpf_program__set_autoload(second, False)
        code = lib.bpf_object__load(handle)
        if code < 0:
            raise errors.failed(f"{path}: loading", code, said)
        return _kept(handle, path, with_sweep=bool(second) and sweep)


def _maps(handle: int) -> Iterator[tuple[str, int]]:
    """The maps of the contract. Any other is the program's own: made anew with it, pinned nowhere."""
    lib, found, known = libbpf.lib(), None, set(mapset.names())
    while found := lib.bpf_object__next_map(handle, found):
        name = lib.bpf_map__name(found).decode().removeprefix(DATA)
        if name in known:
            yield name, found


def _prepare(handle: int, path: Path, sizes: Sizes, reuse: Mapping[str, int]) -> None:
    lib, maps = libbpf.lib(), dict(_maps(handle))
    _check_names(path, set(maps))
    for name, found in maps.items():
        shape = lib.bpf_map__key_size(found), lib.bpf_map__value_size(found)
        check_shape(f"{path}: map {name}", name, shape, "build the object anew (`make build`)")
        entries = sizes.of(name)
        if name in reuse:
            lib.bpf_map__reuse_fd(found, reuse[name])
        elif entries is not None:
            lib.bpf_map__set_max_entries(found, entries)


def _check_names(path: Path, found: set[str]) -> None:
    if missing := set(mapset.names()) - found:
        raise AbiMismatch(
            f"{path}: has no map {', '.join(sorted(missing))}; object and Python are of different"
            " versions, build or install both anew"
        )


def check_shape(what: str, name: str, found: tuple[int, int], remedy: str) -> None:
    """Whether keys and values are as long as Python takes them to be."""
    wanted = mapset.sizes(name)
    if found != wanted:
        raise AbiMismatch(
            f"{what}: keys and values of {found[0]} and {found[1]} bytes, but this version"
            f" has {wanted[0]} and {wanted[1]}; {remedy}"
        )


def _kept(handle: int, path: Path, *, with_sweep: bool) -> Loaded:
    """Descriptors of our own: the object's close with it."""
    lib = libbpf.lib()
    program = lib.bpf_object__find_program_by_name(handle, PROGRAM)
    if not program:
        raise KernelError(f"{path}: no program {PROGRAM.decode()} in it; build it anew")
    sweep = lib.bpf_object__find_program_by_name(handle, SWEEP) if with_sweep else None
    maps = {name: os.dup(lib.bpf_map__fd(found)) for name, found in _maps(handle)}
    return Loaded(
        os.dup(lib.bpf_program__fd(program)),
        os.dup(lib.bpf_program__fd(sweep)) if sweep else -1,
        maps,
    )


def info(fd: int) -> ProgramInfo:
    found = libbpf.info(fd, ProgInfo)
    return ProgramInfo(
        found.id,
        found.name.decode(),
        bytes(found.tag).hex(),
        found.verified_insns,
        found.xlated_prog_len // INSTRUCTION,
        found.jited_prog_len,
    )


def map_ids(fd: int) -> set[int]:
    """Of the maps that a program uses."""
    ids = (ctypes.c_uint32 * MAPS)()
    asked = ProgInfo(nr_map_ids=MAPS, map_ids=ctypes.addressof(ids))
    found = libbpf.ask(fd, asked)
    return set(ids[: found.nr_map_ids])


def describe(number: int) -> str:
    """A program by its id, as far as the privilege to look at it goes."""
    fd = libbpf.lib().bpf_prog_get_fd_by_id(number)
    if fd < 0:
        return f"program id {number}"
    try:
        return str(info(fd))
    finally:
        os.close(fd)


def run(fd: int, frame: bytes, *, ifindex: int, repeat: int) -> Run:
    """BPF_PROG_TEST_RUN of one frame, which is at least an Ethernet header long."""
    out = ctypes.create_string_buffer(len(frame) + GROWTH)
    options = _test(frame, ifindex, repeat=repeat)
    options.data_out = ctypes.addressof(out)
    options.data_size_out = len(out)
    objects.run(fd, options, f"a test run of {len(frame)} bytes")
    return Run(Action(options.retval), out.raw[: options.data_size_out], options.duration)


def run_live(fd: int, frame: bytes, *, ifindex: int, repeat: int, batch: int) -> int:
    """Frames that really leave; the mean time for one in ns."""
    options = _test(frame, ifindex, repeat=repeat, flags=LIVE_FRAMES, batch_size=batch)
    objects.run(fd, options, f"{repeat} live frames from interface {ifindex}")
    return int(options.duration)


def run_skb(fd: int, frame: bytes, *, mark: int = 0, gso_size: int = 0, flags: int = 0) -> SkbRun:
    """BPF_PROG_TEST_RUN of one frame in a socket buffer."""
    out = ctypes.create_string_buffer(len(frame) + GROWTH)
    context = libbpf.SkBuff(mark=mark, gso_size=gso_size, gso_segs=2 if gso_size else 0)
    options = TestRunOptions(
        data_in=ctypes.cast(ctypes.c_char_p(frame), ctypes.c_void_p),
        data_size_in=len(frame),
        data_out=ctypes.addressof(out),
        data_size_out=len(out),
        ctx_in=ctypes.addressof(context),
        ctx_size_in=ctypes.sizeof(context),
        flags=flags,
    )
    objects.run(fd, options, f"a test run of {len(frame)} bytes")
    code = ctypes.c_int32(options.retval).value
    return SkbRun(code, out.raw[: options.data_size_out])


def _test(frame: bytes, ifindex: int, **options: int) -> TestRunOptions:
    context = XdpMd(data_end=len(frame), ingress_ifindex=ifindex)
    options_ = TestRunOptions(
        data_in=ctypes.cast(ctypes.c_char_p(frame), ctypes.c_void_p),
        data_size_in=len(frame),
        ctx_in=ctypes.addressof(context),
        ctx_size_in=ctypes.sizeof(context),
        **options,
    )
    options_.kept_alive = (frame, context)
    return options_
