"""How a daemon runs where it is installed, read from its unit: as which user, with which capabilities and directories.

The unit is the only truth: what it takes away, these tests run without. The users are numbers that /etc/passwd need
not know; where the package is installed they are its users. Of the sandbox around them nothing is here: for that,
tests/e2e/package runs the units by systemd.
"""

import atexit
import compileall
import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bpf import pins
from reconciler.privilege import act_as_owner
from tests.support.acting import Capability, T, done_by

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "packaging/systemd"
_USERS = {"evenkeel": 64801, "evenkeel-healthcheck": 64802}
_GROUPS = {"evenkeel": 64800}
# A repository in root's home is nobody else's to read: there it is mounted once more, for one process, elsewhere.
_MOUNTED = 'mount --bind "$0" "$1" && cd "$1" && shift && exec "$@"'


@dataclass(frozen=True, slots=True)
class Unit:
    """What one unit says, as far as it can be had without systemd."""

    daemon: str
    settings: dict[str, str]

    @property
    def uid(self) -> int:
        return _users()[self.settings["User"]]

    @property
    def gid(self) -> int:
        return _groups()[self.settings["Group"]]

    @property
    def umask(self) -> int:
        return int(self.settings["UMask"], 8)

    def mode(self, directory: str) -> int:
        """Of RuntimeDirectory or StateDirectory."""
        return int(self.settings[f"{directory}Mode"], 8)

    def own(self, folder: Path, mode: int) -> None:
        """As systemd makes it before a start; its files too, if it was somebody else's."""
        folder.mkdir(exist_ok=True)
        if folder.stat().st_uid != self.uid:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, self.uid, self.gid)
        folder.chmod(mode)

    def command(self, *arguments: str) -> tuple[str, ...]:
        """The daemon with these, as this unit's user and with its capabilities: no other, and none to be had."""
        return self.python("-m", self.daemon, *arguments)

    def python(self, *arguments: str) -> tuple[str, ...]:
        """The same for something of the tests' own, which calls parts of the daemon."""
        places_for_others()
        return from_a_readable_place(self.privileges(), *arguments)

    def doing(self, what: Callable[[], T]) -> T:
        """What comes of it when this unit's user does it, in a thread, with its capabilities.

        In a clone that is in somebody's closed home, also with one to read the code there.
        """
        places_for_others()
        reading = () if _open_to_others(ROOT) else (Capability.CAP_DAC_READ_SEARCH,)
        return done_by(self.uid, self.gid, {*self.capabilities, *reading}, what)

    @property
    def capabilities(self) -> frozenset[Capability]:
        return frozenset(Capability[name] for name in self.settings["AmbientCapabilities"].split())

    def privileges(self) -> tuple[str, ...]:
        """What makes a command run as the unit has it; as root with few capabilities if it names no user."""
        assert self.settings["NoNewPrivileges"] == "yes"
        bounded = ("--bounding-set", _only(self.settings["CapabilityBoundingSet"]))
        if "User" not in self.settings:
            return ("setpriv", *bounded, "--no-new-privs")
        user = ("--reuid", str(self.uid), "--regid", str(self.gid), "--clear-groups")
        given = _only(self.settings["AmbientCapabilities"])
        return (
            "setpriv", *user, *bounded, "--inh-caps", given, "--ambient-caps", given, "--no-new-privs",
        )  # fmt: skip


@cache
def unit(daemon: str) -> Unit:
    return unit_at(FOLDER / f"evenkeel-{daemon}.service", daemon)


def unit_at(path: Path, daemon: str) -> Unit:
    return Unit(daemon, dict(re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE)))


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """For what daemons read: those that pytest makes are for root alone."""
    with tempfile.TemporaryDirectory(prefix="ek-open-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


def owned_by(folder: Path) -> None:
    """For the rest of this process, the pins are this folder's owner's: whom commands act as that root calls.

    Their own directory is shared by all suites on a machine, and root's.
    """
    act_as_owner.__defaults__ = (folder,)


@cache
def places_for_others() -> None:
    """Once a process: all users may come to the pins, ours may make some, and the code is compiled already.

    The pins' directory stays root's: another suite's commands go on acting as root. Sticky: nobody removes another's.
    """
    pins.mounted()
    if not pins.BPFFS.stat().st_mode & 0o001:
        pins.BPFFS.chmod(0o711)  # as our tmpfiles.d has it; systemd mounts it 0700
    if pins.ROOT.stat().st_uid == 0:
        os.chown(pins.ROOT, 0, _groups()["evenkeel"])
        pins.ROOT.chmod(0o1775)
    for name in ("bpf", "healthcheck", "readiness", "reconciler"):
        compileall.compile_dir(ROOT / name, quiet=2)


def from_a_readable_place(wrapper: tuple[str, ...], *arguments: str) -> tuple[str, ...]:
    """Python with these arguments, by a wrapper that makes it another user, who has to be able to read the code."""
    if _open_to_others(ROOT):
        return (*wrapper, sys.executable, *arguments)
    elsewhere = _elsewhere()
    python = elsewhere / Path(sys.executable).relative_to(ROOT)
    mounted = ("unshare", "--mount", "sh", "-c", _MOUNTED, str(ROOT), str(elsewhere))
    return (*mounted, *wrapper, str(python), *arguments)


@cache
def _users() -> dict[str, int]:
    owner = _owner()
    return _USERS | ({"evenkeel": owner.st_uid} if owner else {})


@cache
def _groups() -> dict[str, int]:
    owner = _owner()
    return {"evenkeel": owner.st_gid} if owner else _GROUPS


def _owner() -> os.stat_result | None:
    """Whose the pins are where the package is installed: nobody else could make some there."""
    if not pins.ROOT.exists() or pins.ROOT.stat().st_uid == 0:
        return None
    return pins.ROOT.stat()


def _open_to_others(folder: Path) -> bool:
    return all(path.stat().st_mode & 0o001 for path in (folder, *folder.parents))


@cache
def _elsewhere() -> Path:
    folder = tempfile.mkdtemp(prefix="ek-repository-")
    Path(folder).chmod(0o755)
    atexit.register(_gone, Path(folder))
    return Path(folder)


def _gone(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _only(names: str) -> str:
    """setpriv's words for these capabilities and no others."""
    short = [name.removeprefix("CAP_").lower() for name in names.split()]
    return ",".join(["-all", *(f"+{name}" for name in short)])
