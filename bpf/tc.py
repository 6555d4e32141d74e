"""Traffic control: our programs on the way in and out of an interface, as clsact filters.

A filter outlives the process, like a pin, but anybody may take it away: whoever
wants it looks again. Every kernel since 4.5 has clsact where it was compiled in; the
newer tcx links would need 6.6. Which programs, and why, is not decided here.
"""

from __future__ import annotations

import socket
import struct
from ctypes import byref, c_int, c_size_t, c_uint32
from enum import IntEnum
from errno import EEXIST, EINVAL, ENODEV, ENOENT, EOPNOTSUPP

from bpf import errors, libbpf
from bpf.errors import Busy, KernelError, Unsupported

HANDLE, PRIORITY = (
    0x766961,
    1,
)  # "via"; before everybody else's: who ends the chain would end it for us
REPLACE = 1  # BPF_TC_F_REPLACE
_LACKING = (ENOENT, EOPNOTSUPP)  # kinds of qdisc or filter that the kernel does not know
_GONE = (ENOENT, EINVAL, ENODEV)
LACKED = "clsact or cls_bpf (CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_BPF)"
REMEDY = "Load them (`modprobe sch_ingress`, `modprobe cls_bpf`), or check without it"
_GETTFILTER, _NEWTFILTER, _ERROR, _DONE = 46, 44, 2, 3
_REQUEST_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_HEADER = struct.Struct("=IHHII")
_TCMSG = struct.Struct("=BxxxiIII")


class Way(IntEnum):
    """libbpf's attach points."""

    IN = 1
    OUT = 2


_PARENT = {Way.IN: 0xFFFFFFF2, Way.OUT: 0xFFFFFFF3}  # of filters in the kernel


class Hook(libbpf.Options):
    _fields_ = (
        ("sz", c_size_t),
        ("ifindex", c_int),
        ("attach_point", c_int),
        ("parent", c_uint32),
        ("zero", c_uint32),
    )


class Filter(libbpf.Options):
    prog_id: int
    _fields_ = (
        ("sz", c_size_t),
        ("prog_fd", c_int),
        ("flags", c_uint32),
        ("prog_id", c_uint32),
        ("handle", c_uint32),
        ("priority", c_uint32),
        ("zero", c_uint32),
    )


def running(ifindex: int, way: Way) -> int:
    """The id of the program in our place; 0: none."""
    hook, found = _hook(ifindex, way), Filter(handle=HANDLE, priority=PRIORITY)
    with libbpf.captured():
        code = libbpf.lib().bpf_tc_query(byref(hook), byref(found))
    return found.prog_id if code == 0 else 0


def attach(interface: str, ifindex: int, way: Way, program: int) -> None:
    """Put the program there; in place of the one before, between two packets."""
    what = f"interface {interface}: a filter on the way {way.name.lower()}"
    with libbpf.captured() as said:
        code = libbpf.lib().bpf_tc_hook_create(byref(_hook(ifindex, Way.IN | Way.OUT)))
        if code in (0, -EEXIST):
            wanted = Filter(prog_fd=program, flags=REPLACE, handle=HANDLE, priority=PRIORITY)
            code = libbpf.lib().bpf_tc_attach(byref(_hook(ifindex, way)), byref(wanted))
    if -code in _LACKING:
        raise Unsupported(
            f"{what}: this kernel has no {LACKED}, which checks with `via: service` need."
            f" {REMEDY}{_tail(said)}"
        )
    if code in (-EEXIST, -EINVAL):
        raise Busy(
            f"{what}: priority {PRIORITY} is another kind of filter's. Give that one another"
            f" (`tc filter show dev {interface} {_direction(way)}`){_tail(said)}"
        )
    if code < 0:
        raise errors.failed(what, code, said)


def detach(ifindex: int, way: Way) -> None:
    """Take ours away, and clsact too once nobody's filter is left."""
    gone = Filter(handle=HANDLE, priority=PRIORITY)
    with libbpf.captured() as said:
        code = libbpf.lib().bpf_tc_detach(byref(_hook(ifindex, way)), byref(gone))
        if code < 0 and -code not in _GONE:
            raise errors.failed(f"interface {ifindex}: removing a filter", code, said)
        if not any(_filters(ifindex, one) for one in Way):
            libbpf.lib().bpf_tc_hook_destroy(byref(_hook(ifindex, Way.IN | Way.OUT)))


def _hook(ifindex: int, way: int) -> Hook:
    return Hook(ifindex=ifindex, attach_point=int(way))


def _direction(way: Way) -> str:
    return "ingress" if way is Way.IN else "egress"


def _tail(said: list[str]) -> str:
    return "".join(f"\n  {line.strip()}" for line in said if "Kernel error message" in line)


def _filters(ifindex: int, way: Way) -> bool:
    """Whether there is any: libbpf can only ask for one that it knows."""
    request = _TCMSG.pack(socket.AF_UNSPEC, ifindex, 0, _PARENT[way], 0)
    size = _HEADER.size + len(request)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.send(_HEADER.pack(size, _GETTFILTER, _REQUEST_DUMP, 1, 0) + request)
        while True:
            for kind in _kinds(netlink.recv(1 << 16)):
                if kind == _NEWTFILTER:
                    return True
                if kind in (_DONE, _ERROR):
                    return False


def _kinds(answer: bytes) -> list[int]:
    kinds, at = [], 0
    while at + _HEADER.size <= len(answer):
        size, kind, *_ = _HEADER.unpack_from(answer, at)
        kinds.append(kind)
        at += max(-(-size // 4) * 4, _HEADER.size)
    return kinds


def interfaces() -> dict[str, int]:
    """All of this network namespace."""
    return {name: index for index, name in socket.if_nameindex()}


__all__ = ["Busy", "KernelError", "Unsupported", "Way", "attach", "detach", "interfaces", "running"]
