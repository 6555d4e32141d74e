"""`reconciler suspend` and `resume`: leave the source alone for a while. Works without a daemon."""

import argparse
import getpass
import os
import sys
import time

from reconciler import suspension
from reconciler.commands import Commands, add_place, span, state_dir
from reconciler.follow import described
from reconciler.suspension import DEFAULT, LONGEST, Suspension

RESUME = """\
example:
  reconciler resume

exit codes: 0 done, or nothing was suspended; 1 cannot write it; 64 usage
"""
EXAMPLES = """\
What is applied stays, drift is still repaired and health still followed; only the source is not.

examples:
  reconciler suspend --reason "core router is being replaced"
        for a day
  reconciler suspend --reason "incident 4711" --for 2h
  reconciler resume
        follow the source again, now

exit codes: 0 done; 1 cannot write it; 64 usage
"""


def add(commands: Commands) -> None:
    suspend = commands.add_parser(
        "suspend",
        help="do not follow the source for a while",
        description="Do not follow the source for a while.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_place(suspend)
    add_reason(suspend)
    suspend.set_defaults(run=run_suspend)
    resume = commands.add_parser(
        "resume",
        help="follow the source again",
        description="Follow the source again: ends what `suspend` or `rollback` began.",
        epilog=RESUME,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_place(resume)
    resume.set_defaults(run=run_resume)


def add_reason(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reason", required=True, type=said, metavar="TEXT", help="who reads status asks why"
    )
    parser.add_argument(
        "--for",
        dest="seconds",
        type=lasting,
        default=DEFAULT,
        metavar="TIME",
        help="then the source is followed again: 30m, 2h, 3d (default: 24h, at most 30d)",
    )


def run_suspend(options: argparse.Namespace) -> int:
    now = time.time()
    made = Suspension(options.reason, now, now + options.seconds, who())
    suspension.write(state_dir(options), made)
    print(f"suspended: {described(made)}")
    return 0


def run_resume(options: argparse.Namespace) -> int:
    was = suspension.read(state_dir(options))
    if not suspension.clear(state_dir(options)) or was is None:
        print("reconciler: nothing was suspended", file=sys.stderr)
        return 0
    print(f"resumed; it was suspended: {described(was)}")
    return 0


def lasting(text: str) -> float:
    """A time as a suspension may last."""
    seconds = span(text)
    if not 0 < seconds <= LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r}: more than nothing, at most 30d")
    return seconds


def said(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("say why")
    return " ".join(text.split())


def who() -> str:
    """Who asks, also behind sudo."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
