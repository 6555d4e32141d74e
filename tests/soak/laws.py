"""What has to hold when everything is quiet again, by the command line and by the maps.

Changes nothing, but for the last upgrade: whatever was killed half-way, it has to find its way.
"""

from collections.abc import Iterator

from bpf import link, resizing
from bpf.kernel import Instance
from bpf.pins import Pins, following
from reconciler.maps import PinnedMaps
from tests.soak.stage import DAEMONS, SETTLES, Stage
from tests.support.judge import Dangling, packets, route
from tests.support.wait import until


def broken(stage: Stage) -> Iterator[str]:
    """Each law that does not hold, in a sentence."""
    yield from _in_sync(stage)
    yield from pointing_nowhere(stage.instance)
    yield from _upgraded(stage)
    yield from _tracebacks(stage)


def _in_sync(stage: Stage) -> Iterator[str]:
    """Removed backends go with their last flow, which the reconciler counts every few seconds: so it may take a while."""
    words = (
        "--config",
        str(stage.config),
        "--node",
        str(stage.node),
        "--dry-run",
        "--detailed-exitcode",
    )
    said = [stage.told(*words)]

    def empty() -> bool:
        said.append(stage.told(*words))
        return said[-1].returncode == 0

    try:
        until(empty, SETTLES, interval=1)
    except TimeoutError:
        yield f"the plan does not become empty, exit code {said[-1].returncode}:\n{said[-1].stdout}"


def _upgraded(stage: Stage) -> Iterator[str]:
    """One program everywhere, over maps as large as node.yaml says, and nothing left of who was killed."""
    done = stage.told("upgrade", "--node", str(stage.node))
    if done.returncode:
        yield f"upgrade: exit code {done.returncode}:\n{done.stdout}"
        return
    made = stage.instance.sizes()
    small = [name for name, entries in stage.sizes.items() if getattr(made, name) != entries]
    if small:
        yield f"other sizes than in node.yaml: {', '.join(small)}"
    home = Pins.of(stage.name)
    running = stage.instance.running().program.id
    links = (link.link_info(home.link(name)) for name in home.interfaces())
    if any(known is None or known.prog_id != running for known in links):
        yield "a link runs another program than the pinned one"
    left = (following(home.program), resizing.beside(home).directory)
    yield from (f"{path} is left behind" for path in left if path.exists())


def pointing_nowhere(instance: Instance) -> Iterator[str]:
    """Every frontend's packets, on every slot."""
    state = PinnedMaps(instance).read()
    sizes = {pool.size for pool in state.pools.values()}
    for packet in packets(state):
        try:
            for draw in range(max(sizes, default=1)):
                route(state, packet, draw, {})
        except Dangling as error:
            yield f"something points at something absent: {error}"


def _tracebacks(stage: Stage) -> Iterator[str]:
    for name in DAEMONS:
        words = stage.words(name)
        if (at := words.find("Traceback")) >= 0:
            yield f"{name} failed inside:\n{words[at : at + 2000]}"
