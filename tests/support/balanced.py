"""A lab whose balancer forwards one service to every backend: the program itself, programmed without a reconciler.

What a reconciler would do is done as its unit's user, with its capabilities.
"""

import contextlib
import functools
from dataclasses import dataclass
from typing import Self

from bpf import abi, kernel
from tests.support import lab as labs
from tests.support import world as worlds
from tests.support.lab import Backend, Lab
from tests.support.traffic import Connection, Load, udp_echo
from tests.support.unit import unit

SERVICE_PORT = 80
REWRITTEN_PORT = 8080
GUE_PORT = 6080
PORTS = (40000, 49999)  # fullnat's
REWRITING = (abi.Forward.NAT, abi.Forward.FULLNAT)
TUNNELS = (abi.Forward.IPIP, abi.Forward.GUE)
SIZES = kernel.Sizes(
    frontends=64, services=16, pools=16, backends=64, flows4=8192, flows6=8192,
    returns4=8192, returns6=8192, opening4=4096, opening6=4096, hops=64,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """How the service forwards, and the families of its own address and of its backends' addresses."""

    forward: abi.Forward
    family: int
    backend_family: int
    arms: int = 2

    def __str__(self) -> str:
        name = f"{self.forward.name.lower()}-{self.family}"
        if self.forward in TUNNELS:
            name += f"in{self.backend_family}"
        return name + "-one-armed" * (self.arms == 1)

    @property
    def overhead(self) -> int:
        outer = 20 if self.backend_family == 4 else 40
        return {abi.Forward.IPIP: outer, abi.Forward.GUE: outer + 8}.get(self.forward, 0)


class Balanced(contextlib.ExitStack):
    """The lab, its servers, the loaded program and its maps; all of it gone afterwards."""

    def __init__(
        self, case: Case, *, weights: tuple[int, ...] = (1, 1, 1), router: bool = False
    ) -> None:
        super().__init__()
        self.case = case
        self.weights = weights
        self.router = router
        self.address = labs.SERVICE[case.family]

    def __enter__(self) -> Self:
        super().__enter__()
        with contextlib.ExitStack() as undo:
            undo.push(self.__exit__)
            self._build()
            undo.pop_all()
        return self

    def _build(self) -> None:
        self.lab = self.enter_context(
            Lab(len(self.weights), arms=self.case.arms, router=self.router)
        )
        for backend in self.lab.backends:
            self._prepare(backend)
        self.world = self._world()

    def load(self) -> Self:
        """Load, program and attach; the instance is torn down with it."""
        load = functools.partial(kernel.Instance.load, self.lab.prefix, SIZES)
        self.instance = unit("reconciler").doing(load)
        self.callback(self.instance.teardown)
        unit("reconciler").doing(lambda: worlds.apply(self.world.raw(), self.instance))
        self.attach(self.instance)
        return self

    def attach(self, instance: kernel.Instance) -> None:
        def attach() -> None:
            for interface in ("wan", "lan")[2 - self.case.arms :]:
                instance.attach(interface, kernel.Mode.NATIVE)

        with self.lab.balancer.entered():
            unit("reconciler").doing(attach)

    # ---- as a client

    def connect(self, source_port: int = 0) -> Connection:
        return Connection(self.lab.client, self.address, SERVICE_PORT, source_port=source_port)

    def udp_echo(self, data: bytes) -> bytes:
        return udp_echo(self.lab.client, self.address, SERVICE_PORT, data).body

    def under_load(self) -> Load:
        return Load(self.lab.client, self.address, SERVICE_PORT)

    # ---- as an operator

    def count(self, verdict: abi.Verdict) -> int:
        cpu = self.instance.maps.cpus.get(0)
        return 0 if cpu is None else int(cpu.verdict[verdict].packets)

    def chosen(self, source_port: int) -> str:
        """The backend that the specification gives a TCP connection from this port."""
        pool = self.world.pools[0]
        client = labs.CLIENT[self.case.family]
        hashed = worlds.tuple_hash(client, source_port, self.address, SERVICE_PORT, 6)
        return worlds.fill(pool)[worlds.slot_of(hashed, pool.size)]

    # ---- how it is built

    def _prepare(self, backend: Backend) -> None:
        forward = self.case.forward
        if forward == abi.Forward.FULLNAT:
            self.lab.forget_routes(backend)
        if forward not in REWRITING:
            self.lab.own_service_address(backend)
        if forward in TUNNELS:
            self.lab.decapsulate(backend)
        port = REWRITTEN_PORT if forward in REWRITING else SERVICE_PORT
        self.lab.serve(backend, port, service=forward not in REWRITING)

    def _world(self) -> worlds.World:
        case = self.case
        pool = worlds.Pool("web", tuple(map(self._backend, self.lab.backends, self.weights)), 1021)
        frontends = tuple((self.address, SERVICE_PORT, protocol) for protocol in ("tcp", "udp"))
        service = worlds.Service("www", frontends, (pool,), case.forward)
        settings = worlds.Settings(
            flags=abi.SettingFlag.REDIRECT_ALWAYS,
            gue_port=GUE_PORT,
            port_low=PORTS[0],
            port_high=PORTS[1],
            tunnel_source4=labs.BALANCER[4],
            tunnel_source6=labs.BALANCER[6],
            nat_source4=labs.NAT_SOURCE[4],
            nat_source6=labs.NAT_SOURCE[6],
        )
        return worlds.World((service,), settings, self.lab.balancer.ifindex("lan"))

    def _backend(self, backend: Backend, weight: int) -> worlds.Backend:
        return worlds.Backend(
            backend.name,
            backend.addresses[self.case.backend_family],
            REWRITTEN_PORT if self.case.forward in REWRITING else 0,
            weight,
            dmac=backend.mac.hex(":"),
            smac=self.lab.balancer.mac("lan").hex(":"),
        )
