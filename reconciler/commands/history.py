"""`reconciler history`: the last generations, from the state folder alone; no daemon, no kernel."""

import argparse
import json
import os
import time
from pathlib import Path

from reconciler import suspension
from reconciler.commands import Commands, add_place, state_dir
from reconciler.follow import described
from reconciler.history import FORMAT, Generation, History
from reconciler.suspension import Suspension

EXAMPLES = """\
examples:
  reconciler history
        the last five generations, newest first
  reconciler history --output json | jq -r '.generations[0].commit'
        the commit that was accepted last

exit codes: 0 listed; 1 cannot read it; 64 usage
"""


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "history",
        help="the last generations: commit, time, how it went",
        description="The last generations, newest first: commit, time, and how it went.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_place(parser)
    parser.add_argument("--output", choices=("text", "json"), help="default: text")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    state = state_dir(options)
    history = History(state / "history")
    if history.folder.is_dir() and not os.access(history.folder, os.R_OK | os.X_OK):
        raise PermissionError(f"{history.folder}: may not be read: become root")
    found, paused = history.generations(), _paused(state)
    print(_json(found, paused) if options.output == "json" else _text(found, paused))
    return 0


def _paused(state: Path) -> Suspension | None:
    found = suspension.read(state)
    return found if found is not None and found.active(time.time()) else None


def _json(found: list[Generation], paused: Suspension | None) -> str:
    document = {
        "format_version": FORMAT,
        "generations": [one.document() for one in found],
        "suspension": paused.document() if paused else None,
    }
    return json.dumps(document, indent=1)


def _text(found: list[Generation], paused: Suspension | None) -> str:
    lines = [_line(one) for one in found] or ["nothing was applied yet"]
    if paused is not None:
        lines.append(f"suspended: {described(paused)}")
    return "\n".join(lines)


def _line(one: Generation) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.time))
    commit = one.commit[:12] or "-"
    subject = f'  "{one.subject}"' if one.subject else ""
    author = f"  {one.author}" if one.author else ""
    note = f"  ({one.note})" if one.note else ""
    head = f"{one.number:>6}  {when}  {one.result.value:<8} sha256:{one.digest[:12]}"
    return f"{head}  {commit:<12}{subject}{author}{note}".rstrip()
