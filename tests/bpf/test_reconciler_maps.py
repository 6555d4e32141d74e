"""The reconciler over pinned maps: the contract of the dataplane, then packets through what it wrote."""

import contextlib
import itertools
import os
import subprocess
import threading
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from bpf import abi, kernel
from bpf.abi import Verdict
from bpf.pins import locked
from reconciler import config as configuration
from reconciler import ids, node
from reconciler.attaching import attach
from reconciler.compile import Surroundings
from reconciler.dataplane import NUMBERED, Dataplane, Remove, State, Where
from reconciler.follow import Accepted
from reconciler.look import Live, View, look
from reconciler.loop import Reconciler, writer
from reconciler.maps import PinnedMaps
from reconciler.model import Address, Config
from reconciler.neigh import Neighbours
from reconciler.pieces import NextHop
from reconciler.plan import plan
from reconciler.revision import Revision
from tests.support import frames
from tests.support.bed import SIZES
from tests.support.box import CLIENT, WAN_LAN, Box, acquaint, boxed, mac_of
from tests.support.configs import NODE, configs
from tests.support.fake_dataplane import FakeMaps

ROOT = Path(__file__).parents[2]
EXAMPLES = ("nat", "dsr", "ipip", "udp", "quickstart", "two-targets")


@contextlib.contextmanager
def loaded(name: str) -> Iterator[kernel.Instance]:
    instance = kernel.Instance.load(name, SIZES)
    try:
        yield instance
    finally:
        instance.teardown()


@pytest.fixture(scope="module")
def shared() -> Iterator[PinnedMaps]:
    with loaded(f"ek{os.getpid()}maps") as instance:
        yield PinnedMaps(instance)


@pytest.fixture(params=["fake", "pinned"])
def dataplane(request: pytest.FixtureRequest) -> Dataplane:
    """Emptied, so that each test starts from nothing but used-up incarnations."""
    if request.param == "fake":
        return FakeMaps()
    maps: PinnedMaps = request.getfixturevalue("shared")
    clear(maps)
    return maps


def clear(maps: Dataplane) -> None:
    """All but the settings: these are overwritten, never removed."""
    state = maps.read()
    places = [where for where in reversed(Where) if where is not Where.SETTINGS]
    maps.apply([Remove(where, key) for where in places for key in state[where]])


def view_of(config: Config, maps: Dataplane) -> View:
    return look(config, NODE, Live(maps.read(), maps.health(), Surroundings(), SMALL))


SMALL = {"frontends": 64, "services": 32, "pools": 32, "backends": 64}
TEXT = """\
apiVersion: evenkeel/v1
pools:
  web: {backends: {web1: {address: 10.0.0.1, port: 80}, web2: {address: 10.0.0.2, port: 80}}}
  six: {backends: {six1: {address: "2001:db8::1", port: 80}}}
services:
  www: {addresses: [192.0.2.1], ports: [80/tcp, "*/udp"], pools: [web], echo: true}
  six: {addresses: ["2001:db8:1::1"], ports: [80/tcp], pools: [six]}
"""


def test_what_was_written_is_read_back(dataplane: Dataplane) -> None:
    view = view_of(configuration.load(TEXT), dataplane)
    dataplane.apply(view.ops)
    assert dataplane.read() == view.held
    assert view_of(configuration.load(TEXT), dataplane).ops == ()


def test_a_removed_entry_leaves_its_incarnation_behind(dataplane: Dataplane) -> None:
    config = configuration.load(TEXT)
    dataplane.apply(view_of(config, dataplane).ops)
    before = dataplane.read()
    clear(dataplane)
    bare = dataplane.read()
    assert all(not bare[where] for where in Where if where is not Where.SETTINGS)
    dataplane.apply(view_of(config, dataplane).ops)
    after = dataplane.read()
    for where in NUMBERED:
        used = {entry.id for entry in before[where].values()}
        again = {entry.id for entry in after[where].values()}
        assert not used & again
        assert {ids.index(number) for number in used} == {ids.index(number) for number in again}


def test_writing_the_same_twice_changes_nothing(dataplane: Dataplane) -> None:
    ops = view_of(configuration.load(TEXT), dataplane).ops
    dataplane.apply(ops)
    once = dataplane.read()
    dataplane.apply([op for op in ops if not isinstance(op, Remove)])
    assert dataplane.read() == once


