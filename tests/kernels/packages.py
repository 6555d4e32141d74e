"""Kernels as Debian's packages, unpacked into a cache. Installs nothing: the machine it runs on stays as it is.

apt gets a state of its own for each kernel, with the one suite in it that has this kernel.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path

META = "linux-image-cloud-amd64"  # it names the package of the newest build
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SUITES = {
    "5.10": "http://deb.debian.org/debian-security bullseye-security",
    "6.1": "http://deb.debian.org/debian-security bookworm-security",
    "6.12": "http://deb.debian.org/debian bookworm-backports",
}


class CannotRun(Exception):
    """What is missing here, and how to get it."""


@dataclass(frozen=True, slots=True)
class Kernel:
    name: str
    folder: Path  # its corner of the cache

    @property
    def root(self) -> Path:
        """What the package would put into /."""
        return self.folder / "root"

    @property
    def image(self) -> Path:
        return next(self.root.glob("boot/vmlinuz-*"))

    @property
    def release(self) -> str:
        return self.image.name.removeprefix("vmlinuz-")

    @property
    def modules(self) -> Path:
        return self.root / "lib/modules" / self.release


def kernel(name: str, cache: Path) -> Kernel:
    """From the cache, or fetched into it."""
    found = Kernel(name, cache / name)
    if not found.root.exists():
        _fetch(found)
    return found


def _fetch(wanted: Kernel) -> None:
    apt = Apt(wanted.folder.resolve() / "apt", SUITES[wanted.name])
    apt.run("apt-get", "update", "-qq")
    package = named_by(apt.run("apt-cache", "show", META))
    apt.run("apt-get", "download", "-qq", package)
    (archive,) = apt.folder.glob(f"{package}_*.deb")
    new = wanted.folder / "root.new"
    run("dpkg-deb", "--extract", str(archive), str(new))
    (release,) = (path.name for path in (new / "lib/modules").iterdir())
    run("depmod", "--basedir", str(new), release)
    archive.unlink()
    new.rename(wanted.root)


def named_by(description: str) -> str:
    """The package that the meta package of a suite depends on: the first in its description is the newest."""
    for line in description.splitlines():
        if line.startswith("Depends: "):
            return line.split()[1].rstrip(",")
    raise CannotRun(f"{META} names no kernel: {description!r}")


class Apt:
    def __init__(self, folder: Path, suite: str) -> None:
        self.folder = folder
        for name in ("lists/partial", "archives/partial"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "sources.list").write_text(f"deb [signed-by={KEYRING}] {suite} main\n")

    def run(self, *command: str) -> str:
        settings = {
            "Dir::Etc::sourcelist": self.folder / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State::lists": self.folder / "lists",
            "Dir::Cache": self.folder,
            "Acquire::Languages": "none",
            "APT::Sandbox::User": "root",  # the cache may be where no other user may look
        }
        options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        return run(command[0], *options, *command[1:], cwd=self.folder)


def run(*command: str, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    except FileNotFoundError as error:
        raise CannotRun(f"no {command[0]} here: sudo scripts/setup kernels") from error
    if done.returncode != 0:
        raise CannotRun(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
