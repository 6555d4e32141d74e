"""libbpf's functions, through the library that bcc opens. The only module that imports bcc.

It gives prototypes and captures libbpf's log; what a failure means is for
others to say. bcc is imported at the first call: it maps LLVM, 70 MB of it.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, c_bool, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from bpf import errors
from bpf.errors import Unsupported

LOG_BYTES = 16 << 20  # the verifier's own maximum; pages are touched only when written
PATH = c_char_p
COUNT = POINTER(c_uint32)

_Prototypes = dict[str, tuple[Any, list[Any]]]
PROTOTYPES: _Prototypes = {
    "bpf_map_create": (c_int, [c_int, c_char_p, c_uint32, c_uint32, c_uint32, c_void_p]),
    "bpf_map_lookup_elem": (c_int, [c_int, c_void_p, c_void_p]),
    "bpf_map_update_elem": (c_int, [c_int, c_void_p, c_void_p, c_uint64]),
    "bpf_map_delete_elem": (c_int, [c_int, c_void_p]),
    "bpf_map_lookup_batch": (
        c_int,
        [c_int, c_void_p, c_void_p, c_void_p, c_void_p, COUNT, c_void_p],
    ),
    "bpf_map_update_batch": (c_int, [c_int, c_void_p, c_void_p, COUNT, c_void_p]),
    "bpf_map_delete_batch": (c_int, [c_int, c_void_p, COUNT, c_void_p]),
    "bpf_obj_pin": (c_int, [c_int, PATH]),
    "bpf_obj_get_opts": (c_int, [PATH, c_void_p]),
    "bpf_obj_get_info_by_fd": (c_int, [c_int, c_void_p, COUNT]),
    "bpf_prog_get_fd_by_id": (c_int, [c_uint32]),
    "bpf_prog_test_run_opts": (c_int, [c_int, c_void_p]),
    "bpf_link_create": (c_int, [c_int, c_int, c_int, c_void_p]),
    "bpf_link_update": (c_int, [c_int, c_int, c_void_p]),
    "bpf_link_detach": (c_int, [c_int]),
    "bpf_xdp_attach": (c_int, [c_int, c_int, c_uint32, c_void_p]),
    "bpf_xdp_detach": (c_int, [c_int, c_uint32, c_void_p]),
    "bpf_xdp_query": (c_int, [c_int, c_int, c_void_p]),
    "bpf_tc_hook_create": (c_int, [c_void_p]),
    "bpf_tc_hook_destroy": (c_int, [c_void_p]),
    "bpf_tc_attach": (c_int, [c_void_p, c_void_p]),
    "bpf_tc_detach": (c_int, [c_void_p, c_void_p]),
    "bpf_tc_query": (c_int, [c_void_p, c_void_p]),
    "bpf_object__open_file": (c_void_p, [PATH, c_void_p]),
    "bpf_object__load": (c_int, [c_void_p]),
    "bpf_object__close": (None, [c_void_p]),
    "bpf_object__next_map": (c_void_p, [c_void_p, c_void_p]),
    "bpf_object__find_map_by_name": (c_void_p, [c_void_p, c_char_p]),
    "bpf_object__find_program_by_name": (c_void_p, [c_void_p, c_char_p]),
    "bpf_program__set_autoload": (c_int, [c_void_p, c_bool]),
    "bpf_program__fd": (c_int, [c_void_p]),
    "bpf_map__name": (c_char_p, [c_void_p]),
    "bpf_map__fd": (c_int, [c_void_p]),
    "bpf_map__type": (c_int, [c_void_p]),
    "bpf_map__key_size": (c_uint32, [c_void_p]),
    "bpf_map__value_size": (c_uint32, [c_void_p]),
    "bpf_map__set_max_entries": (c_int, [c_void_p, c_uint32]),
    "bpf_map__reuse_fd": (c_int, [c_void_p, c_int]),
    "libbpf_num_possible_cpus": (c_int, []),
    "libbpf_set_print": (c_void_p, [c_void_p]),
}

Print = ctypes.CFUNCTYPE(c_int, c_int, c_void_p, c_void_p)


@cache
def lib() -> Any:  # noqa: ANN401 -- a library is what its functions are
    library = _bcc()
    for name, (result, arguments) in PROTOTYPES.items():
        function = getattr(library, name, None)
        if function is None:
            raise Unsupported(f"libbpf has no {name}: version 1.0 or later is needed")
        function.restype, function.argtypes = result, arguments
    library.libbpf_set_print(_print)
    return library


def _bcc() -> Any:  # noqa: ANN401
    try:
        from bcc import libbcc  # noqa: PLC0415 -- see the module's docstring
    except ModuleNotFoundError as error:
        raise Unsupported(
            "Python cannot import bcc: install python3-bpfcc, and run the distribution's Python"
            " or an environment made of it with --system-site-packages (PyPI's bcc is another)"
        ) from error
    return libbcc.lib


class _Log(threading.local):
    """Where a thread's messages go. Without a listener they are dropped, never printed."""

    lines: list[str] | None = None
    buffer: mmap.mmap | None = None


