"""The dry run: what would change, against the live maps or against another file.

Writes no map and no file but the plan that was asked for, and takes no lock.
Against another file it needs neither a kernel nor any privilege.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from bpf import abi
from bpf.kernel import Instance, KernelError, NotLoaded, NotPermitted, Sizes, now_tick
from reconciler import config as configuration
from reconciler import durable, report, report_text, sources, standing
from reconciler.compile import Surroundings
from reconciler.dataplane import State
from reconciler.drain import leaving
from reconciler.expect import ROOM, complete
from reconciler.follow import Accepted
from reconciler.look import Live, View, look
from reconciler.loop import Place, surroundings
from reconciler.maps import PinnedMaps
from reconciler.model import Config, Node
from reconciler.neigh import Neighbours
from reconciler.overrides import in_force
from reconciler.overriding import OverrideFile
from reconciler.parts import node_problems
from reconciler.problems import Rejected
from reconciler.report import Apart, Plan
from reconciler.revision import Revision, revision
from reconciler.saved import Bound, live_digest
from reconciler.start import DONE, PENDING, REFUSED, content, follower_of, node_of, place_of
from reconciler.trials import tried

Flows = dict[int, int]  # live ones, by backend index
Found = tuple[Live, Flows, abi.Meta | None]


def run(options: argparse.Namespace) -> int:
    view, plan = (_between if options.against else _pending)(options)
    if options.out:
        durable.write(options.out, json.dumps(plan.document(), indent=1) + "\n")
    if options.output == "json":
        print(json.dumps(plan.document(), indent=1))  # noqa: T201
    else:
        print(report_text.text(plan, colour=_coloured()))  # noqa: T201
    return _exit(view) if options.detailed_exitcode else DONE


def _coloured() -> bool:
    """https://no-color.org: only for people, and only for those who did not say no."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not plain


def _exit(view: View) -> int:
    if view.refused or view.blocked:
        return REFUSED
    return PENDING if view.ops else DONE


# ---- against the live maps


def _pending(options: argparse.Namespace) -> tuple[View, Plan]:
    node, place = node_of(options.node), place_of(options)
    source = sources.source_of(options, place.state_dir)
    accepted = follower_of(options, source, node, place).preview()
    live, flows, meta = found(accepted.config, node, place, accepted)
    view = look(accepted.config, node, live, allow_removals=options.allow_removals)
    before = live.standing
    plan = report.describe(
        view,
        live,
        (accepted.revision.path, accepted.revision.digest),
        (before, accepted.config),
        node.table_size,
        meta,
        accepted.revision.made,
        apart=_apart(accepted, view, node, live, meta),
        flows=flows,
    )
    tied = bound(options, accepted.revision, live.actual, allow_removals=options.allow_removals)
    return view, replace(plan, plan_id=tied.plan_id, bound=tied.document())


def found(config: Config, node: Node, place: Place, taken: Accepted | None = None) -> Found:
    """What is on this machine; where nothing was ever loaded, nothing."""
    with Neighbours() as neighbours:
        try:
            with Instance.open(place.instance, read_only=True) as instance:
                return _read(instance, config, node, neighbours, place, taken)
        except NotLoaded:
            return _nothing(config, node, neighbours), {}, None
        except (NotPermitted, PermissionError) as error:
            hint = "--against FILE compares two files without any privilege"
            raise KernelError(f"{error}. To read live maps run this as root; {hint}") from error


def _read(
    instance: Instance,
    config: Config,
    node: Node,
    neighbours: Neighbours,
    place: Place,
    taken: Accepted | None,
) -> Found:
    dataplane = PinnedMaps(instance)
    actual = dataplane.read()
    settings = actual.settings.get(0)
    epoch = settings.hop_epoch if settings else 0
    stood, meta = standing.read(place.run_dir, taken), instance.maps.meta.get(0)
    also = leaving(actual) | standing.addresses(stood)
    around = surroundings(neighbours, config, node, epoch, None, also)
    forced = in_force(OverrideFile(place.state_dir).read(), time.time())
    flows = dict(dataplane.flows())
    live = Live(
        actual,
        dataplane.health(),
        around,
        dataplane.room(),
        forced,
        flows,
        now_tick(),
        stood.config if stood else None,
        standing.is_of(stood, meta),
    )
    return live, flows, meta


def _nothing(config: Config, node: Node, neighbours: Neighbours) -> Live:
    around = surroundings(neighbours, config, node, 0, wait=None)
    return Live(State(), {}, around, room_of(node))


def room_of(node: Node) -> dict[str, int]:
    sizes = Sizes(**node.sizes)
    return {name: getattr(sizes, name) for name in sizes.__dataclass_fields__}


def _apart(
    accepted: Accepted,
    view: View,
    node: Node,
    live: Live,
    meta: abi.Meta | None,
) -> Apart | None:
    """What others changed, when the file is another one too: by what was applied last."""
    before = live.standing
    if before is None or meta is None or not live.sure:
        return None
    if bytes(meta.digest) == accepted.revision.digest and before == view.config:
        return None
    restored = look(before, node, live, allow_removals=True)
    drift = tuple(report.drift(restored.ops, live.actual))
    if not drift:
        same = bytes(meta.digest) == accepted.revision.digest  # and parts of it are still to come
        return Apart((), live.actual, view.held) if same else None
    mended = replace(live, actual=restored.held)
    after = look(accepted.config, node, mended, allow_removals=False)
    return Apart(drift, restored.held, after.held)


def bound(
    options: argparse.Namespace, taken: Revision, actual: State, *, allow_removals: bool
) -> Bound:
    """What a plan that is made, or applied, now is made from."""
    return Bound(
        options.instance,
        taken.digest.hex(),
        hashlib.sha256(options.node.read_bytes()).hexdigest(),
        live_digest(actual),
        allow_removals,
    )


# ---- against another file


def _between(options: argparse.Namespace) -> tuple[View, Plan]:
    node = node_of(options.node) if options.node.exists() else None
    old, old_config = loaded(options.against, node, "--against")
    new, new_config = loaded(options.config, node, "--config")
    bare = node or complete(Node(interfaces={}))
    nothing = Live(State(), {}, Surroundings(), room_of(node) if node else ROOM)
    applied_once = look(old_config, bare, nothing, allow_removals=True)
    live = replace(nothing, actual=applied_once.held, standing=applied_once.config, sure=True)
    view = look(new_config, bare, live, allow_removals=options.allow_removals)
    plan = report.describe(
        view,
        live,
        (new.path, new.digest),
        (old_config, new_config),
        bare.table_size,
        None,
        apart=Apart((), applied_once.held, view.held),
    )
    return view, replace(plan, against=old.path, live_digest=old.digest.hex())


def loaded(path: Path, node: Node | None, option: str) -> tuple[Revision, Config]:
    """The file, if it is right; and right for this node, if there is one."""
    read = revision(str(path), content(path, f"name the one to compare with {option}"))
    config = configuration.load(read.text, read.path)
    problems = node_problems(config, node) if node else []
    problems = problems or list(tried(config, node).problems)
    if problems:
        raise Rejected(read.path, problems, read.text)
    return read, config
