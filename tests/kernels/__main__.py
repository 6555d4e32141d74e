"""`make kernels`: a part of the tests, unchanged, under the kernels that users have.

Each kernel is Debian's cloud kernel of that version, unpacked into build/kernels/ (this machine's stays the one it
is) and booted once in QEMU, over this machine's files. What it runs is in selection.txt. Exit code 1: a test failed
under one of them, or it did not come so far; all that it printed is in build/kernels/VERSION/console.
"""

import argparse
import os
import sys
from pathlib import Path
from xml.etree.ElementTree import ParseError

from tests.kernels import report, vm
from tests.kernels.packages import SUITES, CannotRun, Kernel, kernel
from tests.kernels.report import Result

CACHE = Path("build/kernels")
SELECTION = Path(__file__).with_name("selection.txt")
DEFAULT = ("6.1", "6.12")
LAST = 15  # lines of a console that say how it ended


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  make kernels                                       all of selection.txt, under each
  make kernels KERNELS=6.12                          under one
  make kernels ARGS=tests/e2e/test_howto.py          other tests, by pytest's names""",
    )
    parser.add_argument(
        "tests", nargs="*", help="tests to run, as pytest names them; default: selection.txt"
    )
    parser.add_argument(
        "--kernels", default=" ".join(DEFAULT), help=f"of {', '.join(SUITES)}; default: %(default)s"
    )
    parser.add_argument(
        "--timeout", type=float, default=3600, help="seconds for one kernel; default: %(default)g"
    )
    options = parser.parse_args()
    options.kernels = options.kernels.split()
    if unknown := set(options.kernels) - SUITES.keys():
        parser.error(f"no kernel {', '.join(sorted(unknown))}: there are {', '.join(SUITES)}")
    return options


def selection() -> list[str]:
    lines = (line.partition("#")[0].strip() for line in SELECTION.read_text().splitlines())
    return [line for line in lines if line]


def run(one: Kernel, chosen: list[str], timeout: float) -> Result:
    command = (
        sys.executable, "-m", "pytest", "-vv", "--color=no", "-p", "no:cacheprovider",
        f"--junit-xml={vm.REPORT}", *chosen,
    )  # fmt: skip
    done = vm.execute(one, command, timeout)
    name = f"{one.release} ({done.by})"
    try:
        return Result(name, report.tests(done.report.read_text()))
    except ParseError:
        said = done.console.read_text(errors="replace").splitlines()[-LAST:]
        trouble = f"no whole report; {done.console} ends with:"
        return Result(name, (), "\n  ".join([trouble, *said]))


def main() -> int:
    options = arguments()
    if os.geteuid() != 0:
        print(
            "make kernels: needs root (it shares / with a VM): sudo make kernels", file=sys.stderr
        )
        return 1
    results = []
    try:
        for name in options.kernels:
            print(f"== {name}", file=sys.stderr, flush=True)
            one = kernel(name, CACHE)
            results.append(run(one, options.tests or selection(), options.timeout))
    except CannotRun as error:
        print(f"make kernels: {error}", file=sys.stderr)
        return 1
    print(*report.table(results), sep="\n")
    return 0 if all(result.good for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
