"""What `control` measures on: pinned maps and next hops of a namespace of its own; the real daemon."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from bpf import kernel
from reconciler import config as configuration
from reconciler import node as nodes
from reconciler.compile import Surroundings
from reconciler.dataplane import State
from reconciler.follow import Accepted
from reconciler.look import Live, View, look
from reconciler.loop import Place, Reconciler
from reconciler.maps import PinnedMaps
from reconciler.memo import Memo
from reconciler.model import Node
from reconciler.neigh import Neighbours
from reconciler.revision import Revision
from tests.bench.objects import BenchError
from tests.support.crowd import Crowd
from tests.support.namespace import Namespace
from tests.support.wait import until

ROOT = Path(__file__).parents[2]
GATEWAY = """\
link add wan type veth peer name wan-far
link set wan up
link set wan-far up
addr add 10.1.1.1/24 dev wan
neigh add 10.1.1.2 lladdr 02:00:00:00:00:07 dev wan nud permanent
route add 10.64.0.0/10 via 10.1.1.2
"""
NODE = """\
apiVersion: evenkeel/v1
interfaces: {wan: {mode: generic}}
table-size: 4093
listen: "off"
sizes: {frontends: 4096, services: 2048, pools: 2048, backends: 16384, flows4: 4096, flows6: 4096,
  returns4: 4096, returns6: 4096, opening4: 4096, opening6: 4096}
"""
GENEROUS = 60.0


def accepted(text: str) -> Accepted:
    digest = hashlib.sha256(text.encode()).digest()
    return Accepted(configuration.load(text), Revision("lb.yaml", text, digest))


class Rig:
    def __init__(self, namespace: Namespace, folder: Path, neighbours: Neighbours) -> None:
        self.namespace, self.folder, self.neighbours = namespace, folder, neighbours
        self.node: Node = nodes.load(NODE)

    @contextlib.contextmanager
    def loaded(self) -> Iterator[kernel.Instance]:
        """Maps with nothing in them; gone afterwards."""
        instance = kernel.Instance.load(self.namespace.name, kernel.Sizes(**self.node.sizes))
        try:
            yield instance
        finally:
            instance.close()
            kernel.teardown(self.namespace.name)

    def reconciler(self, instance: kernel.Instance) -> Reconciler:
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        place = Place(instance.name, folder, folder / "state")
        return Reconciler(instance, self.node, place, self.neighbours)

    @contextlib.contextmanager
    def daemon(self) -> Iterator[Path]:
        """It follows the file that this names, from when it has applied it once."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        path, node = folder / "lb.yaml", folder / "node.yaml"
        path.write_text(Crowd(1).text())
        node.write_text(NODE)
        command = [str(ROOT / ".venv/bin/python"), "-m", "reconciler"]
        command += ["--config", str(path), "--node", str(node), "--run-dir", str(folder / "run")]
        command += ["--instance", self.namespace.name, "--state-dir", str(folder / "state")]
        process = self.namespace.spawn(*command)
        try:
            until(lambda: self.generation() == 1, timeout=GENEROUS, what="the first generation")
            yield path
        finally:
            process.terminate()
            process.wait(GENEROUS)
            kernel.teardown(self.namespace.name)

    def generation(self) -> int:
        """That the maps say is applied whole; 0: none."""
        try:
            with kernel.Instance.open(self.namespace.name, read_only=True) as instance:
                meta = instance.maps.meta.get(0)
        except kernel.NotLoaded:
            return 0
        return int(meta.generation) if meta and not meta.phase else 0


class Pass:
    """Compile, plan and apply, without what comes before and after: the part that has a mark."""

    def __init__(self, instance: kernel.Instance, node: Node) -> None:
        self._maps, self._node, self._memo = PinnedMaps(instance), node, Memo()

    @contextlib.contextmanager
    def prepared(self, taken: Accepted, around: Surroundings) -> Iterator[Callable[[], View]]:
        """Everything was read; what is to be timed; then verified, so that no figure is of something else."""
        live = Live(self._maps.read(), self._maps.health(), around, self._maps.room())
        held: list[State] = []

        def go() -> View:
            view = look(taken.config, self._node, live, allow_removals=True, memo=self._memo)
            self._maps.apply(view.ops)
            held.append(view.held)
            return view

        yield go
        if [self._maps.read()] != held:
            raise BenchError("the maps are not what was applied")


@contextlib.contextmanager
def rig() -> Iterator[Rig]:
    with contextlib.ExitStack() as stack:
        namespace = Namespace(f"ekbench{os.getpid()}")
        stack.callback(namespace.delete)
        namespace.ip(GATEWAY)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ekbench")))
        stack.enter_context(namespace.entered())
        neighbours = stack.enter_context(Neighbours())
        neighbours.follow(lambda: None)
        yield Rig(namespace, folder, neighbours)
