"""`make bench`: nanoseconds a packet, as multiples of a trivial program. See README.md beside this file."""

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from bpf.errors import KernelError
from tests.bench import control, dataplane, health, profile, rate, report
from tests.bench.objects import BenchError

RESULT = Path("build/bench/dataplane.json")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "--part",
        choices=("dataplane", "health", "control", "rate"),
        default="dataplane",
        help="what a packet costs; a health check, beside HAProxy; the reconciler with 10,000 backends;"
        " or packets and requests a second, beside nftables and others",
    )
    parser.add_argument("--quick", action="store_true", help="few rounds: for a first look")
    parser.add_argument(
        "--case", action="append", default=[], metavar="NAME", help="rows with NAME in their name"
    )
    parser.add_argument("--json", type=Path, default=RESULT, metavar="PATH", help=f"not {RESULT}")
    parser.add_argument(
        "--profile", action="store_true", help="instead: where the time goes, by source line (perf)"
    )
    return parser.parse_args()


def say(what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{what}", end="", file=sys.stderr, flush=True)


def bench(options: argparse.Namespace) -> None:
    effort = dataplane.QUICK if options.quick else dataplane.FULL
    result = dataplane.measure(options.case, effort, say)
    say("")
    print(report.table(result))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    document = report.document(result, asdict(effort))
    options.json.write_text(json.dumps(document, indent=1) + "\n")
    print(f"\nwritten to {options.json}")


def main() -> int:
    options = arguments()
    if os.geteuid() != 0:
        print(
            "make bench: needs root (test runs of BPF programs): sudo make bench", file=sys.stderr
        )
        return 1
    if options.part == "health":
        return health.bench(options.case, quick=options.quick)
    if options.part == "control":
        return control.bench(quick=options.quick, say=say)
    if options.part == "rate":
        return rate.bench(options.case, quick=options.quick, say=say)
    try:
        (profile.show if options.profile else bench)(options)
    except (BenchError, KernelError) as error:
        print(f"make bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
