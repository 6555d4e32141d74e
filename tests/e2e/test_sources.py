"""The real daemon and where its configuration comes from: how soon, from which commit, and through what."""

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bpf import abi
from bpf.kernel import AbiMismatch, Instance, instances
from bpf.pins import Pins
from tests.support.balancer import CONFIG, Balancer
from tests.support.repository import Repository
from tests.support.unit import unit
from tests.support.wait import until

SEALED = CONFIG + "...\n"
ONLY_WEB2 = SEALED.replace(
    "      web1: {address: 10.1.2.101, port: 8080}", "      web1: {address: 10.1.2.101, port: 8080, weight: 0}"
)  # fmt: skip


@pytest.fixture
def balancer() -> Iterator[Balancer]:
    with Balancer() as made:
        made.config.write_text(SEALED)
        yield made


def meta(balancer: Balancer) -> abi.Meta:
    """What the box forwards, asked of the maps."""
    with Instance.open(balancer.name, read_only=True) as instance:
        found = instance.maps.meta.get(0)
    assert found is not None
    return found


def commit_of(balancer: Balancer) -> str:
    return meta(balancer).commit.decode()


def history(balancer: Balancer) -> list[dict[str, Any]]:
    found = balancer.command("history", "--output", "json")
    assert found.returncode == 0, found.stderr
    kept: list[dict[str, Any]] = json.loads(found.stdout)["generations"]
    return kept


def replace(path: Path, text: str) -> None:
    beside = path.with_name("beside")
    beside.write_text(text)
    beside.rename(path)


def test_a_file_is_followed_soon_and_kept_through_its_loss(balancer: Balancer) -> None:
    balancer.start()
    with Instance.open(balancer.name, read_only=True) as instance:
        for round_ in range(5):
            before = instance.maps.meta.get(0).generation  # type: ignore[union-attr]
            replace(balancer.config, f"# {round_}\n{SEALED if round_ % 2 else ONLY_WEB2}")
            until(
                lambda: instance.maps.meta.get(0).generation > before,  # type: ignore[union-attr]  # noqa: B023
                interval=0.01,
                what="the next generation",
            )
    assert balancer.answering() == {"web2"}
    _loss_removes_nothing(balancer)


def _loss_removes_nothing(balancer: Balancer) -> None:
    for spoil, reason in (
        (lambda: balancer.config.unlink(), "FileMissing"),
        (lambda: balancer.config.write_text(""), "FileEmpty"),
    ):
        spoil()
        until(lambda: _condition(balancer, "SourceFresh")["reason"] == reason, what=reason)  # noqa: B023
        assert balancer.answering(2) == {"web2"}
    balancer.config.write_text(ONLY_WEB2.removesuffix("...\n"))
    until(lambda: _condition(balancer, "ConfigValid")["reason"] == "CutOff", what="the refusal")
    balancer.stop(signal.SIGKILL)
    balancer.config.unlink()
    balancer.start()  # ready: with the last good one
    assert "the last good one kept on disk" in balancer.log
    assert balancer.answering(2) == {"web2"}
    balancer.config.write_text(SEALED)
    until(lambda: balancer.answering() == {"web1", "web2"}, what="both")


def _condition(balancer: Balancer, type_: str) -> dict[str, Any]:
    return next(found for found in balancer.status()["conditions"] if found["type"] == type_)


def test_git_is_followed_and_history_goes_forward_only(balancer: Balancer) -> None:
    upstream = Repository(balancer.folder / "upstream")
    first = upstream.commit(SEALED, "both", "hosts/lb.yaml")
    balancer.source = ("--from-git", upstream.url, "--path", "hosts/lb.yaml", "--every", "600")
    balancer.start()
    assert commit_of(balancer) == first

    second = upstream.commit(ONLY_WEB2, "drain web1", "hosts/lb.yaml")
    plan = balancer.command("--dry-run", *balancer.source[:4], "--node", str(balancer.node))
    assert f'commit {second[:12]} "drain web1" by Ada' in plan.stdout, plan.stderr
    _look_now(balancer)
    until(lambda: commit_of(balancer) == second, what="the second commit")
    assert balancer.answering() == {"web2"}

    upstream.reset(first)
    _look_now(balancer)
    until(lambda: "git revert" in balancer.log, what="the refusal")
    assert commit_of(balancer) == second

    upstream.reset(second)
    reverted = upstream.revert()
    _look_now(balancer)
    until(lambda: commit_of(balancer) == reverted, what="the revert")
    assert balancer.answering() == {"web1", "web2"}
    until(lambda: len(history(balancer)) == 3, what="the history")
    newest = history(balancer)[0]
    assert newest["commit"] == reverted
    assert newest["author"] == "Ada <ada@example.com>"
    assert newest["result"] == "applied"