def test_removing_what_is_not_there_is_no_error(dataplane: Dataplane) -> None:
    dataplane.apply([Remove(where, 5) for where in (*NUMBERED, Where.TABLES, Where.SPARES)])
    dataplane.apply([Remove(Where.FRONTENDS4, abi.Frontend4Key(addr=1, port=1, proto=6))])
    assert all(not dataplane.read()[where] for where in NUMBERED)


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(configs(), configs())
def test_the_fake_and_the_maps_never_differ(
    shared: PinnedMaps, first: Config, second: Config
) -> None:
    clear(shared)
    fake = FakeMaps(shared.read())
    for config in (first, second):
        view = view_of(config, fake)
        for op in view.ops:
            fake.apply([op])
            shared.apply([op])
        assert shared.read() == fake.read() == view.held
        assert dict(shared.read().free) == dict(fake.read().free)


def test_a_plan_is_applied_in_batches_as_one_by_one(shared: PinnedMaps) -> None:
    clear(shared)
    view = view_of(configuration.load(TEXT), shared)
    shared.apply(view.ops)
    assert plan(view.held, shared.read()) == []


# ---- packets


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with boxed(f"ek{os.getpid()}box", tmp_path) as made:
        yield made


def report_all_up(box: Box) -> None:
    maps = box.bed.instance.maps
    for at, entry in PinnedMaps(box.bed.instance).read().backends.items():
        maps.health.put(at, abi.Health(id=entry.id, state=abi.HealthState.UP, ramp=255))


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_forwards_each_of_its_frontends(box: Box, name: str) -> None:
    folder = ROOT / "examples" / name
    text, node_text = (folder / "lb.yaml").read_text(), (folder / "node.yaml").read_text()
    config = configuration.load(text)
    macs = acquaint(box, config)
    box.reconcile(text, node_text)
    report_all_up(box)
    sports = itertools.count(41000)  # two frontends of one backend cannot share a client's port
    for service in config.services.values():
        own = {
            macs[str(backend.address)]
            for pool in service.pools
            for backend in config.pools[pool].backends.values()
            if backend.takes_new
        }
        for address in service.addresses:
            for port in service.ports:
                segment = (frames.tcp if port.proto == 6 else frames.udp)(
                    next(sports), port.number or 5555
                )
                packet = frames.ip(CLIENT[address.version], str(address), segment)
                outcome = box.send(frames.eth(packet))
                assert outcome.verdict == Verdict.FORWARDED, (service.name, str(address), str(port))
                assert outcome.frame[:6].hex(":") in own


QUICK = """\
apiVersion: evenkeel/v1
pools:
  web: {backends: {web1: {address: 10.1.2.101, port: 8080}}}
services:
  www: {addresses: [192.0.2.10], ports: [80/tcp], pools: [web], fail: closed}
"""
SYN = frames.eth(frames.ip(CLIENT[4], "192.0.2.10", frames.tcp(41000, 80, "S")))


def test_a_packet_reaches_its_backend_rewritten(box: Box) -> None:
    box.neighbour("10.1.2.101", mac_of(1))
    box.reconcile(QUICK, WAN_LAN)
    outcome = box.send(SYN)
    assert outcome.verdict == Verdict.FORWARDED
    said = frames.describe(outcome.frame)
    assert outcome.frame[30:34] == ip_address("10.1.2.101").packed, said
    assert outcome.frame[36:38] == (8080).to_bytes(2), said
    assert outcome.frame[:6].hex(":") == mac_of(1)


def test_a_backend_that_changes_its_mac_is_followed(box: Box) -> None:
    box.neighbour("10.1.2.101", mac_of(1))
    box.reconcile(QUICK, WAN_LAN)
    box.neighbour("10.1.2.101", mac_of(9))
    view = box.reconcile(QUICK, WAN_LAN)
    assert [op.where for op in view.ops] == [Where.BACKENDS]
    assert box.send(SYN).frame[:6].hex(":") == mac_of(9)


