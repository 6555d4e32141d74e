"""`reconciler upgrade` under traffic, beside the daemons: nothing is lost, no flow moves, also when it is killed."""

import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bpf import carrying, link, pins, replacing, resizing
from bpf.kernel import Instance
from bpf.pins import Pins
from tests.support.balancer import BACKEND_PORT, CONFIG, NODE, PORT, Balancer
from tests.support.instances import die
from tests.support.lab import SERVICE
from tests.support.objects import DROPS, SAME, changed
from tests.support.traffic import Connection, Load
from tests.support.wait import until

CHECKED = """\
apiVersion: evenkeel/v1
checks:
  alive: {type: tcp, every: 300ms, timeout: 200ms, rise: 1, fall: 2}
"""
WITH_UDP = CONFIG.replace("[80/tcp]", "[80/tcp, 80/udp]")
WITH_UDP = WITH_UDP.replace("apiVersion: evenkeel/v1\n", CHECKED).replace(
    "  web:\n", "  web:\n    check: alive\n"
)
LARGER = NODE.replace(
    "flows4: 8192, flows6: 8192, returns4: 8192",
    "flows4: 32768, flows6: 8192, returns4: 32768, backends: 8192, services: 2048, pools: 2048",
)
STREAMS = 8
ENOUGH = 10  # requests and probes that each step has to see


@pytest.fixture(scope="module")
def balancer() -> Iterator[Balancer]:
    with Balancer() as made:
        made.config.write_text(WITH_UDP)
        made.start()
        with made.checker():
            until(lambda: healthy(made) == {"web1", "web2"}, 20, what="both backends up")
            yield made