_log = _Log()


def _hear(_level: int, form: int, arguments: int) -> int:
    if _log.lines is not None:
        _log.lines.append(_formatted(form, arguments))
    return 0


_print = Print(_hear)


def _formatted(form: int, arguments: int) -> str:
    if _log.buffer is None:
        _log.buffer = mmap.mmap(-1, LOG_BYTES)
    target = ctypes.addressof(ctypes.c_char.from_buffer(_log.buffer))
    _vsnprintf()(target, LOG_BYTES, form, arguments)
    return ctypes.string_at(target).decode(errors="replace")


@cache
def _vsnprintf() -> Any:  # noqa: ANN401
    function = ctypes.CDLL(None).vsnprintf
    function.restype, function.argtypes = c_int, [c_void_p, c_size_t, c_void_p, c_void_p]
    return function


@contextmanager
def captured() -> Iterator[list[str]]:
    """What libbpf and the verifier say meanwhile."""
    lib()
    before, said = _log.lines, list[str]()
    _log.lines = said
    try:
        yield said
    finally:
        _log.lines = before


def memory(fd: int) -> int:
    """Bytes that the kernel says a map takes."""
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("memlock:")), 0)


# ---- options and answers, as bpf.h lays them out ----


class Options(ctypes.Structure):
    """libbpf's option structures start with their own size: 0 for fields we do not know."""

    def __init__(self, **fields: object) -> None:
        super().__init__(sz=ctypes.sizeof(self), **fields)


class MapCreateOptions(Options):
    _fields_ = (
        ("sz", c_size_t),
        ("btf_fd", c_uint32),
        ("btf_key_type_id", c_uint32),
        ("btf_value_type_id", c_uint32),
        ("btf_vmlinux_value_type_id", c_uint32),
        ("inner_map_fd", c_uint32),
        ("map_flags", c_uint32),
        ("map_extra", c_uint64),
        ("numa_node", c_uint32),
        ("map_ifindex", c_uint32),
    )


class BatchOptions(Options):
    _fields_ = (("sz", c_size_t), ("elem_flags", c_uint64), ("flags", c_uint64))


class GetOptions(Options):
    _fields_ = (("sz", c_size_t), ("file_flags", c_uint32), ("zero", c_uint32))


class LinkCreateOptions(Options):
    _fields_ = (
        ("sz", c_size_t),
        ("flags", c_uint32),
        ("iter_info", c_void_p),
        ("iter_info_len", c_uint32),
        ("target_btf_id", c_uint32),
    )


class LinkUpdateOptions(Options):
    _fields_ = (("sz", c_size_t), ("flags", c_uint32), ("old_prog_fd", c_uint32))


