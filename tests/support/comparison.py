"""The program beside the model: one conversation, and after it everything that both remember.

Where the model allows several outcomes, all that agree with what was seen are followed. Judges
nothing itself: what is right is the model's word, what happened is the test bed's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

from bpf import kernel
from bpf.abi import Side, Verdict
from tests.support import bed as bedding
from tests.support import frames, steps
from tests.support.bed import BACKEND_SIDE_MAC, BACKENDS, CLIENT_SIDE_MAC, CLIENTS, Bed
from tests.support.checksums import problems
from tests.support.frames import difference, mac
from tests.support.model import Action, Flow, Model, Outcome, Return, Way, parse
from tests.support.model.parse import TCP, Packet, Stop, Tuple
from tests.support.model.state import Counts, Gate, applied
from tests.support.steps import (
    Again,
    Age,
    Back,
    Complaint,
    Evict,
    Mangled,
    Ping,
    Raw,
    Reload,
    Shape,
    Step,
    Sweep,
    Tamper,
    Towards,
)
from tests.support.world import World, apply

_NOWHERE = Way()
_LOCAL = Way(local=True)
_UNKNOWN_NEIGHBOUR = Way(neighbour=False)
_FOLLOWED = 16  # models at most


def _via(address: str, mtu: int = 1500) -> Way:
    side = BACKENDS if address.startswith(("10.1.", "2001:db8:b:")) else CLIENTS
    own = BACKEND_SIDE_MAC if side == BACKENDS else CLIENT_SIDE_MAC
    return Way(side, mtu, mac(_NEIGHBOURS[address]), mac(own))


_NEIGHBOURS = {
    "198.51.100.7": "02:00:00:00:00:07",
    "198.51.100.8": "02:00:00:00:00:08",
    "198.51.100.254": bedding.ROUTER_MAC,
    "2001:db8:c::7": "02:00:00:00:00:07",
    "2001:db8:c::8": "02:00:00:00:00:08",
    "2001:db8:c::fe": bedding.ROUTER_MAC,
    "10.1.0.77": "02:00:00:00:0b:77",
    "2001:db8:b::77": "02:00:00:00:0b:77",
}
_OWN = ("198.51.100.1", "198.51.100.255", "10.1.0.1", "10.1.0.255", "2001:db8:c::1",
        "2001:db8:b::1", "2001:db8:c::", "2001:db8:b::")  # fmt: skip
_ON_LINK = ("198.51.100.0/24", "10.1.0.0/24", "2001:db8:c::/64", "2001:db8:b::/64", "fe80::/64")
_ROUTES = {
    "203.0.113.0/24": _via("198.51.100.254"),
    "203.0.114.0/24": _via("198.51.100.254", 1400),
    "203.0.115.0/24": _NOWHERE,
    "203.0.116.0/24": _NOWHERE,
    "203.0.117.0/24": _NOWHERE,
    "2001:db8:f::/64": _via("2001:db8:c::fe"),
    "2001:db8:f1::/64": _via("2001:db8:c::fe", 1400),
    "2001:db8:f2::/64": _NOWHERE,
    "2001:db8:f3::/64": _NOWHERE,
    "2001:db8:f4::/64": _NOWHERE,
}
_NETWORKS: list[tuple[IPv4Network | IPv6Network, Way]] = [
    (ip_network(net), way) for net, way in _ROUTES.items()
]


def fib(family: int, source: bytes, destination: bytes, ifindex: int) -> Way:
    """The routes and neighbours of the test bed. Source and ingress decide nothing there."""
    return _way(destination)


@cache
def _way(destination: bytes) -> Way:
    """No route at all is "not forwarded", to the kernel: the same as a local address."""
    address = ip_address(destination)
    if str(address) in _NEIGHBOURS:
        return _via(str(address))
    if str(address) in _OWN:
        return _LOCAL
    if any(address in ip_network(net) for net in _ON_LINK):
        return _UNKNOWN_NEIGHBOUR
    return next((way for net, way in _NETWORKS if address in net), _LOCAL)


@dataclass(frozen=True, slots=True)
class Seen:
    """A frame that went in, and what came of it."""

    frame: bytes
    at: int
    got: bedding.Outcome


@dataclass
class Conversation:
    """Steps against a bed and the models beside it."""

    bed: Bed
    world: World
    models: list[Model] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    tampers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bed.load(self.world)
        self.models = [Model(self.world.raw())]

    # ---- steps ----

    def take(self, step: Step) -> None:
        if isinstance(step, Age):
            self.bed.age(step.ticks)
            self.models = [aged(model, step.ticks) for model in self.models]
        elif isinstance(step, Reload):
            self.world = steps.changed(self.world, step)
            self._reload()
        elif isinstance(step, Tamper):
            self.tampers.append(step.what)
            self._reload()
        elif isinstance(step, Evict):
            self._evict(step.store)
        elif isinstance(step, Sweep):
            self._sweep()
        elif made := self.frame(step):
            self.send(*made)

    def _reload(self) -> None:
        self.bed.world = self.world
        apply(self._raw(), self.bed.instance)
        self.models = [model.configured(self._raw()) for model in self.models]

    def _raw(self) -> dict[str, dict[Any, Any]]:
        raw = self.world.raw()
        for what in self.tampers:
            raw = steps.tampered(raw, what)
        return raw

    def _evict(self, store: str) -> None:
        """Both sides of half-open flows are in one map, and go one by one as well."""
        name = "opening" if store == "answering" else store
        side = {"opening": Side.CLIENT, "answering": Side.BACKEND}.get(store)
        for version in (4, 6):
            entries = getattr(self.bed.maps, f"{name}{version}")
            keys = [key for key, _ in entries.items()]
            entries.delete_many([key for key in keys if side is None or key.side == side])
        self.models = [without(model, store) for model in self.models]

    def _sweep(self) -> None:
        now = kernel.now_tick()
        report = self.bed.instance.sweep(now)
        swept = [model.swept(now) for model in self.models]
        reports = [(done.expired, done.flows) for _, done in swept]
        said = (report.expired, report.flows)
        assert said in reports, f"sweep: (expired, flows) are {said}, the model says {reports}"
        self.models = [model for model, done in swept if (done.expired, done.flows) == said]

    def frame(self, step: Step) -> tuple[bytes, int] | None:
        """What a step sends, and by which interface; None: there is nothing yet to refer to."""
        if isinstance(step, Towards):
            return steps.towards_frame(self.world, step), CLIENTS
        if isinstance(step, Ping):
            return steps.ping_frame(self.world, step), CLIENTS
        if isinstance(step, Raw):
            return step.frame, CLIENTS
        if isinstance(step, Mangled):
            made = self.frame(step.step)
            return made and (steps.mangled_frame(made[0], step), made[1])
        if isinstance(step, Again):
            seen = self._pick(self.seen, step.pick)
            return seen and (seen.frame, seen.at)
        if isinstance(step, Back):
            return self._reply(step)
        assert isinstance(step, Complaint)
        return self._complaint(step)

    @staticmethod
    def _pick(things: list[Any], pick: int) -> Any:
        """Counted from the newest."""
        return things[-1 - pick % len(things)] if things else None

    def _sent(self, *verdicts: Verdict) -> list[Seen]:
        return [seen for seen in self.seen if seen.got.verdict in verdicts]

    def _reply(self, step: Back) -> tuple[bytes, int] | None:
        seen = self._pick(self._sent(Verdict.FORWARDED), step.pick)
        packet = parsed(seen.got.frame) if seen else None
        if packet is None:
            return None
        return answer(packet.tuple, step.flags, step.shape), BACKENDS

    def _complaint(self, step: Complaint) -> tuple[bytes, int] | None:
        if step.about_reply:
            return self._about_reply(step)
        seen = self._pick(self._sent(Verdict.FORWARDED), step.pick)
        packet = parsed(seen.got.frame) if seen else None
        if packet is None:
            return None
        return complaint(packet.frame[packet.l3 : packet.end], step), BACKENDS

    def _about_reply(self, step: Complaint) -> tuple[bytes, int] | None:
        """About what a client would have got: built from what it sent."""
        seen = self._pick(self._sent(Verdict.FORWARDED), step.pick)
        packet = parsed(seen.frame) if seen else None
        if packet is None:
            return None
        reply = parsed(answer(packet.tuple, "A", Shape()))
        assert reply is not None
        return complaint(reply.frame[reply.l3 : reply.end], step), CLIENTS

    # ---- one packet ----

    def send(self, frame: bytes, at: int) -> None:
        before = kernel.now_tick()
        got = self.bed.send(frame, at)
        ticks = dict.fromkeys((before, kernel.now_tick()))
        possible = [
            (model, outcome)
            for model in self.models
            for now in ticks
            for outcome in model.outcomes(frame, ifindex=at, now=now, fib=fib)
        ]
        agreeing = [pair for pair in possible if agrees(frame, got, pair[1])]
        assert agreeing, self._report(frame, at, got, [outcome for _, outcome in possible])
        self.models = unique([model.after(outcome) for model, outcome in agreeing])[:_FOLLOWED]
        self.seen.append(Seen(frame, at, got))

    def _report(self, frame: bytes, at: int, got: Any, wanted: list[Outcome]) -> str:
        lines = [f"in by {at}: {frame.hex()}", str(frames.describe(frame))]
        lines.append(f"the program: {got.verdict.name} {got.action.name}")
        for outcome in wanted[:3]:
            lines.append(f"the model: {outcome.verdict.name} {outcome.action.name}")
            if outcome.verdict == got.verdict and outcome.action != Action.DROP:
                lines.append(difference(got.frame, outcome.frame))
        return "\n".join(lines)

    # ---- at the end ----

    def compare_memory(self) -> None:
        """What the program remembers is what one of the models does."""
        found = remembered(self.bed, self.world)
        each = (differences(found, memory_of(model, self.world)) for model in self.models)
        closest = min(each, key=len)
        assert not closest, "\n".join(closest)
        self._check_hops()

    def _check_hops(self) -> None:
        """A next hop that an entry carries is the one to its client."""
        hops = dict(self.bed.maps.hops.items())
        for version in (4, 6):
            entries = [*self.bed.returns(version).values(), *self.bed.opening(version).values()]
            for entry in entries:
                if (
                    entry.flow.hop
                    and entry.client.side == Side.CLIENT
                    and bytes(entry.client).strip(b"\0")
                ):
                    self._check_hop(hops, entry)

    def _check_hop(self, hops: dict[int, Any], entry: Any) -> None:
        client = plain(entry.client)
        frontend = self.models[0].config.frontend(entry.flow.frontend)
        if frontend is None or entry.flow.hop not in hops:
            return
        hop, way = hops[entry.flow.hop], fib(client.family, b"", client.source, 0)
        said = (hop.ifindex, hop.mtu, bytes(hop.dmac), bytes(hop.smac))
        assert said == (way.ifindex, way.mtu, way.dmac, way.smac), (
            f"next hop of {client}: {said}, not {way}"
        )


def parsed(frame: bytes) -> Packet | None:
    try:
        return parse.packet(frame, parse.head(frame))
    except Stop:
        return None


def answer(sent: Tuple, flags: str, shape: Shape) -> bytes:
    """What the receiver of such a packet sends back."""
    back = sent.back()
    ends = (str(ip_address(back.source)), back.sport, str(ip_address(back.destination)), back.dport)
    protocol = "tcp" if sent.protocol == TCP else "udp"
    return steps.built(*ends, protocol, flags, shape)


def complaint(about: bytes, step: Complaint) -> bytes:
    """An ICMP error to the sender of an IP packet, by its receiver or a router."""
    version = about[0] >> 4
    source, target = (12, 16) if version == 4 else (8, 24)
    size = target - source
    to = str(ip_address(about[source : source + size]))
    by = str(ip_address(about[target : target + size]))
    if step.by_router:
        by = "192.0.2.254" if version == 4 else "2001:db8:9::fe"
    kind, code = {4: ((3, 4), (11, 0), (12, 0)), 6: ((2, 0), (3, 0), (4, 1))}[version][step.kind]
    segment = frames.icmp(kind, code, about[: step.quoted], rest=1280, version=version)
    return steps.shaped(by, to, segment, step.shape)


def agrees(frame: bytes, got: bedding.Outcome, wanted: Outcome) -> bool:
    if (got.verdict, int(got.action)) != (wanted.verdict, int(wanted.action)):
        return False
    if wanted.action == Action.DROP or got.frame == wanted.frame:
        return True
    return not wanted.exact and bool(problems(frame)) and masked(got.frame) == masked(wanted.frame)


def masked(frame: bytes) -> bytes:
    """Without the outer UDP checksum of GUE over IPv6."""
    packet = parsed(frame)
    if packet is None:
        return frame
    return frame[: packet.l4 + 6] + b"\0\0" + frame[packet.l4 + 8 :]


def unique(models: list[Model]) -> list[Model]:
    kept: list[Model] = []
    for model in models:
        if not any(model.state == other.state for other in kept):
            kept.append(model)
    return kept


# ---- memory, in the model's words ----


def aged(model: Model, ticks: int) -> Model:
    """As if so many ticks had passed: entries are older; gates are left alone."""
    changes: list[tuple[Any, Any]] = []
    for key, value in model.state.items():
        if isinstance(value, Flow):
            changes.append((key, older(value, ticks)))
        elif isinstance(value, Return):
            changes.append((key, Return(value.client, older(value.flow, ticks))))
    return Model(model.raw, applied(model.state, tuple(changes)), model.config)


def without(model: Model, store: str) -> Model:
    """The model after entries were evicted: nothing else hears of it."""
    gone = tuple((key, None) for key in model.state if key[0] == store)
    return Model(model.raw, applied(model.state, gone), model.config)


def older(flow: Flow, ticks: int) -> Flow:
    return flow.at((flow.seen - ticks) & 0xFFFFFFFF)


def plain(key: Any) -> Tuple:
    addresses = (key.saddr, key.daddr)
    if isinstance(key.saddr, int):
        source, destination = (address.to_bytes(4, "big") for address in addresses)
    else:
        source, destination = (bytes(address) for address in addresses)
    return Tuple(source, destination, key.sport, key.dport, key.proto)


def plain_flow(flow: Any, *, client_side: bool) -> Flow:
    port = flow.hop if client_side else 0
    return Flow(flow.backend, flow.frontend, flow.seen, port, flow.state)


Memory = dict[tuple[str, Any], Any]


def remembered(bed: Bed, world: World) -> Memory:
    found: Memory = {}
    for version in (4, 6):
        for key, value in bed.flows(version).items():
            found["flows", plain(key)] = plain_flow(value, client_side=True)
        for key, value in bed.returns(version).items():
            flow = plain_flow(value.flow, client_side=False)
            found["returns", plain(key)] = Return(plain(value.client), flow)
        for key, value in bed.opening(version).items():
            found |= _opening(key, value)
    found |= {("live", at): n for at, n in bed.maps.live.items() if n}
    return found | _service_state(bed, world) | _counts(bed, world)


def _opening(key: Any, value: Any) -> Memory:
    if key.side == Side.CLIENT:
        return {("opening", plain(key)): plain_flow(value.flow, client_side=True)}
    flow = plain_flow(value.flow, client_side=False)
    return {("answering", plain(key)): Return(plain(value.client), flow)}


def _service_state(bed: Bed, world: World) -> Memory:
    found: Memory = {}
    for service in world.services:
        state = bed.maps.service_state.get(world.index(service.name))
        if service.gate and state.gate:
            taken = min(state.gate & 0xFFFFFFFF, service.gate)
            found["gate", world.id(service.name)] = Gate(state.gate >> 32, taken)
        if state.cursor:
            found["cursor", world.id(service.name)] = state.cursor
    return found


def _counts(bed: Bed, world: World) -> Memory:
    found: Memory = {}
    names = [("service_counts", s.name) for s in world.services]
    names += [("backend_counts", f"{p.name}/{b.name}") for p in world.pools for b in p.backends]
    for store, name in names:
        said = bed.counted(name)
        counts = Counts(said.packets, said.bytes, said.flows, said.reply_packets, said.reply_bytes)
        if counts != Counts():
            found[store, world.index(name)] = counts
    return found


def memory_of(model: Model, world: World) -> Memory:
    """The model's memory without what the program does not keep."""
    kept = {key: value for key, value in model.state.items() if key[0] != "verdicts"}
    return {key: value for key, value in kept.items() if not (key[0] == "live" and not value)}


def differences(found: Memory, wanted: Memory) -> list[str]:
    return [
        f"{store}[{key}]: the program has {found.get((store, key))}, the model"
        f" {wanted.get((store, key))}"
        for store, key in dict.fromkeys([*wanted, *found])
        if found.get((store, key)) != wanted.get((store, key))
    ]