def test_one_pass_after_routes_have_changed_lets_flows_find_their_clients_anew(box: Box) -> None:
    """No daemon saw that the client's neighbour became another one."""
    box.neighbour("10.1.2.101", mac_of(1))
    box.write(QUICK)
    box.run("--once")
    assert box.send(SYN).verdict == Verdict.FORWARDED
    reply = frames.ip("10.1.2.101", CLIENT[4], frames.tcp(8080, 41000, "SA"))
    lan = box.namespace.ifindex("lan")

    def towards() -> str:
        outcome = box.bed.send(frames.eth(reply), at=lan)
        assert outcome.verdict == Verdict.RETURNED
        return outcome.frame[:6].hex(":")

    assert towards() == "02:00:00:00:00:07"
    box.namespace.ip(f"neigh replace {CLIENT[4]} lladdr 02:00:00:00:00:99 dev wan nud permanent\n")
    assert towards() == "02:00:00:00:00:07", "it is kept in the flow"
    box.run("--once")
    assert towards() == "02:00:00:00:00:99"


def test_a_neighbour_that_falls_silent_is_still_sent_to(box: Box) -> None:
    box.neighbour("10.1.2.101", mac_of(1))
    box.reconcile(QUICK, WAN_LAN)
    box.namespace.ip("neigh del 10.1.2.101 dev lan\n")
    assert box.reconcile(QUICK, WAN_LAN).ops == ()
    assert box.send(SYN).verdict == Verdict.FORWARDED


class Silent(Neighbours):
    """Waits for nobody; notes whether another instance could have had the host's lock while it would."""

    free = False

    def hops(self, addresses: Iterable[Address], wait: float | None = 0) -> dict[Address, NextHop]:
        if wait:
            other = threading.Thread(target=take, daemon=True)
            other.start()
            other.join(10)
            self.free = not other.is_alive()
        return super().hops(addresses)


def take() -> None:
    with locked():
        pass


def test_nobody_else_on_the_host_waits_while_a_start_waits_for_silent_neighbours(box: Box) -> None:
    revision = Revision("lb.yaml", QUICK, b"1" * 32)
    with box.namespace.entered(), Silent() as neighbours:
        made = Reconciler(box.bed.instance, node.load(WAN_LAN), box.place, neighbours)
        made.reconcile(Accepted(configuration.load(QUICK), revision), wait=3)
        assert neighbours.free


def test_a_removed_service_is_the_kernels_again(box: Box) -> None:
    box.neighbour("10.1.2.101", mac_of(1))
    box.reconcile(QUICK.replace("services:", "guardrails: {allow-empty: true}\nservices:"), WAN_LAN)
    text = "apiVersion: evenkeel/v1\nguardrails: {allow-empty: true}\nservices: {}\n"
    box.reconcile(text, WAN_LAN)
    assert box.send(SYN).verdict == Verdict.NOT_OURS
    assert not PinnedMaps(box.bed.instance).read().backends


def test_an_empty_configuration_removes_nothing_by_itself(box: Box) -> None:
    box.neighbour("10.1.2.101", mac_of(1))
    box.reconcile(QUICK, WAN_LAN)
    view = box.reconcile("apiVersion: evenkeel/v1\nservices: {}\n", WAN_LAN)
    assert view.refused
    assert "--allow-removals" in str(view.findings[0])
    assert box.send(SYN).verdict == Verdict.FORWARDED


def test_a_backend_that_is_down_is_not_chosen(box: Box) -> None:
    box.neighbour("10.1.2.101", mac_of(1))
    box.reconcile(QUICK, WAN_LAN)
    ((at, entry),) = PinnedMaps(box.bed.instance).read().backends.items()
    box.bed.instance.maps.health.put(at, abi.Health(id=entry.id, state=abi.HealthState.DOWN))
    assert box.send(SYN).verdict == Verdict.NO_BACKEND
    box.reconcile(QUICK, WAN_LAN)
    assert box.send(SYN).verdict == Verdict.NO_BACKEND


def test_the_interfaces_that_node_yaml_names_are_attached_and_no_others(box: Box) -> None:
    def attached() -> set[str]:
        return {found.interface for found in box.bed.instance.attachments()}

    box.neighbour("10.1.2.101", mac_of(1))
    box.reconcile(QUICK, WAN_LAN)
    assert attached() == {"wan", "lan"}
    box.reconcile(QUICK, WAN_LAN.replace(", lan: {}", ""))
    assert attached() == {"wan"}


