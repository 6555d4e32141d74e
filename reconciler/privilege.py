"""Whose the files are that we make, and what those may do whom we start. Gives up nothing that this process needs.

The daemon runs as a user of its own and commands as root, over the same files and pins. What root's commands made
would be root's, and the daemon could neither replace nor remove it: so they act as the daemon's user.
"""

import ctypes
import os
import pwd
from pathlib import Path

from bpf.pins import ROOT

_VERSION = 0x20080522  # of capset's structures: 64 bits in two halves
KEEP_CAPABILITIES = 8  # of prctl
_AMBIENT, _CLEAR_ALL = 47, 4
_ALL = (1 << 64) - 1


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Half(ctypes.Structure):
    effective: int
    permitted: int
    inheritable: int
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def act_as_owner(folder: Path = ROOT) -> None:
    """Root, where the pins are another user's: their user and group from now on, with all capabilities."""
    try:
        owner = folder.stat()
    except OSError:
        return  # nothing is there that could be anybody's
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    os.environ.setdefault("LOGNAME", "root")  # who suspends or overrides is told by this
    _libc().prctl(KEEP_CAPABILITIES, 1, 0, 0, 0)
    try:
        os.setresgid(owner.st_gid, owner.st_gid, owner.st_gid)
        os.setresuid(owner.st_uid, owner.st_uid, owner.st_uid)
    except PermissionError as error:
        raise PermissionError(
            f"{folder} is uid {owner.st_uid}'s, as whom root has to act here, and may not:"
            " CAP_SETUID and CAP_SETGID are missing (CapabilityBoundingSet= of a unit takes them away)"
        ) from error
    keep_effective()
    try:
        os.environ["HOME"] = pwd.getpwuid(owner.st_uid).pw_dir  # where git's ssh finds its keys
    except KeyError:
        os.environ.pop("HOME", None)


def keep_to_ourselves() -> None:
    """Capabilities that the unit gives us are not for git and ssh, which we start."""
    _libc().prctl(_AMBIENT, _CLEAR_ALL, 0, 0, 0)


def keep_effective(mask: int = _ALL) -> None:
    """Of what this thread is permitted it keeps these, and they are effective again: leaving uid 0 has lowered them."""
    header, halves = _Header(_VERSION, 0), (_Half * 2)()
    _libc().capget(ctypes.byref(header), halves)
    for number, half in enumerate(halves):
        half.permitted &= (mask >> 32 * number) & 0xFFFFFFFF
        half.effective = half.permitted
    if _libc().capset(ctypes.byref(header), halves) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"capset: {os.strerror(code)}")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
