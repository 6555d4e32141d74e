"""A machine on which the Debian package is installed, run by a real systemd: the host's files, and nothing of ours.

Its files are an overlay over the host's, in memory; its processes, mounts and cgroups are its own; its network is a
namespace of a lab. The repository, compilers and what pip installed are out of its sight, so what runs is the package.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Self

from tests.support.lab import ROOT
from tests.support.namespace import Namespace
from tests.support.wait import until

SCRIPT = Path(__file__).with_name("machine.sh")
NEW = ("--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--cgroup")


class Machine(contextlib.ExitStack):
    def __init__(self, network: Namespace, package: Path) -> None:
        super().__init__()
        self._network, self._package = network, package

    def __enter__(self) -> Self:
        super().__enter__()
        with contextlib.ExitStack() as undo:
            undo.push(self.__exit__)
            self._boot()
            undo.pop_all()
        return self

    def _boot(self) -> None:
        folder = Path(self.enter_context(tempfile.TemporaryDirectory(prefix="evenkeel-machine")))
        self._console = self.enter_context((folder.with_suffix(".console")).open("w+"))
        self.callback(Path(self._console.name).unlink)
        group = _Cgroup(f"evenkeel-test-{os.getpid()}")
        self.callback(group.remove)
        start = ("sh", "-c", f'echo $$ >{group.path}/cgroup.procs && exec "$@"', "sh")
        inside = ("unshare", *NEW, "sh", str(SCRIPT), str(folder), str(ROOT), str(self._package))
        self._process = subprocess.Popen(
            (*start, *self._network.inside(*inside)),
            stdin=subprocess.DEVNULL, stdout=self._console, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.callback(self._end)
        until(self._is_up, 60, what="a booted machine", interval=0.1)

    def _end(self) -> None:
        self._process.kill()  # and with unshare, for which --kill-child is, all that it made
        self._process.wait(15)

    @property
    def console(self) -> str:
        return Path(self._console.name).read_text(errors="replace")

    def _is_up(self) -> bool:
        if self._process.poll() is not None:
            raise RuntimeError(f"the machine did not start:\n{self.console}")
        if self._init is None or Path(f"/proc/{self._init}/comm").read_text() != "systemd\n":
            return False
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in {"running", "degraded"}

    @property
    def _init(self) -> int | None:
        """Its process 1, by its number here."""
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0]) if children else None

    # ---- as its operator

    def run(
        self, *command: str, check: bool = True, stdin: str = "", as_user: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """The command, in the machine; by root unless another is named."""
        assert self._init is not None
        other = ("runuser", "--user", as_user, "--") if as_user else ()
        done = subprocess.run(
            ("nsenter", "--all", "--root", "--wd", "--target", str(self._init), "--", *other, *command),
            input=stdin, capture_output=True, text=True, check=False, timeout=120,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"},
        )  # fmt: skip
        if check and done.returncode != 0:
            raise RuntimeError(
                f"{' '.join(command)}: {done.returncode}: {done.stderr or done.stdout}"
            )
        return done

    def write(self, path: str, text: str) -> None:
        """In one step, as deployments do."""
        self.run(
            "sh",
            "-c",
            'mkdir -p "$(dirname "$0")" && cat >"$0.new" && mv "$0.new" "$0"',
            path,
            stdin=text,
        )

    def put(self, path: str, data: bytes) -> None:
        """A file that is no text, in the place that this machine sees under the name."""
        assert self._init is not None
        Path(f"/proc/{self._init}/root{path}").write_bytes(data)

    def show(self, unit: str, name: str) -> str:
        """What systemd says of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def kill(self, unit: str, how: signal.Signals) -> None:
        self.run("systemctl", "kill", f"--signal={how.value}", unit)

    def journal(self, unit: str) -> str:
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}").stdout


class _Cgroup:
    """Systemd wants one whose root it is; what it makes in there has to be removed when it is dead."""

    def __init__(self, name: str) -> None:
        mounted = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
        self.path = Path(next(line[1] for line in mounted if line[2] == "cgroup2")) / name
        self.path.mkdir()

    def remove(self) -> None:
        def gone() -> bool:
            for folder in sorted(self.path.rglob("*/"), reverse=True):
                with contextlib.suppress(OSError):  # processes take a moment to die
                    folder.rmdir()
            with contextlib.suppress(OSError):
                self.path.rmdir()
            return not self.path.exists()

        until(gone, 15, what="the end of the machine's processes")


def package() -> Path:
    """The newest that `make deb` can make; built when it is not there or older than its sources."""
    made = next(iter(sorted(ROOT.glob("dist/*.deb"))), None)
    newest = max(path.stat().st_mtime for path in _sources())
    if made is None or made.stat().st_mtime < newest:
        shutil.rmtree(ROOT / "dist", ignore_errors=True)
        subprocess.run(("make", "--silent", "deb"), cwd=ROOT, check=True, capture_output=True)
    return next(iter(sorted(ROOT.glob("dist/*.deb"))))


def next_version(package: Path, folder: Path, program: Path) -> Path:
    """The same with another program in it, and a greater number."""
    tree, made = folder / "tree", folder / "next.deb"
    _quietly("dpkg-deb", "--raw-extract", str(package), str(tree))
    shutil.copy(program, tree / "usr/lib/evenkeel/bpf/lb.bpf.o")
    control = tree / "DEBIAN/control"
    control.write_text(
        re.sub("^Version: (.*)$", r"Version: \1+next", control.read_text(), flags=re.MULTILINE)
    )
    _quietly("dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(made))
    return made


def _quietly(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _sources() -> list[Path]:
    folders = (
        "bpf",
        "healthcheck",
        "readiness",
        "reconciler",
        "schemas",
        "packaging",
        "libexec",
        "docs",
        "examples",
    )
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [ROOT / "pyproject.toml", *(path for path in files if "__pycache__" not in path.parts)]
