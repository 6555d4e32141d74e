"""The real program, compiled with a change: what a later version of it could be, good or bad."""

import shutil
import subprocess
from pathlib import Path

from tests.support.instances import FLAGS, ROOT


def changed(folder: Path, name: str, *changes: tuple[str, str, str]) -> Path:
    """An object of the sources with these changes: in which file, what, and what instead."""
    sources = folder / name
    shutil.copytree(ROOT / "bpf", sources, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for file, old, new in changes:
        path = sources / file
        text = path.read_text()
        assert old in text, f"{file} has no {old!r} any more"
        path.write_text(text.replace(old, new, 1))
    target = folder / f"{name}.o"
    command = ("clang", *FLAGS, "-c", str(sources / "lb.bpf.c"), "-o", str(target))
    subprocess.run(command, check=True, capture_output=True)
    return target


FIRST = "	if (!cpu)\n		return XDP_PASS;\n"
LAST = "	action = act("
SAME = ("lb.bpf.c", FIRST, FIRST.replace("PASS", "ABORTED"))  # does otherwise what never happens
OTHER_HASH = ("hash.h", "0x6576656e6b65656cULL", "0x6576656e6b65656dULL")  # IPv4 and IPv6 alike
DROPS = (
    "lb.bpf.c",
    LAST,
    "	if (verdict == VERDICT_FORWARDED)\n		return XDP_DROP;\n" + LAST,
)
# Marks what it forwards, and drops datagrams.
MARKS = (
    "lb.bpf.c",
    LAST,
    """	if (verdict == VERDICT_FORWARDED && (long)ctx->data + 24 < (long)ctx->data_end) {
		__u8 *frame = (void *)(long)ctx->data;

		if (frame[12] == 8 && frame[23] == IPPROTO_UDP)
			return XDP_DROP;
		frame[15] ^= 4;
	}
"""
    + LAST,
)
