"""What the loop says of itself for keepalived: from facts, and into a file."""

from dataclasses import replace
from pathlib import Path

import pytest

from bpf import abi
from reconciler import heartbeat
from reconciler.conditions import Condition, Observed, Trouble, judge
from reconciler.facts import Facts
from reconciler.heart import PACE, Heart
from tests.support.statuses import NOW, facts

WELL = Observed(now=NOW, converged=True, interfaces=("wan",), attached=("wan",), checked=True, reported_at=NOW)  # fmt: skip


def fit(conditions: tuple[Condition, ...] = judge(WELL)) -> Facts:
    found = facts()
    return replace(found, conditions=conditions, state=replace(found.state, frontends={1: abi.Frontend()}))  # fmt: skip


def beat(found: Facts) -> heartbeat.Heartbeat:
    return heartbeat.of(found, 12.9, ["/pin"], ["wan"])


def test_all_is_well() -> None:
    assert beat(fit()).text() == (
        "evenkeel heartbeat 1\nat 12\ndataplane ok\ncontrol ok\ngeneration 7\npin /pin\ninterface wan\nend\n"
    )


def test_backends_that_are_all_down_are_no_reason_to_give_the_address_away() -> None:
    found = fit()
    down = {
        at: abi.Health(id=one.id, state=abi.HealthState.DOWN) for at, one in found.health.items()
    }
    assert beat(replace(found, health=down)) == beat(found)


@pytest.mark.parametrize(
    ("change", "control"),
    [
        ({"rejected": Trouble("Rejected", "line 3")}, "Rejected"),
        ({"source": Trouble("FetchFailed", "no route")}, "FetchFailed"),
        ({"apply": Trouble("NoRoom", "full")}, "NoRoom"),
        ({"refused": ("3 of 4 removed",)}, "RemovalsRefused"),
        ({"converged": False}, "NoPassYet"),
        ({"reported_at": NOW - 60}, "StaleReport"),
    ],
)
def test_what_is_wrong_with_following_says_so_in_a_word(
    change: dict[str, object], control: str
) -> None:
    found = beat(fit(judge(replace(WELL, **change))))  # type: ignore[arg-type]
    assert (found.dataplane, found.control) == ("ok", control)


def test_a_suspension_and_an_override_are_somebodys_will() -> None:
    seen = replace(WELL, suspended=Trouble("Suspended", "incident"), overrides=("web/web1 down",))
    assert beat(fit(judge(seen))).control == "ok"


def test_a_data_plane_without_program_or_services_is_not_fit() -> None:
    missing = judge(replace(WELL, attached=()))
    assert beat(fit(missing)).dataplane == "NotAttached"
    assert beat(fit(missing)).control == "ok", "the other signal is not concerned"
    empty = fit()
    assert beat(replace(empty, state=replace(empty.state, frontends={}))).dataplane == "NoServices"
    unjudged = beat(replace(fit(), conditions=()))
    assert (unjudged.dataplane, unjudged.control) == ("NotJudged", "NotJudged")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_file_is_written_once_a_second_and_whole(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "run/heartbeat"
    heart = Heart(path.parent, "edge", ["eth0.10"], clock)
    heart.beat(None)
    assert not path.exists(), "nothing was seen yet"
    heart.beat(fit())
    said = path.read_text()
    assert "pin /sys/fs/bpf/evenkeel/edge/links/eth0%2E10\ninterface eth0.10\nend\n" in said
    clock.now += PACE / 2
    heart.beat(fit())
    assert path.read_text() == said
    heart.beat(fit(), blind=True)
    assert f"at 100\ndataplane ok\ncontrol {heartbeat.BLIND}\n" in path.read_text(), "at once"
    clock.now += PACE
    heart.beat(fit(), blind=True)
    assert "at 101\n" in path.read_text()
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_went_comes_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock, folder = Clock(), tmp_path / "run"
    heart = Heart(folder, "edge", ["wan"], clock)
    heart.beat(fit())
    (folder / "heartbeat").unlink()
    folder.rmdir()
    folder.write_text("in the way")
    for _ in range(3):
        clock.now += 1
        heart.beat(fit())
    assert len(caplog.records) == 1
    folder.unlink()
    clock.now += 1
    heart.beat(fit())
    assert (folder / "heartbeat").exists()
