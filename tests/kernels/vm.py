"""One boot of a kernel, over this machine's own files: read-only by virtiofs, with memory over them for what is written.

So Python, the clone and its .venv are the same in there. Two serial ports are all that comes out: what is printed,
and the report. Where the processor's help cannot be had it is emulated, 20 to 30 times slower than here; polite to
others (nice) either way.
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

from tests.kernels.accelerator import Accelerator, choices
from tests.kernels.packages import CannotRun, Kernel, run
from tests.support.wait import until

HERE = Path(__file__).parent
VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")
MODULES = ("virtio_pci", "virtiofs", "overlay")  # what / needs, where it is not built in
MEMORY = "2048M"
STARTED = "== the job has started"
REPORT = "/run/report"  # in there, where the command writes it
MACHINE = (
    "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-smp", "2",
    "-m", MEMORY, "-object", f"memory-backend-memfd,id=memory,size={MEMORY},share=on",
    "-machine", "q35,memory-backend=memory",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """Where to find what came out."""

    console: Path
    report: Path
    by: str = ""  # the accelerator's name

    @property
    def started(self) -> bool:
        return STARTED in self.console.read_text(errors="replace")


def execute(kernel: Kernel, command: tuple[str, ...], timeout: float) -> Run:
    """Boots, runs the command in the clone's root, and powers off. What it leaves at REPORT comes out, too."""
    job = kernel.folder / "job.sh"
    for accelerator in choices():
        done = Run(kernel.folder / "console", kernel.folder / "report", accelerator.name)
        done.console.write_text("")
        job.write_text(_job(kernel, command, accelerator))
        with contextlib.suppress(TimeoutError):
            _once(kernel, job, accelerator, done, timeout)
        if done.started:
            break
    return done


def _once(kernel: Kernel, job: Path, by: Accelerator, done: Run, timeout: float) -> None:
    with tempfile.TemporaryDirectory(prefix="ek-vm-") as folder, _files(Path(folder)) as socket:
        initramfs = _initramfs(kernel, Path(folder))
        _boot(_qemu(kernel, initramfs, job, by, socket, done), by.boot, done, timeout)


def _boot(qemu: tuple[str, ...], boot: float, done: Run, timeout: float) -> None:
    """Until it powers off, or has had its time: then the report says that it is not whole."""
    process = subprocess.Popen(qemu)
    try:
        until(
            lambda: process.poll() is not None or done.started,
            boot,
            what=f"the job in the VM: {done.console}",
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout)
    finally:
        process.kill()
        process.wait()


def _qemu(
    kernel: Kernel, initramfs: Path, job: Path, by: Accelerator, socket: Path, done: Run
) -> tuple[str, ...]:
    return (
        "nice", "qemu-system-x86_64", *MACHINE, "-accel", by.name, "-cpu", by.cpu,
        "-kernel", str(kernel.image), "-initrd", str(initramfs),
        "-append", f"console=ttyS0 quiet panic=-1 tsc=reliable clocksource=tsc job={job.resolve()}",
        "-serial", f"file:{done.console}", "-serial", f"file:{done.report}",
        "-chardev", f"socket,id=files,path={socket}",
        "-device", "vhost-user-fs-pci,chardev=files,tag=host",
    )  # fmt: skip


def _job(kernel: Kernel, command: tuple[str, ...], by: Accelerator) -> str:
    values = {
        "ROOT": HERE.parents[1],
        "MODULES": kernel.modules.resolve(),
        "RELEASE": kernel.release,
        "REPORT": REPORT,
        "STARTED": STARTED,
        "PATIENCE": by.patience,
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
