"""The program with a network around it, without a wire: frame in, verdict and frame out.

A namespace of its own has one link towards clients and one towards backends, static neighbours and
the routes that a reply may meet. Frames go through BPF_PROG_TEST_RUN as if they had come in by one
of these links. Nothing here says what the program should do: only the clients of `expect` do.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from bpf import abi, kernel
from bpf.abi import Verdict
from tests.support.checksums import problems
from tests.support.frames import difference
from tests.support.namespace import Namespace
from tests.support.world import World, apply, index_of

T = TypeVar("T")
Action = kernel.Action

CLIENTS, BACKENDS = 10, 20  # interface numbers
CLIENT_SIDE_MAC, BACKEND_SIDE_MAC = "02:00:00:00:00:01", "02:00:00:00:0b:00"
ROUTER_MAC = "02:00:00:00:00:fe"

SIZES = kernel.Sizes(
    frontends=64, services=32, pools=32, backends=64,
    flows4=4096, flows6=4096, returns4=4096, returns6=4096, opening4=4096, opening6=4096, hops=64,
)  # fmt: skip

PASSED = (Verdict.NOT_OURS, Verdict.TRUNCATED, Verdict.RETURN_PASSED)
UNTOUCHED = (Verdict.NOT_OURS, Verdict.TRUNCATED)
CROSSING = (Verdict.FORWARDED, Verdict.RETURNED, Verdict.ICMP_FORWARDED, Verdict.ICMP_RETURNED)
ANSWERED = (Verdict.ECHO_ANSWERED, Verdict.TOO_BIG_ANSWERED)

_LINKS = f"""
link set lo up
link add clients index {CLIENTS} address {CLIENT_SIDE_MAC} type veth peer name clients-far
link add backends index {BACKENDS} address {BACKEND_SIDE_MAC} type veth peer name backends-far
link set clients up
link set clients-far up
link set backends up
link set backends-far up
addr add 198.51.100.1/24 dev clients
addr add 10.1.0.1/24 dev backends
addr add 2001:db8:c::1/64 dev clients nodad
addr add 2001:db8:b::1/64 dev backends nodad
neigh add 198.51.100.7 lladdr 02:00:00:00:00:07 dev clients nud permanent
neigh add 198.51.100.8 lladdr 02:00:00:00:00:08 dev clients nud permanent
neigh add 198.51.100.254 lladdr {ROUTER_MAC} dev clients nud permanent
neigh add 2001:db8:c::7 lladdr 02:00:00:00:00:07 dev clients nud permanent
neigh add 2001:db8:c::8 lladdr 02:00:00:00:00:08 dev clients nud permanent
neigh add 2001:db8:c::fe lladdr {ROUTER_MAC} dev clients nud permanent
neigh add 10.1.0.77 lladdr 02:00:00:00:0b:77 dev backends nud permanent
neigh add 2001:db8:b::77 lladdr 02:00:00:00:0b:77 dev backends nud permanent
route add 203.0.113.0/24 via 198.51.100.254
route add 203.0.114.0/24 via 198.51.100.254 mtu lock 1400
route add blackhole 203.0.115.0/24
route add unreachable 203.0.116.0/24
route add prohibit 203.0.117.0/24
route add 2001:db8:f::/64 via 2001:db8:c::fe
route add 2001:db8:f1::/64 via 2001:db8:c::fe mtu lock 1400
route add blackhole 2001:db8:f2::/64
route add unreachable 2001:db8:f3::/64
route add prohibit 2001:db8:f4::/64
"""
_SYSCTLS = (
    "net.ipv4.ip_forward=1",
    "net.ipv4.conf.all.forwarding=1",
    "net.ipv6.conf.all.forwarding=1",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    verdict: Verdict
    action: Action
    frame: bytes

    @property
    def backend(self) -> str:
        """Which backend the frame goes to, by its MAC: see `scenes.backend`."""
        return (
            f"b{self.frame[5]}" if self.frame[4] == 0x0B else f"not a backend: {self.frame[:6]!r}"
        )


class Bed:
    def __init__(self, instance: kernel.Instance, namespace: Namespace) -> None:
        self.instance = instance
        self.maps: Any = instance.maps
        self.namespace = namespace
        self.world = World()
        self._counted: dict[str, dict[int, abi.Counters]] = {}

    # ---- configuration and state ----

    def load(self, world: World) -> World:
        """The program starts afresh with this configuration: no flows, cursors and counts."""
        self.configure(world)
        for name in ("flows4", "flows6", "returns4", "returns6", "opening4", "opening6"):
            flows = getattr(self.maps, name)
            flows.delete_many([key for key, _ in flows.items()])
        for name in ("live", "service_state"):
            array = getattr(self.maps, name)
            array.put_many([(key, _nothing(value)) for key, value in array.items()])
        self._counted = {name: dict(getattr(self.maps, name).items()) for name in _COUNTS}
        return world

    def configure(self, world: World) -> World:
        """Another configuration over the same state, as after a reload."""
        self.world = world
        apply(world.raw(), self.instance)
        return world

    # ---- packets ----

    def send(self, frame: bytes, at: int = CLIENTS) -> Outcome:
        """One frame through the program; it must count exactly one verdict, with its bytes."""
        before = self.cpu()
        with self.namespace.entered():
            run = self.instance.run(frame, ifindex=at)
        after = self.cpu()
        counted = [
            (Verdict(i), new.packets - old.packets, new.bytes - old.bytes)
            for i, (old, new) in enumerate(zip(before.verdict, after.verdict, strict=True))
            if new.packets != old.packets or new.bytes != old.bytes
        ]
        assert [c[1:] for c in counted] == [(1, len(frame))], f"one verdict, once: {counted}"
        outcome = Outcome(counted[0][0], run.action, run.frame)
        self._check_sanity(frame, outcome)
        return outcome

    def _check_sanity(self, frame: bytes, outcome: Outcome) -> None:
        """What holds for every packet, whatever a test is about."""
        verdict, action = outcome.verdict, outcome.action
        if verdict in UNTOUCHED:
            assert outcome.frame == frame, (
                f"{verdict!r}: changed\n{difference(outcome.frame, frame)}"
            )
        if verdict in PASSED:
            assert action == Action.PASS, (verdict, action)
        elif verdict in CROSSING or verdict in ANSWERED:
            assert action in (Action.TX, Action.REDIRECT), (verdict, action)
            if not problems(frame):
                assert problems(outcome.frame) == [], difference(outcome.frame, frame)
        else:
            assert action == Action.DROP, (verdict, action)

    def expect(
        self,
        frame: bytes,
        verdict: Verdict,
        out: bytes | None = None,
        *,
        at: int = CLIENTS,
        action: Action | None = None,
    ) -> Outcome:
        """Send, and compare: the verdict, the action if given, and every byte of `out` if given."""
        outcome = self.send(frame, at)
        assert outcome.verdict == verdict, f"{outcome.verdict!r}, not {verdict!r}"
        if verdict in CROSSING:
            assert outcome.action == (Action.REDIRECT if action is None else action)
        if verdict in ANSWERED:
            assert outcome.action == (Action.TX if action is None else action)
        if out is not None:
            assert outcome.frame == out, difference(outcome.frame, out)
        return outcome

    # ---- what the program remembers ----

    def flows(self, version: int) -> dict[Any, abi.Flow]:
        return dict(getattr(self.maps, f"flows{version}").items())

    def returns(self, version: int) -> dict[Any, Any]:
        return dict(getattr(self.maps, f"returns{version}").items())

    def opening(self, version: int) -> dict[Any, Any]:
        return dict(getattr(self.maps, f"opening{version}").items())

    def remembered(self, version: int) -> tuple[int, int, int]:
        """How many flows, returns and opening entries there are."""
        return (len(self.flows(version)), len(self.returns(version)), len(self.opening(version)))

    def age(self, ticks: int) -> None:
        """As if nothing had been heard of any flow for so many ticks more."""
        for version in (4, 6):
            for name in ("flows", "returns", "opening"):
                entries = getattr(self.maps, f"{name}{version}")
                for key, value in entries.items():
                    flow = value if name == "flows" else value.flow
                    flow.seen -= ticks
                    entries.put(key, value)

    def live(self, backend: str) -> int:
        """Live flows of "pool/backend"."""
        return self.maps.live.get(self.world.index(backend)) or 0

    def cpu(self) -> abi.Cpu:
        return self.maps.cpus.get(0) or abi.Cpu()

    def counted(self, name: str) -> abi.Counters:
        """What a service ("www") or a backend ("web/b1") has counted since the world was loaded."""
        kind = "backend_counts" if "/" in name else "service_counts"
        index = self.world.index(name)
        now = getattr(self.maps, kind).get(index) or abi.Counters()
        before = self._counted[kind].get(index, abi.Counters())
        fields = [field for field, _ in abi.Counters._fields_]
        return abi.Counters(**{f: getattr(now, f) - getattr(before, f) for f in fields})

    def set_health(self, backend: str, state: abi.HealthState, ramp: int = 255) -> None:
        whole = self.world.id(backend)
        self.maps.health.put(index_of(whole), abi.Health(id=whole, state=state, ramp=ramp))

    def within_one_tick(self, attempt: Callable[[], T]) -> T:
        """Repeat until the coarse clock's tick was the same before and after: no luck involved."""
        for _ in range(10):
            before = kernel.now_tick()
            answer = attempt()
            if kernel.now_tick() == before:
                return answer
        raise TimeoutError("ten attempts, and each of them met the end of a tick (1.07 s)")

    def sweep(self) -> abi.Sweep:
        return self.instance.sweep()


_COUNTS = ("service_counts", "backend_counts")


def _nothing(value: Any) -> Any:
    return 0 if isinstance(value, int) else type(value)()


@contextlib.contextmanager
def bed(name: str = "") -> Iterator[Bed]:
    """A bed under a name of this process's own; everything is gone afterwards."""
    name = name or f"ek{os.getpid()}bed"
    with contextlib.ExitStack() as stack:
        namespace = Namespace(name)
        stack.callback(namespace.delete)
        namespace.ip(_LINKS)
        namespace.sysctl(*_SYSCTLS)
        instance = kernel.Instance.load(name, SIZES)
        stack.callback(instance.teardown)
        yield Bed(instance, namespace)


def reconfigured(world: World, **settings: Any) -> World:
    """The same world with other settings."""
    return replace(world, settings=replace(world.settings, **settings))