@pytest.fixture(scope="module")
def same(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return changed(tmp_path_factory.mktemp("same"), "same", SAME)


@pytest.fixture(scope="module")
def dropper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return changed(tmp_path_factory.mktemp("drops"), "drops", DROPS)


class Streams(contextlib.ExitStack):
    """Connections that stay open, each with the backend that it began with."""

    def __init__(self, balancer: Balancer) -> None:
        super().__init__()
        self.open = [
            self.enter_context(Connection(balancer.lab.client, SERVICE[4], PORT))
            for _ in range(STREAMS)
        ]
        self.backends = [one.get().backend for one in self.open]

    def check(self) -> None:
        assert [one.get("/bytes/4000").backend for one in self.open] == self.backends


def healthy(balancer: Balancer) -> set[str]:
    pools = balancer.status()["pools"]
    return {one["name"] for one in pools[0]["backends"] if one["health"]["state"] == "up"}


@contextlib.contextmanager
def traffic(balancer: Balancer) -> Iterator[Callable[[], None]]:
    """Old streams, new requests and datagrams; what is yielded waits for some of each."""
    with Streams(balancer) as streams, Load(balancer.lab.client, SERVICE[4], PORT) as load:

        def some() -> None:
            seen = load.requests, load.echoes
            streams.check()
            until(
                lambda: load.requests > seen[0] + ENOUGH and load.echoes > seen[1] + ENOUGH,
                60,
                what="traffic",
            )

        some()
        yield some
        some()
    assert load.failures == []
    assert load.lost == 0


def upgraded(balancer: Balancer, *arguments: str, code: int = 0) -> str:
    with balancer.lab.balancer.entered():
        done = balancer.command("upgrade", "--node", str(balancer.node), *arguments)
    assert done.returncode == code, done
    return done.stdout + done.stderr


def program(balancer: Balancer) -> dict[str, Any]:
    found: dict[str, Any] = balancer.status()["program"]
    return found


def running(balancer: Balancer) -> int:
    """The id of the program that is pinned, without a daemon's word."""
    with Instance.open(balancer.name, read_only=True) as instance:
        return instance.running().program.id


def condition(balancer: Balancer) -> tuple[str, str]:
    found = balancer.condition("ProgramCurrent")
    return found["status"], found["reason"]


def test_an_upgrade_and_its_undo_lose_nothing_and_move_no_flow(
    balancer: Balancer, same: Path
) -> None:
    first = program(balancer)
    assert condition(balancer) == ("True", "Current")
    with traffic(balancer) as some:
        assert "no difference" in upgraded(balancer, "--object", str(same))
        some()
        until(lambda: program(balancer)["tag"] != first["tag"], what="the new program's tag")
        assert condition(balancer) == ("False", "OtherProgram")
        upgraded(balancer, "--undo")
        some()
        until(lambda: program(balancer)["id"] == first["id"], what="the first program's id")
    assert balancer.status()["previous_program"]["tag"] != first["tag"]


def test_a_restart_of_the_daemon_keeps_what_was_upgraded_to(balancer: Balancer, same: Path) -> None:
    upgraded(balancer, "--object", str(same))
    now = running(balancer)
    with traffic(balancer):
        balancer.stop(signal.SIGKILL)
        balancer.start()
    assert running(balancer) == now
    assert "Run `reconciler upgrade`" in balancer.log
    upgraded(balancer, "--undo")


def test_a_program_that_drops_is_refused_under_traffic_with_the_packets_named(
    balancer: Balancer, dropper: Path
) -> None:
    before = running(balancer)
    with traffic(balancer):
        said = upgraded(balancer, "--object", str(dropper), code=4)
    assert "forwarded to web/web" in said
    assert "(drop)" in said
    assert "--accept-differences" in said
    assert running(balancer) == before


@pytest.mark.parametrize(
    ("undone", "steps"),
    [(False, ("pin_programs", "_switch", "_keep_previous")), (True, ("_switch", "forget"))],
    ids=["upgrade", "undo"],
)
def test_killed_half_way_nothing_is_lost_and_the_next_run_finishes(
    balancer: Balancer,
    same: Path,
    undone: bool,
    steps: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After which steps else, and that the program is then the right one: tests/bpf."""
    words = ("--undo",) if undone else ("--object", str(same), "--sample", "10")
    if undone:
        upgraded(balancer, "--object", str(same))
    before = running(balancer)
    with traffic(balancer) as some:
        for step in steps:
            with monkeypatch.context() as patch:
                patch.setattr(replacing, step, then_die(getattr(replacing, step)))
                upgraded(balancer, *words, code=-signal.SIGKILL)
            some()
            upgraded(balancer, "--undo")  # whoever comes next completes it: so this goes back
            assert running(balancer) == before, step
    if undone:
        upgraded(balancer, "--undo")


def test_larger_maps_are_taken_over_under_traffic_and_both_daemons_follow(
    balancer: Balancer,
) -> None:
    """Of every kind: flows, and those that the daemons write."""
    with traffic(balancer) as some:
        balancer.node.write_text(LARGER)
        assert "sizes.backends 4096 -> 8192" in upgraded(balancer)
        some()
        with Instance.open(balancer.name, read_only=True) as instance:
            assert instance.sizes().flows4 == 32768
    balancer.lab.kill_server(balancer.lab.backends[0])
    until(lambda: healthy(balancer) == {"web2"}, 20, what="web1 down, by the larger health map")
    assert balancer.answering() == {"web2"}
    balancer.lab.serve(balancer.lab.backends[0], BACKEND_PORT)
    until(lambda: healthy(balancer) == {"web1", "web2"}, 20, what="web1 up again")
    balancer.config.write_text(WITH_UDP.replace("port: 8080}", "port: 8080, weight: 7}", 1))
    until(
        lambda: weights(balancer) == [7, 100], 20, what="a change of the file, in the larger maps"
    )
    with Instance.open(balancer.name, read_only=True) as instance:
        written = sorted(entry.weight for _, entry in instance.maps.backends.items())
    assert written[-2:] == [7, 100]
    assert "following" in balancer.log
    current = balancer.condition("ProgramCurrent")
    assert current["well"], current


def weights(balancer: Balancer) -> list[int]:
    return sorted(one["weight"] for one in balancer.status()["pools"][0]["backends"])


def test_while_flows_are_copied_the_loop_goes_on_and_says_so(
    balancer: Balancer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copying stands still meanwhile, as with millions of flows on a slow machine."""
    wanted = other_size(balancer)
    with traffic(balancer) as some, ThreadPoolExecutor() as beside, gate(monkeypatch) as reached:
        done = beside.submit(upgraded, balancer)
        until(lambda: reached() or done.done(), 60, what="it copies flows")
        until(lambda: condition(balancer) == ("False", "Resizing"), 30, what="status says so")
        balancer.config.write_text(WITH_UDP.replace("port: 8080}", "port: 8080, weight: 9}", 1))
        until(lambda: weights(balancer) == [9, 100], 20, what="a change of the file")
        beat = balancer.beat()
        until(lambda: balancer.beat() > beat + 1, what="its heart goes on")
        some()
        assert not done.done()
    assert "the new program forwards" in done.result()
    with Instance.open(balancer.name, read_only=True) as instance:
        assert instance.sizes().flows4 == wanted
        written = sorted(entry.weight for _, entry in instance.maps.backends.items())
    assert written[-2:] == [9, 100], "which was made while flows were copied"
    until(lambda: condition(balancer) == ("True", "Current"), 20, what="the loop has followed")
    balancer.config.write_text(WITH_UDP)


@contextlib.contextmanager
def gate(patch: pytest.MonkeyPatch) -> Iterator[Callable[[], bool]]:
    """Nobody copies flows any further until this is over. What is yielded tells whether anybody is there.

    Until then nothing else may be started: the one that copies is a fork, and would hold others' pipes open.
    """
    way, opener = os.pipe()
    bell, ringer = os.pipe()
    whole = carrying._round

    def stopped(*arguments: Any) -> None:
        whole(*arguments)
        os.write(ringer, b".")
        os.read(way, 1)

    with patch.context() as patched:
        patched.setattr(carrying, "_round", stopped)
        try:
            yield lambda: bool(select.select([bell], [], [], 0)[0])
        finally:
            os.write(opener, bytes(64))
            for end in (way, opener, bell, ringer):
                os.close(end)


def other_size(balancer: Balancer) -> int:
    """Of flow maps, in node.yaml from now on; healthcheck's and the others stay as they are."""
    with Instance.open(balancer.name, read_only=True) as instance:
        wanted = 65536 if instance.sizes().flows4 != 65536 else 32768
    balancer.node.write_text(LARGER.replace("flows4: 32768", f"flows4: {wanted}"))
    return wanted


@pytest.mark.parametrize(
    ("module", "step", "goes_over"),
    [
        (carrying, "_round", False),
        (link, "update", True),
        (pins, "exchange", True),
        (carrying, "catch_up", True),
    ],
    ids=["flows", "one link", "exchange", "late flows"],
)
def test_killed_while_it_goes_over_to_other_maps_nothing_is_lost_and_the_daemon_finishes(
    balancer: Balancer, module: Any, step: str, goes_over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Instance.open(balancer.name, read_only=True) as instance:
        before = instance.sizes().flows4
    wanted = other_size(balancer)
    with traffic(balancer) as some:
        with monkeypatch.context() as patch:
            patch.setattr(module, step, then_die(getattr(module, step)))
            upgraded(balancer, code=-signal.SIGKILL)
        some()
        left = wanted if goes_over else before
        until(lambda: finished(balancer) == left, 20, what="the daemon has finished it")
        some()


def finished(balancer: Balancer) -> int:
    """The size of the flow map, once nothing is half-way any more."""
    if resizing.beside(Pins.of(balancer.name)).directory.exists():
        return 0
    with Instance.open(balancer.name, read_only=True) as instance:
        return instance.sizes().flows4


def then_die(step: Callable[..., object]) -> Callable[..., None]:
    def killed(*arguments: object) -> None:
        step(*arguments)
        die()

    return killed
