"""One module for each sub-command: `add` registers it, `run` carries it out."""

import argparse
import re
from pathlib import Path
from typing import Any, Protocol

from reconciler.sources import STATE_ROOT, add_state_dir

RUN_ROOT = Path("/run/evenkeel")
_SPAN = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?\Z")


class Commands(Protocol):
    """What argparse's add_subparsers returns, which has no public name."""

    def add_parser(self, name: str, /, **options: Any) -> argparse.ArgumentParser: ...  # noqa: ANN401


def add_state(parser: argparse.ArgumentParser) -> None:
    """Which instance, and where what outlives a reboot is kept."""
    parser.add_argument(
        "--instance", default="default", metavar="NAME", help="which data plane (default: default)"
    )
    add_state_dir(parser)


def state_dir(options: argparse.Namespace) -> Path:
    found: Path = options.state_dir or STATE_ROOT / options.instance
    return found


def add_place(parser: argparse.ArgumentParser) -> None:
    """The same, and where its daemon's files are."""
    add_state(parser)
    parser.add_argument(
        "--run-dir",
        type=Path,
        metavar="DIR",
        help=f"where its daemon's socket is (default: {RUN_ROOT}/NAME)",
    )


def run_dir(options: argparse.Namespace) -> Path:
    found: Path = options.run_dir or RUN_ROOT / options.instance
    return found


def span(text: str) -> float:
    """Seconds of a time such as 45s, 30m, 1h30m, 2d."""
    found = _SPAN.match(text)
    if not text or not found:
        raise argparse.ArgumentTypeError(f"{text!r}: a time like 45s, 30m or 1h30m is wanted")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
