"""A network namespace and the few things that tests do in one. Addresses and topology are the lab's business."""

import contextlib
import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
# /sys shows the network of whoever mounted it; a fresh one has no BPF file system, so ours moves there.
_OWN_SYS = """set -e
kept=$(mktemp -d)
mount --rbind /sys/fs/bpf "$kept"
mount -t sysfs sysfs /sys
mount --rbind "$kept" /sys/fs/bpf
umount -l "$kept"
rmdir "$kept"
exec "$@"
"""
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """Named so that `--clean` can tell whose it was; gone, with every process in it, after `delete`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._processes: list[subprocess.Popen[str]] = []
        run("ip", "netns", "add", name)
        self.fd = os.open(FOLDER / name, os.O_RDONLY | os.O_CLOEXEC)

    def run(self, *command: str, check: bool = True, timeout: float = 60) -> str:
        """The command's output. Not `ip netns exec`: that mounts /sys anew, without the BPF file system."""
        return run(*self.inside(*command), check=check, timeout=timeout)

    def ip(self, script: str) -> None:
        """One `ip` command a line, all in one process."""
        run("ip", "-n", self.name, "-batch", "-", stdin=script)

    def sysctl(self, *settings: str) -> None:
        """Settings as `name=value`: as sysctl would, but without a process for it."""
        with self.entered():
            for setting in settings:
                name, _, value = setting.partition("=")
                Path("/proc/sys", *name.split(".")).write_text(value, encoding="ascii")

    def spawn(self, *command: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """A process in here that ends with the namespace."""
        process = subprocess.Popen(
            self.inside(*command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
            start_new_session=True,  # Ctrl-C is for whoever started us; we end them
        )
        self._processes.append(process)
        return process

    @property
    def running(self) -> list[subprocess.Popen[str]]:
        """What was spawned and has not ended."""
        return [process for process in self._processes if process.poll() is None]

    def inside(self, *command: str) -> tuple[str, ...]:
        return ("nsenter", f"--net={FOLDER / self.name}", "--", *command)

    def seeing(self, *command: str) -> tuple[str, ...]:
        """The same with a /sys that shows this namespace's interfaces, and the BPF file system in it."""
        return self.inside("unshare", "--mount", "sh", "-c", _OWN_SYS, "sh", *command)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is in here meanwhile; sockets opened now stay in here for ever."""
        with Path(f"/proc/self/task/{threading.get_native_id()}/ns/net").open("rb") as before:
            _setns(self.fd)
            try:
                yield
            finally:
                _setns(before.fileno())

    def socket(self, family: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
        with self.entered():
            return socket.socket(family, kind)

    def ifindex(self, interface: str) -> int:
        with self.entered():
            return socket.if_nametoindex(interface)

    def mac(self, interface: str) -> bytes:
        with self.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as s:
            s.bind((interface, 0))
            address: bytes = s.getsockname()[4]
            return address

    def delete(self) -> None:
        for process in self._processes:
            end(process)
        self._processes.clear()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            kill_everything_in(self.name)
            run("ip", "netns", "delete", self.name, check=False)


def end(process: subprocess.Popen[str]) -> None:
    """Kill it, collect it and close its pipes."""
    process.kill()
    process.wait(10)
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()


def kill_everything_in(name: str) -> None:
    """A process left behind would keep the namespace and its links alive, nameless."""
    for pid in run("ip", "netns", "pids", name, check=False).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), 9)


def run(*command: str, check: bool = True, timeout: float = 60, stdin: str = "") -> str:
    result = subprocess.run(
        command, input=stdin, capture_output=True, text=True, check=False, timeout=timeout
    )
    if check and result.returncode != 0:
        said = (result.stderr or result.stdout).strip()
        raise RuntimeError(f"{' '.join(command)}: exit code {result.returncode}: {said}")
    return result.stdout


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"setns: {os.strerror(error)}")
