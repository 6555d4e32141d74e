"""`reconciler upgrade`: a new program over the same maps, after it proved to do the same.

Works beside a daemon and without one: neither needs to know of the other, because the
kernel's pins say what is to be. Nothing forwards otherwise before the last step.
"""

import argparse
import json
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from bpf import mapset, record, replacing, resizing
from bpf.abi import Abi
from bpf.kernel import (
    AbiMismatch,
    Instance,
    KernelError,
    Sizes,
    Version,
    default_object,
)
from bpf.mapset import entries_of
from bpf.objects import content
from bpf.pins import Pins, locked
from reconciler import shadows
from reconciler.commands import Commands
from reconciler.dataplane import State
from reconciler.loop import Place, applied
from reconciler.maps import PinnedMaps
from reconciler.model import Node
from reconciler.roster import Roster
from reconciler.selftest import Selftest, sampled
from reconciler.shadows import FLOWS
from reconciler.start import DONE, PENDING, REFUSED, add_place, node_of, place_of
from reconciler.takeover import Resized, Side, Takeover
from reconciler.trials import tried

SAMPLE = 1000
EXAMPLES = """\
The file's tests, a packet to each frontend and packets of live flows go through a copy of the new program and of
the running one, which are attached nowhere. What differs is shown, and refuses the upgrade: exit code 4. Then the
links are updated, one after the other, each between two packets. Flows, counters and health stay. The program
from before is kept for --undo. A daemon that runs is not disturbed.

examples:
  reconciler upgrade --dry-run
        what would be done; loads a copy, changes nothing
  reconciler upgrade
  reconciler upgrade --undo
        back to the one before, which was proven by traffic; again: forth

exit codes: 0 done, or shown; 2 an upgrade is due (--dry-run --detailed-exitcode); 1 runtime error, such as an
object that the kernel refuses; 4 refused, because packets are treated otherwise or maps cannot be taken over;
64 usage
"""


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "upgrade",
        help="replace the program by this version's, under traffic",
        description="Replace the program by this version's, over the same maps and under traffic.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_place(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--object", type=Path, metavar="FILE", help="another object than this version's"
    )
    what.add_argument("--undo", action="store_true", help="back to the program from before")
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be done; change nothing"
    )
    parser.add_argument(
        "--detailed-exitcode", action="store_true", help="--dry-run: 2 when an upgrade is due"
    )
    parser.add_argument(
        "--sample", type=_count, default=SAMPLE, metavar="N",
        help="live flows whose packets are compared (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--accept-differences", action="store_true", help="take over although packets are treated otherwise"
    )  # fmt: skip
    parser.add_argument("--output", choices=("text", "json"), default="text")
    parser.set_defaults(run=run)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: a number of flows is wanted")
    return int(text)


BETWEEN = """\
note: another upgrade is under way, or was killed before it was through. A reconciler that runs finishes the latter within
its next pass, and so does an upgrade that is no dry run: what is said here is of the program before it"""


def run(options: argparse.Namespace) -> int:
    node, place = node_of(options.node), place_of(options)
    path = options.object or default_object()
    try:
        _speaks(path)
        with Instance.open(place.instance) as instance:
            if not options.dry_run:
                _finish(instance)
            elif instance.is_between:
                print(BETWEEN, file=sys.stderr)
            if options.undo:
                return _undo(options, instance)
            return _upgrade(options, instance, node, place, path)
    except AbiMismatch as error:
        print(f"reconciler: {error}", file=sys.stderr)
        print(_cost(place, path), file=sys.stderr)
        return REFUSED


def _finish(instance: Instance) -> None:
    """What another began and was killed at: so it is what runs, and what this one is compared with."""
    with locked():
        instance.follow()


def _cost(place: Place, path: Path) -> str:
    """Of a teardown and a start, where nothing can be taken over."""
    flows = sum(map(entries_of, map(Pins.of(place.instance).map, FLOWS[:2])))
    started = time.monotonic()
    with suppress(KernelError), Instance.unpinned("cost", shadows.sizes_for(State()), path):
        pass
    return (
        f"A teardown forgets {flows} flows. Nothing is forwarded from then until the first pass of the"
        f" start is over: loading alone takes {time.monotonic() - started:.1f} s here"
    )


def _speaks(path: Path) -> None:
    elf = content(path)
    try:
        spoken = record.abi_of(elf)
    except KernelError as error:
        raise KernelError(f"{path}: {error}") from error
    if spoken not in (None, Abi.VERSION):
        raise AbiMismatch(
            f"{path}: speaks ABI {spoken}, this version {int(Abi.VERSION)}; run the version of"
            " Evenkeel that this object comes with"
        )


# ---- forwards


def _upgrade(
    options: argparse.Namespace, instance: Instance, node: Node, place: Place, path: Path
) -> int:
    found = examined(instance, node, place, path, options.sample)
    refused = found.obstacles or (found.objections and not options.accept_differences)
    if found.outcome == "pending" and refused:
        found = replace(found, outcome="refused")
    if found.outcome == "pending" and not options.dry_run:
        _take_over(instance, node, path, found)
        found = replace(found, outcome="upgraded")
    _show(found, options)
    return _code(found, options)


