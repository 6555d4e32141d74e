"""XDP links: attach, recognise, update, detach.

A link belongs to an interface of one network namespace, but knows it by index
only; a pinned link outlives its interface, and then says index 0. Foreign
programs are named and left alone.
"""

from __future__ import annotations

import os
import socket
from ctypes import byref
from dataclasses import dataclass
from enum import StrEnum
from errno import EBUSY, EEXIST, EINVAL, ENODEV, ENOLINK, ENOMEM, EOPNOTSUPP, EPERM, ERANGE
from pathlib import Path

from bpf import errors, libbpf, program
from bpf.errors import Busy, KernelError
from bpf.libbpf import LinkCreateOptions, LinkInfo, LinkUpdateOptions, XdpQueryOptions
from bpf.pins import Pins, following
from bpf.tables import open_pin, pin

BPF_XDP = 37  # attach type
REPLACE = 1 << 2  # BPF_F_REPLACE
IF_NOEXIST, GENERIC, NATIVE = 1 << 0, 1 << 1, 1 << 2  # XDP_FLAGS_*
KERNEL_MESSAGE = "Kernel error message: "
NOT_A_MATTER_OF_MODE = frozenset({EBUSY, EEXIST, EPERM, ENODEV})


class Mode(StrEnum):
    AUTO = "auto"
    NATIVE = "native"
    GENERIC = "generic"


FLAGS = {Mode.NATIVE: NATIVE, Mode.GENERIC: GENERIC}
MEANING = {
    EOPNOTSUPP: "the driver has no XDP",
    ERANGE: "the MTU is too large for the driver's XDP buffers",
    EINVAL: "the driver refuses this configuration (MTU, queues or LRO)",
    ENOMEM: "the driver found no memory for its XDP queues",
}


@dataclass(frozen=True, slots=True)
class Attachment:
    """`reason` says why auto fell back to generic mode; empty if it did not."""

    interface: str
    ifindex: int
    mode: Mode
    reason: str = ""


class Refused(Exception):
    """The kernel said no to one mode."""

    def __init__(self, code: int) -> None:
        super().__init__(os.strerror(code))
        self.code = code


