"""Small instances with names of this process's own, and other programs for their maps.

For tests of the kernel boundary itself; tests of what the program does use `bed`.
"""

import itertools
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bpf.kernel import Sizes
from bpf.objects import OBJECT

ROOT = Path(__file__).parents[2]
SMALL = Sizes(
    frontends=16, services=8, pools=8, backends=16,
    flows4=1024, flows6=1024, returns4=1024, returns6=1024, opening4=1024, opening6=1024, hops=16,
)  # fmt: skip
FLAGS = (
    "-O2",
    "-g",
    "-target",
    "bpf",
    "-mcpu=v3",
    f"-I/usr/include/{os.uname().machine}-linux-gnu",
)

# Counts packets and passes them, over the maps of the real one; its sweep finds 42 flows.
PASSER = """
#include "maps.h"

SEC("xdp.frags")
int lb(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct cpu *cpu = bpf_map_lookup_elem(&cpus, &zero);

	if (cpu)
		cpu->packets++;
	return XDP_PASS;
}

SEC("syscall")
int sweep(struct sweep *report)
{
	report->flows = 42;
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
"""
# Drops instead, and has no sweep.
DROPPER = PASSER.replace("XDP_PASS", "XDP_DROP").replace(
    'SEC("syscall")', "static __attribute__((unused))"
)
# Reads beyond the frame: the verifier says no.
REJECTED = PASSER.replace("return XDP_PASS", "return *(int *)(long)ctx->data")
# Has a sweep that the verifier refuses.
BAD_SWEEP = PASSER.replace("report->flows = 42", "report->flows = *(int *)8")

_numbers = itertools.count(1)


@pytest.fixture(scope="module", autouse=True)
def small_program() -> Iterator[Path]:
    """The default object of modules that import this: the boundary's tests load it a hundred times.

    Where other users can read it, too: pytest's own folders are closed to them.
    """
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        Path(folder).chmod(0o755)
        path = compiled(PASSER, Path(folder, "passer.o"))
        patch.setenv(OBJECT, str(path))
        yield path


def unique() -> str:
    return f"ek{os.getpid()}k{next(_numbers)}"


def compiled(source: str, target: Path) -> Path:
    """An object made of C that may include what is in bpf/."""
    command = ("clang", *FLAGS, f"-I{ROOT / 'bpf'}", "-x", "c", "-c", "-", "-o", target)
    subprocess.run(command, input=source, text=True, check=True, capture_output=True)
    return target


def killed_in(action: Callable[[], object]) -> None:
    """Run it in a child, which must end by the signal that `die` sends: not by finishing."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the child finished before it was to be killed"


def die() -> None:
    os.kill(os.getpid(), 9)