def _look_now(balancer: Balancer) -> None:
    assert balancer.process is not None
    balancer.process.send_signal(signal.SIGHUP)


def test_break_glass_with_a_daemon_and_without(balancer: Balancer) -> None:
    balancer.start()
    replace(balancer.config, ONLY_WEB2)
    until(lambda: balancer.answering() == {"web2"}, what="web2 alone")

    back = balancer.command("rollback", "--reason", "web2 drops half", "--for", "2h")
    assert (back.returncode, "generation 3 forwards what 1 did" in back.stdout) == (0, True), back
    assert balancer.answering() == {"web1", "web2"}
    suspended = _condition(balancer, "Suspended")
    assert suspended["status"] == "True"
    assert "web2 drops half" in suspended["message"]

    assert balancer.command("resume").returncode == 0
    until(lambda: balancer.answering() == {"web2"}, what="the file again")

    assert balancer.command("suspend", "--reason", "a quiet evening").returncode == 0
    until(lambda: _condition(balancer, "Suspended")["status"] == "True", what="the suspension")
    replace(balancer.config, SEALED)
    _look_now(balancer)
    balancer.stop(signal.SIGKILL)
    assert balancer.answering() == {"web2"}

    with balancer.host.entered():  # where it has to find routes and neighbours itself
        done = balancer.command(
            "rollback", "1", "--reason", "dead of night", "--node", str(balancer.node)
        )
    assert done.returncode == 0, done.stderr
    assert {path.stat().st_uid for path in balancer.state_dir.rglob("*")} == {
        unit("reconciler").uid
    }
    assert "no reconciler runs" in done.stdout
    assert balancer.answering() == {"web1", "web2"}
    assert history(balancer)[0]["note"] == "rolled back to generation 1: dead of night"


def test_an_order_to_a_daemon_that_has_just_started_is_answered_after_its_first_pass(
    balancer: Balancer,
) -> None:
    """As long as somebody writes the file there is nothing to apply, or after 3 s what the history has."""
    balancer.start()
    done = balancer.command("override", "web/web1", "down", "--for", "1h", "--reason", "its disk")
    assert done.returncode == 0, done
    balancer.stop(signal.SIGKILL)
    with ThreadPoolExecutor() as beside:
        with balancer.config.open("r+b"):
            balancer.start(ready=False)
            cleared = beside.submit(balancer.command, "override", "--clear", "all")
            until(lambda: _overridden(balancer) == [], what="the order to be carried out")
        assert cleared.result().stdout == "all: no longer forced\ngeneration 1\n"
        assert "NoPassYet" not in cleared.result().stderr
    assert balancer.answering() == {"web1", "web2"}


def _overridden(balancer: Balancer) -> list[Any]:
    found = balancer.command("override", "--output", "json")
    overrides: list[Any] = json.loads(found.stdout)["overrides"]
    return overrides


def test_a_teardown_leaves_nothing_and_one_of_nothing_makes_nothing(balancer: Balancer) -> None:
    balancer.run_dir.rmdir()
    done = balancer.command("teardown")
    assert (done.returncode, balancer.run_dir.exists()) == (1, False)
    assert f"instance {balancer.name}: nothing is loaded; " in done.stderr

    balancer.start()
    held = balancer.command("teardown")
    assert (held.returncode, balancer.answering()) == (1, {"web1", "web2"})
    assert "another reconciler holds it" in held.stderr
    balancer.stop(signal.SIGKILL)
    (balancer.run_dir / "health.json").write_text("{}")
    assert (balancer.run_dir / "control.sock").exists()

    assert balancer.command("teardown").returncode == 0
    assert balancer.name not in instances()
    assert not balancer.run_dir.exists()
    assert not (balancer.state_dir / "history").exists()
    assert balancer.command("teardown").returncode == 1
    assert not balancer.run_dir.exists()


def test_a_teardown_is_the_remedy_for_maps_of_another_version(balancer: Balancer) -> None:
    balancer.start()
    balancer.stop()
    Pins.of(balancer.name).map("hops").unlink()
    with pytest.raises(AbiMismatch, match="reconciler teardown"):
        Instance.open(balancer.name)
    assert balancer.command("teardown").returncode == 0
    assert balancer.name not in instances()
