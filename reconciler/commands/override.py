"""`reconciler override`: force a backend up or down for a while, and say why. Writes no map.

A running daemon applies it at once; without one it waits in its file for the next pass.
"""

import argparse
import json
import sys
import time

from reconciler import control, overrides
from reconciler.commands import Commands, add_place, run_dir, span
from reconciler.commands.suspend import who
from reconciler.commands.sync import report
from reconciler.facts import Moment
from reconciler.loop import Place, applied
from reconciler.orders import clear_override, set_override
from reconciler.overrides import Forced, Override, Unusable
from reconciler.overriding import OverrideFile
from reconciler.privilege import act_as_owner

EXAMPLES = """\
examples:
  reconciler override web/web1 down --for 30m --reason "disk is being replaced"
        no flow goes to it, whatever its check says; half an hour later its check decides again
  reconciler override web/web1 up --for 1h --reason "its check is wrong, INC-42"
  reconciler override --clear web/web1
  reconciler override
        list those that are in force

exit codes: 0 done; 1 there is no such backend or override, or not permitted; 3 and 4 as of `sync`; 64 usage
"""


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "override",
        help="force a backend up or down for a while",
        description="Force a backend up or down for a while, whatever its check says.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("backend", nargs="?", metavar="POOL/BACKEND")
    parser.add_argument("state", nargs="?", choices=[state.value for state in Forced])
    parser.add_argument(
        "--for", dest="seconds", type=span, metavar="TIME", help="when it ends: 45s, 30m, 1h30m"
    )
    parser.add_argument("--reason", metavar="TEXT", help="why; shown wherever the override is")
    parser.add_argument("--clear", metavar="POOL/BACKEND", help="end one now; `all` ends all")
    parser.add_argument("--output", dest="format", choices=("text", "json"), default="text")
    add_place(parser)
    parser.set_defaults(run=run, usage_error=parser.error)


def run(options: argparse.Namespace) -> int:
    place = Place(options.instance, run_dir(options), options.state_dir)
    if options.clear:
        if options.backend:
            options.usage_error("--clear takes the backend itself")
        return clear(options, place)
    if options.backend is None:
        return list_them(options, place)
    if not (options.state and options.seconds and options.reason):
        options.usage_error("an override needs up or down, --for TIME and --reason TEXT")
    return force(options, place)


def force(options: argparse.Namespace, place: Place) -> int:
    wanted = {
        "backend": options.backend,
        "state": options.state,
        "seconds": options.seconds,
        "reason": options.reason,
    }
    try:
        answer = control.ask(place.run_dir / control.SOCKET, "override", wanted)
    except control.NotRunning:
        _without_daemon(options, place)
        return 0
    until = Moment(answer["override"]["until"])
    sys.stdout.write(f"{options.backend} is forced {options.state} until {until}\n")
    return report(answer)


def _without_daemon(options: argparse.Namespace, place: Place) -> None:
    act_as_owner()
    config = applied(place)
    if config is None:
        raise Unusable(f"override {options.backend}: nothing was applied on this node yet")
    now = time.time()
    pool, _, name = options.backend.partition("/")
    state = Forced(options.state)
    made = Override(pool, name, state, options.reason, who(), now, now + options.seconds)
    known = [(one.name, name) for one in config.pools.values() for name in one.backends]
    set_override(OverrideFile(place.state_dir), made, known)
    sys.stdout.write(
        f"{options.backend} will be forced {options.state} until {Moment(made.until)}:"
        " no reconciler runs, the next pass applies it\n"
    )


def clear(options: argparse.Namespace, place: Place) -> int:
    try:
        answer = control.ask(
            place.run_dir / control.SOCKET, "clear", {"backend": options.clear}
        )  # fmt: skip
    except control.NotRunning:
        act_as_owner()
        had = clear_override(OverrideFile(place.state_dir), options.clear)
        answer = {"cleared": had}
    if not answer["cleared"]:
        raise Unusable(f"override --clear {options.clear}: there is none")
    sys.stdout.write(f"{options.clear}: no longer forced\n")
    return report(answer)


def list_them(options: argparse.Namespace, place: Place) -> int:
    now = time.time()
    held = overrides.in_force(OverrideFile(place.state_dir).read(), now)
    if options.format == "json":
        sys.stdout.write(json.dumps(overrides.document(held), indent=1) + "\n")
        return 0
    if not held:
        sys.stdout.write("no override is in force\n")
    for one in held:
        sys.stdout.write(
            f"{one.name} forced {one.state} until {Moment(one.until)} by {one.by}: {one.reason}\n"
        )
    return 0
