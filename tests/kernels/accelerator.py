"""How QEMU runs a VM's instructions: by the processor where that can, else emulated. Starts nothing."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

DEVICE, PROCESSORS = Path("/dev/kvm"), Path("/proc/cpuinfo")
BOOTS = 3  # an emulated boot hangs now and then


@dataclass(frozen=True, slots=True)
class Accelerator:
    name: str
    cpu: str
    boot: float  # seconds that a boot may take
    patience: int  # how often slower than here tests are in there


# A VM in a VM has its own troubles with what the host's processor says of its flaws.
KVM = Accelerator("kvm", "host,-arch-capabilities", boot=30, patience=3)
# cmpxchg16b of QEMU 7.2's emulation is wrong: with it, 6.12 faulted in two boots of ten.
TCG = Accelerator("tcg", "max,-cx16", boot=180, patience=20)


def choices() -> tuple[Accelerator, ...]:
    """What to boot with, one after the other, until one boot comes to its job."""
    return _choices(PROCESSORS.read_text(), usable=os.access(DEVICE, os.R_OK | os.W_OK))


def _choices(processors: str, *, usable: bool) -> tuple[Accelerator, ...]:
    """Without vmx or svm, a /dev/kvm is one that runs only kernels that are made for it."""
    has = re.search(r"^flags\s*:.*\b(vmx|svm)\b", processors, re.MULTILINE)
    return (*([KVM] if usable and has else []), *[TCG] * BOOTS)