def test_while_an_interface_is_not_there_none_is_let_go(box: Box) -> None:
    """A mistyped name takes the program off no interface: forwarding goes on, and the error says both."""
    box.neighbour("10.1.2.101", mac_of(1))
    box.reconcile(QUICK, WAN_LAN)
    with box.namespace.entered():
        trouble = attach(box.bed.instance, {"wan": "auto", "lam": "auto"})
    assert {found.interface for found in box.bed.instance.attachments()} == {"wan", "lan"}
    said = str(trouble)
    assert "interface lam: not in this network namespace" in said
    assert "lan keeps the program" in said


def test_a_restart_moves_nothing(box: Box) -> None:
    """Another process, nothing but the maps: the same ids, no write."""
    box.neighbour("10.1.2.101", mac_of(1))
    box.reconcile(QUICK, WAN_LAN)
    before = PinnedMaps(box.bed.instance).read()
    assert box.reconcile(QUICK, WAN_LAN).ops == ()
    assert PinnedMaps(box.bed.instance).read() == before


def test_every_accepted_file_is_a_generation(box: Box) -> None:
    box.neighbour("10.1.2.101", mac_of(1))
    box.reconcile(QUICK, WAN_LAN)
    box.reconcile(QUICK.replace("8080", "8081"), WAN_LAN)
    meta = box.bed.instance.maps.meta.get(0)
    assert meta is not None
    assert (meta.generation, meta.phase) == (2, abi.Phase.IDLE)


def test_drift_is_repaired(box: Box) -> None:
    box.neighbour("10.1.2.101", mac_of(1))
    box.reconcile(QUICK, WAN_LAN)
    maps = box.bed.instance.maps
    whole = PinnedMaps(box.bed.instance).read()
    maps.frontends4.delete_many([key for key, _ in maps.frontends4.items()])
    maps.tables.delete(1)
    maps.backends.put(1, abi.Backend())
    maps.prefilter.view()[:] = bytes(len(maps.prefilter.view()))
    assert box.send(SYN).verdict == Verdict.NOT_OURS
    box.reconcile(QUICK, WAN_LAN)
    assert box.send(SYN).verdict == Verdict.FORWARDED
    repaired = PinnedMaps(box.bed.instance).read()
    assert without_ids(repaired) == without_ids(whole)


def without_ids(state: State) -> object:
    """All but what names an id: a lost entry may come back under another one."""
    return (
        set(state.frontends4),
        [(bytes(e.addr), e.port, e.name) for e in state.backends.values()],
        {at: len(slots) for at, slots in state.tables.items()},
        state.prefilter,
    )


# ---- the command


def command(box: Box, folder: Path, *arguments: str, ok: tuple[int, ...] = (0,)) -> str:
    whole = (
        str(ROOT / ".venv/bin/python"), "-m", "reconciler", "--config", str(folder / "lb.yaml"),
        "--node", str(folder / "node.yaml"), "--instance", box.place.instance,
        "--run-dir", str(box.place.run_dir), *arguments,
    )  # fmt: skip
    done = subprocess.run(
        box.namespace.inside(*whole),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode in ok, done.stderr
    return done.stdout


def dump(box: Box) -> dict[str, object]:
    state = PinnedMaps(box.bed.instance).read()
    return {where.value: state[where] for where in Where}


def test_a_dry_run_writes_nothing_and_waits_for_no_one(box: Box, tmp_path: Path) -> None:
    (tmp_path / "lb.yaml").write_text(QUICK)
    (tmp_path / "node.yaml").write_text(WAN_LAN)
    box.neighbour("10.1.2.101", mac_of(1))
    command(box, tmp_path, "--once")
    before, files = dump(box), {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    (tmp_path / "lb.yaml").write_text(QUICK.replace("8080", "8081") + "...\n")
    with writer(box.place):
        said = command(box, tmp_path, "--dry-run", "--detailed-exitcode", ok=(2,))
    assert "10.1.2.101:8080 -> 10.1.2.101:8081" in said
    assert "Dry run: nothing was changed." in said
    assert dump(box) == before
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()}.keys() == files.keys()
    assert command(box, tmp_path, "--dry-run"), "without --detailed-exitcode a plan is success"


def test_only_one_reconciler_writes(box: Box, tmp_path: Path) -> None:
    (tmp_path / "lb.yaml").write_text(QUICK)
    (tmp_path / "node.yaml").write_text(WAN_LAN)
    with writer(box.place):
        command(box, tmp_path, "--once", ok=(1,))