def _take_over(instance: Instance, node: Node, path: Path, found: Takeover) -> None:
    if found.resized:
        instance.resize(Sizes(**node.sizes), path, over=found.running.id)
    else:
        instance.replace(path, over=found.running.id)


def _code(found: Takeover, options: argparse.Namespace) -> int:
    if found.outcome == "refused":
        _explain(found)
        return REFUSED
    due = found.outcome == "pending" and options.dry_run and options.detailed_exitcode
    return PENDING if due else DONE


def _explain(found: Takeover) -> None:
    for reason in (*found.obstacles, *found.objections):
        print(f"refused: {reason}", file=sys.stderr)
    remedy = "To take over all the same: --accept-differences"
    if found.obstacles:
        remedy = "Set the sizes in node.yaml so that what is there fits"
    print(f"nothing was changed. {remedy}", file=sys.stderr)


def _show(found: Takeover, options: argparse.Namespace) -> None:
    if options.output == "json":
        print(json.dumps(found.document(), indent=1))
        return
    print(found.text())
    if found.outcome == "upgraded":
        print("the new program forwards; back with: reconciler upgrade --undo")


def examined(instance: Instance, node: Node, place: Place, path: Path, sample: int) -> Takeover:
    """Everything that can be known before anything is changed."""
    running, elf = instance.running(), content(path)
    found = Takeover(
        place.instance,
        _side(running),
        Side(record.version(), record.digest(elf), "", record.abi_of(elf)),
        "pending",
        tuple(one.interface for one in instance.attachments()),
        maps_kept=len(mapset.names()) - len(resizing.changed(instance.maps, Sizes(**node.sizes))),
        live_flows=sum(live for _, live in instance.maps.live.items()),
        resized=_resized(instance, node),
    )
    if found.new.object == found.running.object:
        found = replace(found, new=replace(found.new, tag=found.running.tag))
        return found if found.resized else replace(found, outcome="nothing")
    return _compared(_tested(found, node, place, path), instance, place, path, sample)


def _side(version: Version) -> Side:
    note = version.note
    made_of = (note.version, note.object) if note else ("unknown", "")
    return Side(*made_of, version.program.tag, int(Abi.VERSION), version.program.id)


def _resized(instance: Instance, node: Node) -> tuple[Resized, ...]:
    made, wanted = instance.sizes(), Sizes(**node.sizes)
    changed = resizing.changed(instance.maps, wanted)
    names = [
        name
        for name in made.__dataclass_fields__
        if any(mapset.SETTING[m] == name for m in changed)
    ]
    return tuple(_resized_as(instance, name, made, wanted, changed) for name in names)


def _resized_as(
    instance: Instance, setting: str, made: Sizes, wanted: Sizes, changed: list[str]
) -> Resized:
    maps = tuple(name for name in changed if mapset.SETTING[name] == setting)
    needed = [resizing.needed(instance.maps, name) for name in maps]
    taken = [resizing.memory(instance.maps, name, wanted) for name in maps]
    return Resized(
        setting,
        getattr(made, setting),
        getattr(wanted, setting),
        maps,
        max(needed),
        evicts=setting in FLOWS,
        copied=sum(needed),
        bytes_before=sum(before for before, _ in taken),
        bytes_after=sum(after for _, after in taken),
    )


def _tested(found: Takeover, node: Node, place: Place, path: Path) -> Takeover:
    config = applied(place)
    if config is None or not config.tests:
        return found
    tests = tried(config, node, path)
    failed = tuple(str(problem.message) for problem in tests.problems)
    return replace(found, tests=str(tests), failed_tests=failed)


def _compared(
    found: Takeover, instance: Instance, place: Place, path: Path, sample: int
) -> Takeover:
    """What runs cannot be asked itself: asking leaves traces. So it is loaded once more, too."""
    elf = instance.kept(instance.running())
    with ExitStack() as stack:
        running = stack.enter_context(record.as_file(elf)) if elf else None
        test = stack.enter_context(Selftest(instance, running, path, sample))
        new = replace(found.new, tag=test.new.program_info().tag)
        found = replace(found, new=new, load_seconds=test.load_seconds)
        if running is None:
            return replace(
                found, untested="nobody kept the running program's object to compare with"
            )
        compared = test.compare(sampled(instance, sample))
    return replace(
        found,
        packets=compared.packets,
        differences=compared.differences,
        backends=_names(instance, place),
    )


def _names(instance: Instance, place: Place) -> dict[int, str]:
    config = applied(place)
    roster = Roster.recovered(config, PinnedMaps(instance).read()) if config else Roster()
    return {number: f"{pool}/{name}" for (pool, name), number in roster.backends.items()}


# ---- back


def _undo(options: argparse.Namespace, instance: Instance) -> int:
    """Not compared: it has forwarded this traffic before."""
    running, before = instance.running(), instance.previous()
    if before is None:
        raise replacing.nothing_before(Pins.of(instance.name))
    found = Takeover(
        instance.name,
        _side(running),
        _side(before),
        "pending",
        tuple(one.interface for one in instance.attachments()),
        maps_kept=len(mapset.names()),
        live_flows=sum(live for _, live in instance.maps.live.items()),
    )
    if not options.dry_run:
        instance.undo(over=running.program.id)
        found = replace(found, outcome="undone")
    _show(found, options)
    return _code(found, options)
