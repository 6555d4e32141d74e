"""One boot of a kernel, over this machine's own files: read-only by virtiofs, with memory over them for what is written.

So Python, the clone and its .venv are the same in there. Two serial ports are all that comes out: what is printed,
and the report. Emulated, which works wherever this does:
20 to 30 times slower than here, and polite to others (nice).
"""

import contextlib
import lzma
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.kernels.packages import CannotRun, Kernel, run
from tests.support.wait import until

HERE = Path(__file__).parent
VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")
MODULES = ("virtio_pci", "virtiofs", "overlay")  # what / needs, where it is not built in
MEMORY = "2048M"
BOOT, BOOTS = 120, 3  # seconds, and times: an emulated boot hangs now and then
STARTED = "== the job has started"
REPORT = "/run/report"  # in there, where the command writes it
# cmpxchg16b of QEMU 7.2's emulation is wrong: with it, 6.12 faulted in two boots of ten.
MACHINE = (
    "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-smp", "2",
    "-accel", "tcg", "-cpu", "max,-cx16",
    "-m", MEMORY, "-object", f"memory-backend-memfd,id=memory,size={MEMORY},share=on",
    "-machine", "q35,memory-backend=memory",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """Where to find what came out."""

    console: Path
    report: Path


def execute(kernel: Kernel, command: tuple[str, ...], timeout: float) -> Run:
    """Boots, runs the command in the clone's root, and powers off. What it leaves at REPORT comes out, too."""
    done = Run(kernel.folder / "console", kernel.folder / "report")
    done.console.write_text("")
    job = kernel.folder / "job.sh"
    job.write_text(_job(kernel, command))
    for _ in range(BOOTS):
        with contextlib.suppress(TimeoutError):
            _once(kernel, job, done, timeout)
            break
    return done


def _once(kernel: Kernel, job: Path, done: Run, timeout: float) -> None:
    with tempfile.TemporaryDirectory(prefix="ek-vm-") as folder, _files(Path(folder)) as socket:
        _boot(_qemu(kernel, _initramfs(kernel, Path(folder)), job, socket, done), done, timeout)


def _boot(qemu: tuple[str, ...], done: Run, timeout: float) -> None:
    """Until it powers off, or has had its time: then the report says that it is not whole."""
    process = subprocess.Popen(qemu)
    try:
        until(
            lambda: process.poll() is not None
            or STARTED in done.console.read_text(errors="replace"),
            BOOT,
            what=f"the job in the VM: {done.console}",
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout)
    finally:
        process.kill()
        process.wait()


def _qemu(kernel: Kernel, initramfs: Path, job: Path, socket: Path, done: Run) -> tuple[str, ...]:
    return (
        "nice", "qemu-system-x86_64", *MACHINE,
        "-kernel", str(kernel.image), "-initrd", str(initramfs),
        "-append", f"console=ttyS0 quiet panic=-1 job={job.resolve()}",
        "-serial", f"file:{done.console}", "-serial", f"file:{done.report}",
        "-chardev", f"socket,id=files,path={socket}",
        "-device", "vhost-user-fs-pci,chardev=files,tag=host",
    )  # fmt: skip


def _job(kernel: Kernel, command: tuple[str, ...]) -> str:
    values = {
        "ROOT": HERE.parents[1],
        "MODULES": kernel.modules.resolve(),
        "RELEASE": kernel.release,
        "REPORT": REPORT,
        "STARTED": STARTED,
    }
    lines = [f"{name}={shlex.quote(str(value))}" for name, value in values.items()]
    return "\n".join([*lines, f"COMMAND=({shlex.join(command)})", f". {HERE / 'guest.sh'}", ""])


@contextlib.contextmanager
def _files(folder: Path) -> Iterator[Path]:
    """This machine's / for one VM, by a socket."""
    program = next(filter(shutil.which, VIRTIOFSD), None)
    if program is None:
        raise CannotRun(f"no virtiofsd ({', '.join(VIRTIOFSD)}): sudo scripts/setup kernels")
    socket, log = folder / "files", folder / "log"
    command = (
        "nice",
        program,
        f"--socket-path={socket}",
        "-o",
        "source=/,sandbox=chroot,cache=always",
    )
    with log.open("wb") as said:
        daemon = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        until(lambda: socket.exists() or daemon.poll() is not None, what="virtiofsd")
        if daemon.poll() is not None:
            raise CannotRun(f"virtiofsd ended: {log.read_text()}")
        yield socket
    finally:
        daemon.terminate()
        daemon.wait(10)


def _initramfs(kernel: Kernel, folder: Path) -> Path:
    """busybox, and what it takes to see /."""
    tree = folder / "tree"
    for name in ("bin", "proc", "host", "memory", "root", "modules", "dev"):
        (tree / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    if busybox is None:
        raise CannotRun("no busybox: sudo scripts/setup kernels")
    shutil.copy(busybox, tree / "bin/busybox")
    shutil.copy(HERE / "init.sh", tree / "init")
    (tree / "init").chmod(0o755)
    for number, module in enumerate(_modules(kernel)):
        name = f"{number:02}-{module.name.partition('.')[0]}"
        content = module.read_bytes()
        (tree / "modules" / name).write_bytes(
            lzma.decompress(content) if module.suffix == ".xz" else content
        )
    archive = folder / "initramfs"
    run("sh", "-c", f"find . | cpio --quiet --create --format newc >{archive}", cwd=tree)
    return archive


def _modules(kernel: Kernel) -> list[Path]:
    """Files in the order in which to load them."""
    found: dict[Path, None] = {}
    for name in MODULES:
        lines = run(
            "modprobe", "--dirname", str(kernel.root), "--set-version", kernel.release,
            "--show-depends", name,
        ).splitlines()  # fmt: skip
        found.update((Path(line.split()[1]), None) for line in lines if line.startswith("insmod "))
    return list(found)
