"""What the kernel refuses, and whether the message says what to do about it."""

import subprocess
import sys
from pathlib import Path

import pytest

from bpf import errors, kernel, libbpf
from bpf.errors import AbiMismatch, KernelError, NotPermitted, Unsupported
from bpf.kernel import Instance
from bpf.pins import instances
from tests.support.instances import (
    PASSER,
    REJECTED,
    ROOT,
    SMALL,
    compiled,
    small_program,
    unique,
)
from tests.support.unit import from_a_readable_place

__all__ = ["small_program"]  # a fixture of this module
LOAD = """
import sys
from bpf import kernel
from tests.support.instances import SMALL
name = sys.argv[1]
try:
    with kernel.Instance.load(name, SMALL) as instance:
        print("loaded", instance.run(bytes(60)).action.name)
    kernel.teardown(name)
except kernel.KernelError as error:
    print(type(error).__name__, error)
"""
WITHOUT_BPFFS = "while umount /sys/fs/bpf 2>/dev/null; do :; done;"


def loading(*wrapper: str, shell: str = "") -> str:
    """What a process of its own says that loads an instance, wrapped in some other program."""
    python = [sys.executable, "-c", LOAD, unique()]
    command = [*wrapper, *(["sh", "-c", f'{shell} exec "$@"', "sh"] if shell else []), *python]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60
    )
    assert done.stderr == ""
    return done.stdout


def test_the_wrapper_itself_loads() -> None:
    assert loading() == "loaded PASS\n"


# ---- privileges ----


def test_without_capabilities_it_says_which_and_how_to_get_them() -> None:
    said = loading("setpriv", "--bounding-set=-bpf,-sys_admin,-perfmon,-net_admin")
    assert said.startswith("NotPermitted")
    assert "lacks CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF" in said
    assert "AmbientCapabilities=CAP_NET_ADMIN CAP_PERFMON CAP_BPF" in said


def test_the_capabilities_that_it_names_are_enough() -> None:
    keep = "-all,+net_admin,+perfmon,+bpf"
    assert loading("setpriv", f"--bounding-set={keep}") == "loaded PASS\n"


def test_another_user_is_told_to_be_root() -> None:
    user = ("setpriv", "--reuid=65534", "--clear-groups", "--regid=65534")
    command = from_a_readable_place(user, "-c", LOAD, unique())
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert said.startswith("NotPermitted")
    assert "run it as root" in said


def test_a_small_memlock_limit_does_not_matter() -> None:
    assert loading("prlimit", "--memlock=65536:65536") == "loaded PASS\n"


def test_where_memlock_counts_the_message_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "release", lambda: (5, 10))
    monkeypatch.setattr(errors, "missing_capabilities", list)
    assert "LimitMEMLOCK" in str(errors.failed("map flows4", -1))


# ---- the BPF file system ----


def test_a_bpf_file_system_that_is_missing_is_mounted() -> None:
    said = loading("unshare", "--mount", shell=WITHOUT_BPFFS)
    assert said == "loaded PASS\n"


def test_one_that_cannot_be_mounted_is_asked_for() -> None:
    drop = 'set -- setpriv --bounding-set=-sys_admin "$@";'
    said = loading("unshare", "--mount", shell=f"{WITHOUT_BPFFS} {drop}")
    assert said.startswith("NotPermitted")
    assert "mount -t bpf bpf /sys/fs/bpf" in said


# ---- the object ----


def test_a_rejected_program_comes_with_the_verifiers_last_words(tmp_path: Path) -> None:
    path = compiled(REJECTED, tmp_path / "rejected.o")
    name = unique()
    with pytest.raises(KernelError, match=r"rejected\.o: loading: Permission denied") as caught:
        Instance.load(name, SMALL, object_path=path)
    assert not isinstance(caught.value, NotPermitted)
    assert "invalid access to packet" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= errors.LOG_LINES + 1
    assert name not in instances()


def test_on_an_old_kernel_the_message_names_the_version_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = compiled(REJECTED, tmp_path / "rejected.o")
    monkeypatch.setattr(errors, "release", lambda: (5, 10))
    with pytest.raises(Unsupported, match=r"6\.1 or later is needed"):
        Instance.load(unique(), SMALL, object_path=path)


def test_nothing_is_printed_while_the_verifier_complains(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = compiled(REJECTED, tmp_path / "rejected.o")
    with pytest.raises(KernelError):
        Instance.load(unique(), SMALL, object_path=path)
    assert capfd.readouterr() == ("", "")


def test_a_missing_object_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"absent\.o: no such object; `make build`"):
        Instance.load(unique(), SMALL, object_path=tmp_path / "absent.o")


def test_a_file_that_is_no_object_is_named(tmp_path: Path) -> None:
    path = tmp_path / "not.o"
    path.write_bytes(b"not an object")
    with pytest.raises(KernelError, match=r"not\.o: opening"):
        Instance.load(unique(), SMALL, object_path=path)


def test_an_object_of_another_shape_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    odd = PASSER.replace("maps.h", "abi.h").replace(
        "SEC(",
        "struct bigger { struct backend b; __u32 more[2]; };\n"
        "#define backend bigger\n#include <linux/bpf.h>\n#include <bpf/bpf_helpers.h>\n"
        '#include "maps.h"\n#undef backend\nSEC(',
        1,
    )
    path = compiled(odd, tmp_path / "odd.o")
    with pytest.raises(AbiMismatch, match=r"odd\.o: map backends: .* build the object anew"):
        Instance.load(unique(), SMALL, object_path=path)


def test_an_object_without_a_map_is_refused(tmp_path: Path) -> None:
    less = PASSER.replace("maps.h", "abi.h").replace(
        "SEC(", "#include <linux/bpf.h>\n#include <bpf/bpf_helpers.h>\n#define hops other\n"
        '#include "maps.h"\nSEC(', 1,
    )  # fmt: skip
    path = compiled(less, tmp_path / "less.o")
    with pytest.raises(AbiMismatch, match="has no map hops"):
        Instance.load(unique(), SMALL, object_path=path)


# ---- bcc ----


def test_without_bcc_the_message_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bcc", None)
    with pytest.raises(Unsupported, match="python3-bpfcc"):
        libbpf._bcc()


def test_bcc_is_loaded_only_when_the_kernel_is_called() -> None:
    code = "import sys, bpf.kernel, bpf.abi; print('bcc' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "False\n"


def test_the_clock_is_the_programs() -> None:
    assert kernel.now_tick() > 0