def index_of(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError as error:
        raise KernelError(
            f"interface {interface}: not in this network namespace; `ip link` lists those that are"
        ) from error


def name_of(ifindex: int) -> str:
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return ""


def running(ifindex: int) -> tuple[int, Mode]:
    """The id of the XDP program on an interface (0: none) and the mode it runs in."""
    answer = XdpQueryOptions()
    code = libbpf.lib().bpf_xdp_query(ifindex, 0, byref(answer))
    if code < 0:
        raise errors.failed(f"interface {ifindex}: asking for its XDP program", code)
    if answer.skb_prog_id:
        return answer.skb_prog_id, Mode.GENERIC
    return answer.drv_prog_id or answer.hw_prog_id or answer.prog_id, Mode.NATIVE


def attach(pins: Pins, fd: int, interface: str, mode: Mode) -> Attachment:
    """Attach, or find attached. Needs the lock: pins are looked at and then written."""
    ifindex = index_of(interface)
    refresh(pins)
    path = pins.link(interface)
    found = _found(path, interface, ifindex)
    if found and mode in (Mode.AUTO, found.mode):
        return found
    if found:
        detach(path)
    link, chosen, reason = _created(fd, interface, ifindex, mode)
    try:
        pin(link, path)
    finally:
        os.close(link)
    return Attachment(interface, ifindex, chosen, reason)


def refresh(pins: Pins) -> None:
    """Unpin links whose interface is gone; rename those whose interface was renamed."""
    known = [(name, link_info(pins.link(name))) for name in pins.interfaces()]
    for name, info in known:
        if info and not info.ifindex:
            pins.link(name).unlink(missing_ok=True)
    moved = {
        name: now for name, info in known if info and (now := _seen_as(info)) not in ("", name)
    }
    for name in moved:  # out of the way first: two may have swapped names
        pins.link(name).rename(following(pins.link(name)))
    for name, now in moved.items():
        following(pins.link(name)).rename(pins.link(now))


def _seen_as(info: LinkInfo) -> str:
    """Today's name of a link's interface; empty in another network namespace."""
    name = name_of(info.ifindex) if info.ifindex else ""
    return name if name and running(info.ifindex)[0] == info.prog_id else ""


def _found(path: Path, interface: str, ifindex: int) -> Attachment | None:
    known = link_info(path)
    if known is None:
        return None
    number, mode = running(ifindex)
    if known.ifindex != ifindex or number != known.prog_id:
        raise _elsewhere(interface, path)
    reason = "attached in generic mode by an earlier run" if mode is Mode.GENERIC else ""
    return Attachment(interface, ifindex, mode, reason)


def _elsewhere(interface: str, path: Path) -> Busy:
    return Busy(
        f"interface {interface}: {path} is the link of an interface in another network"
        " namespace; detach it there first, or use another instance name"
    )


def _created(fd: int, interface: str, ifindex: int, mode: Mode) -> tuple[int, Mode, str]:
    if mode is not Mode.AUTO:
        return _link(fd, interface, ifindex, mode), mode, ""
    try:
        return _create(fd, ifindex, Mode.NATIVE), Mode.NATIVE, ""
    except Refused as refused:
        if refused.code in NOT_A_MATTER_OF_MODE:
            raise _explained(interface, ifindex, Mode.NATIVE, refused.code, fd) from None
        reason = "native mode refused: " + _why(fd, ifindex, Mode.NATIVE, refused.code)
    return _link(fd, interface, ifindex, Mode.GENERIC), Mode.GENERIC, reason


def _link(fd: int, interface: str, ifindex: int, mode: Mode) -> int:
    try:
        return _create(fd, ifindex, mode)
    except Refused as refused:
        raise _explained(interface, ifindex, mode, refused.code, fd) from None


def _create(fd: int, ifindex: int, mode: Mode) -> int:
    options = LinkCreateOptions(flags=FLAGS[mode])
    link: int = libbpf.lib().bpf_link_create(fd, ifindex, BPF_XDP, byref(options))
    if link < 0:
        raise Refused(-link)
    return link


def _explained(interface: str, ifindex: int, mode: Mode, code: int, fd: int) -> KernelError:
    what = f"interface {interface}: attaching in {mode} mode"
    if code in (EBUSY, EEXIST):
        number, there = running(ifindex)
        return Busy(
            f"{what}: {program.describe(number) if number else 'another program'} is attached"
            f" there in {there} mode. Remove it (`ip link set dev {interface} xdp off`, or the"
            " service that owns it), or use another interface"
        )
    if code in NOT_A_MATTER_OF_MODE:
        return errors.failed(what, code)
    return errors.KernelError(f"{what}: {_why(fd, ifindex, mode, code)}. Try mode: generic")


def _why(fd: int, ifindex: int, mode: Mode, code: int) -> str:
    meaning = MEANING.get(code, os.strerror(code))
    said = _kernel_message(fd, ifindex, mode)
    return f"{meaning} ({os.strerror(code)}{f'; the kernel: {said}' if said else ''})"


def _kernel_message(fd: int, ifindex: int, mode: Mode) -> str:
    """Ask again over netlink, whose refusals come with a sentence."""
    flags, lib = FLAGS[mode], libbpf.lib()
    with libbpf.captured() as said:
        if lib.bpf_xdp_attach(ifindex, fd, flags | IF_NOEXIST, None) == 0:
            lib.bpf_xdp_detach(ifindex, flags, None)  # nobody asked for an unprotected one
    messages = [line for line in said if KERNEL_MESSAGE in line]
    return messages[-1].partition(KERNEL_MESSAGE)[2].strip() if messages else ""


# ---- what is pinned ----


def link_info(path: Path) -> LinkInfo | None:
    fd = open_pin(path)
    if fd is None:
        return None
    try:
        return libbpf.info(fd, LinkInfo)
    finally:
        os.close(fd)


def attachments(pins: Pins) -> list[Attachment]:
    """The living ones. The mode of one in another network namespace cannot be seen."""
    known = ((name, link_info(pins.link(name))) for name in pins.interfaces())
    return [_attachment(name, info) for name, info in known if info and info.ifindex]


def _attachment(interface: str, known: LinkInfo) -> Attachment:
    now = _seen_as(known)
    if not now:
        return Attachment(interface, known.ifindex, Mode.AUTO, "in another network namespace")
    return Attachment(now, known.ifindex, running(known.ifindex)[1])


def update(path: Path, new: int, old: int) -> None:
    """The new program in place of the old, between two packets."""
    fd = open_pin(path)
    if fd is None:
        return
    try:
        code = libbpf.lib().bpf_link_update(
            fd, new, byref(LinkUpdateOptions(flags=REPLACE, old_prog_fd=old))
        )
    finally:
        os.close(fd)
    if code == -ENOLINK:
        path.unlink()  # its interface is gone
    elif code < 0:
        raise errors.failed(f"{path}: replacing the program", code)


def detach(path: Path) -> None:
    """Detach, then unpin: unpinning alone would detach at a time of the kernel's choosing."""
    fd = open_pin(path)
    if fd is None:
        return
    try:
        code = libbpf.lib().bpf_link_detach(fd)
    finally:
        os.close(fd)
    if code not in (0, -ENOLINK):
        raise errors.failed(f"{path}: detaching", code)
    path.unlink(missing_ok=True)