class TestRunOptions(Options):
    kept_alive: object  # what data_in and ctx_in point to
    retval: int
    duration: int
    data_size_out: int
    _fields_ = (
        ("sz", c_size_t),
        ("data_in", c_void_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_void_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    )


class XdpQueryOptions(Options):
    prog_id: int
    drv_prog_id: int
    hw_prog_id: int
    skb_prog_id: int
    _fields_ = (
        ("sz", c_size_t),
        ("prog_id", c_uint32),
        ("drv_prog_id", c_uint32),
        ("hw_prog_id", c_uint32),
        ("skb_prog_id", c_uint32),
        ("attach_mode", ctypes.c_uint8),
        ("zero", ctypes.c_uint8 * 7),
    )


class XdpMd(ctypes.Structure):
    """The program's context, for test runs."""

    _fields_ = (
        ("data", c_uint32),
        ("data_end", c_uint32),
        ("data_meta", c_uint32),
        ("ingress_ifindex", c_uint32),
        ("rx_queue_index", c_uint32),
        ("egress_ifindex", c_uint32),
    )


class SkBuff(ctypes.Structure):
    """Likewise of a traffic control program: struct __sk_buff, as far as it can be given."""

    _fields_ = (
        ("len", c_uint32),
        ("pkt_type", c_uint32),
        ("mark", c_uint32),
        ("rest", c_uint32 * 38),
        ("gso_segs", c_uint32),
        ("sk", c_uint64),
        ("gso_size", c_uint32),
        ("tail", c_uint32),
    )


class MapInfo(ctypes.Structure):
    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    map_flags: int
    name: bytes
    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("name", ctypes.c_char * 16),
    )


class LinkInfo(ctypes.Structure):
    type: int
    id: int
    prog_id: int
    ifindex: int
    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("prog_id", c_uint32),
        ("zero", c_uint32),
        ("ifindex", c_uint32),
        ("rest", c_uint32 * 5),
    )


class ProgInfo(ctypes.Structure):
    type: int
    id: int
    tag: ctypes.Array[ctypes.c_uint8]
    jited_prog_len: int
    xlated_prog_len: int
    name: bytes
    verified_insns: int
    nr_map_ids: int
    map_ids: int
    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", c_uint32),
        ("xlated_prog_len", c_uint32),
        ("jited_prog_insns", c_uint64),
        ("xlated_prog_insns", c_uint64),
        ("load_time", c_uint64),
        ("created_by_uid", c_uint32),
        ("nr_map_ids", c_uint32),
        ("map_ids", c_uint64),
        ("name", ctypes.c_char * 16),
        ("ifindex", c_uint32),
        ("gpl_compatible", c_uint32),
        ("netns_dev", c_uint64),
        ("netns_ino", c_uint64),
        ("nr_jited_ksyms", c_uint32),
        ("nr_jited_func_lens", c_uint32),
        ("jited_ksyms", c_uint64),
        ("jited_func_lens", c_uint64),
        ("btf_id", c_uint32),
        ("func_info_rec_size", c_uint32),
        ("func_info", c_uint64),
        ("nr_func_info", c_uint32),
        ("nr_line_info", c_uint32),
        ("line_info", c_uint64),
        ("jited_line_info", c_uint64),
        ("nr_jited_line_info", c_uint32),
        ("line_info_rec_size", c_uint32),
        ("jited_line_info_rec_size", c_uint32),
        ("nr_prog_tags", c_uint32),
        ("prog_tags", c_uint64),
        ("run_time_ns", c_uint64),
        ("run_cnt", c_uint64),
        ("recursion_misses", c_uint64),
        ("verified_insns", c_uint32),
        ("rest", c_uint32 * 3),
    )


Answer = TypeVar("Answer", MapInfo, LinkInfo, ProgInfo)


def info(fd: int, kind: type[Answer]) -> Answer:
    """What the kernel says about an object."""
    return ask(fd, kind())


def ask(fd: int, answer: Answer) -> Answer:
    """The same, where the question has to say where long answers are to be put."""
    size = c_uint32(ctypes.sizeof(answer))
    code = lib().bpf_obj_get_info_by_fd(fd, ctypes.byref(answer), ctypes.byref(size))
    if code < 0:
        raise errors.failed(f"file descriptor {fd}: asking what it is", code)
    return answer
