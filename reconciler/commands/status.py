"""`reconciler status`: asks the daemon; without one, reads what the pinned maps say. Changes nothing."""

import argparse
import itertools
import json
import logging
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from bpf.kernel import Instance, now_tick
from reconciler import conditions, control, counting, release, status_text, suspension
from reconciler.commands import Commands, add_place, run_dir
from reconciler.conditions import Condition, Holds, Type
from reconciler.counting import Books
from reconciler.facts import Facts, Moment
from reconciler.healthfile import HealthFile
from reconciler.history import History
from reconciler.loop import Place, applied
from reconciler.maps import PinnedMaps
from reconciler.observer import NAME, kept, kept_short, past, suspends
from reconciler.overrides import Overrides, Unusable, in_force
from reconciler.overriding import OverrideFile
from reconciler.roster import Roster
from reconciler.stating import build

CLEAR = "\033[H\033[J"
EVERY = 1.0
EXAMPLES = """\
examples:
  reconciler status
  reconciler status --watch
  reconciler status --output json | jq '.conditions[] | select(.well | not)'

exit codes: 0 said, by the daemon or from the maps, however it is; 1 nothing is loaded, or not to be read; 64 usage
"""
log = logging.getLogger("reconciler")


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "status",
        help="what is attached, applied and served, and what is wrong",
        description="What is attached, applied and served, and what is wrong.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_place(parser)
    parser.add_argument("--watch", action="store_true", help="refresh in place until Ctrl-C")
    parser.add_argument("--output", dest="format", choices=("text", "json"), default="text")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    place = Place(options.instance, run_dir(options), options.state_dir)
    pause = threading.Event()
    with suppress(KeyboardInterrupt):
        for number in itertools.count():
            show(found(place), options, again=number > 0)
            if not options.watch:
                break
            pause.wait(EVERY)
    return 0


def show(status: dict[str, Any], options: argparse.Namespace, *, again: bool) -> None:
    if options.format == "json":
        text = json.dumps(status, indent=None if options.watch else 1)
    else:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        text = status_text.render(status, colour=colour)
        if options.watch and sys.stdout.isatty():
            text = CLEAR + text
        elif again:
            text = "\n" + text
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def found(place: Place) -> dict[str, Any]:
    try:
        return control.ask(place.run_dir / control.SOCKET, "status")
    except control.NotRunning:
        with Instance.open(place.instance, read_only=True) as instance:
            return build(read(instance, place)).document()


def read(instance: Instance, place: Place) -> Facts:
    """What the maps and the files say without a daemon: no rates, and nobody who judges."""
    now = time.time()
    state, config = PinnedMaps(instance).read(), applied(place)
    books = Books(place.run_dir, instance)
    report = HealthFile(place.run_dir).read()
    reading = counting.read(instance)
    return Facts(
        instance=instance.name,
        now=now,
        tick=now_tick(),
        state=state,
        config=config,
        roster=Roster.recovered(config, state) if config else Roster(),
        health=dict(instance.maps.health.items()),
        checked=report.backends if report else {},
        checker=report.checker if report else None,
        reading=reading,
        earlier=reading,
        services=books.services,
        backends=books.backends,
        attached=tuple(instance.attachments()),
        programs=release.programs(instance),
        meta=instance.maps.meta.get(0),
        conditions=_conditions(place.run_dir / NAME, now),
        short_since=kept_short(place.run_dir / NAME),
        overrides=in_force(_overrides(place), now),
        suspends=suspends(suspension.read(place.state_dir)),
        history=past(History(place.state_dir / "history").generations()),
    )


def _conditions(path: Path, now: float) -> tuple[Condition, ...]:
    """As they were left; nobody knows whether they still hold."""
    message = "no reconciler runs: forwarding goes on, changes are not followed"
    left = kept(path)
    gone = Condition(Type.READY, Holds.UNKNOWN, "NoDaemon", message)
    others = (
        Condition(one.type, Holds.UNKNOWN, "NoDaemon", f"was {one.status}: {one.reason}")
        for one in left
        if one.type is not Type.READY
    )
    return conditions.follow((), (gone, *others), Moment(now))


def _overrides(place: Place) -> Overrides:
    try:
        return OverrideFile(place.state_dir).read()
    except Unusable as error:
        log.error("%s", error)  # noqa: TRY400
        return ()
