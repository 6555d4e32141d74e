"""The last good configuration through everything a source, a disk and an operator do."""

import json
import time
from pathlib import Path

import jsonschema
import pytest

from reconciler import sources, suspension
from reconciler.acceptance import Rules
from reconciler.cli import main
from reconciler.commands import rollback
from reconciler.follow import SLOW, Follower
from reconciler.history import KEPT, Generation, History, Result, generation
from reconciler.model import Config
from reconciler.problems import Mark, Problem, Rejected
from reconciler.revision import Candidate, Commit, Revision, SourceError, revision
from reconciler.suspension import DEFAULT, Suspension

CONFIG = Config({}, {})
NOW = 1_800_000_000.0


def content(number: int, commit: str = "") -> Revision:
    return revision("lb.yaml", f"a: {number}\n...\n".encode(), Commit(commit))


class Told:
    """A source that offers what it is told to."""

    name = "lb.yaml"

    def __init__(self) -> None:
        self.next: Revision | SourceError | None = None
        self.taken: list[Revision] = []

    def look(self) -> Candidate | None:
        found, self.next = self.next, None
        if isinstance(found, SourceError):
            raise found
        return Candidate(found) if found is not None else None

    def read(self) -> Candidate:
        found = self.look()
        assert found is not None
        return found

    preview = read

    def start(self, wake: object) -> None: ...

    def due(self) -> float:
        return 0

    def hurry(self) -> None: ...

    def accepted(self, taken: Revision) -> None:
        self.taken.append(taken)

    def folders(self) -> tuple[Path, ...]:
        return ()

    def close(self) -> None: ...


class Node:
    """A reconciler's following half, that may be restarted."""

    def __init__(self, state: Path) -> None:
        self.state, self.now, self.number = state, NOW, 0
        self.restart()

    def restart(self) -> None:
        self.source = Told()
        self.follower = Follower(
            self.source, self.state, self.check, Rules(), clock=lambda: self.now
        )

    def check(self, given: Revision) -> Config:
        if "bad" in given.text:
            raise Rejected(given.path, [Problem(Mark(1, 1), "bad")], given.text)
        return CONFIG

    def offer(self, given: Revision | SourceError) -> bool:
        self.source.next = given
        return self.follower.look()

    def apply(self, given: Revision, result: Result = Result.APPLIED) -> None:
        assert self.offer(given)
        self.keep(result)

    def keep(self, result: Result = Result.APPLIED) -> None:
        self.number += 1
        self.follower.applied(self.number, result)

    @property
    def text(self) -> str:
        return self.follower.accepted.revision.text if self.follower.accepted else ""

    def suspend(self, target: Generation | None = None, seconds: float = DEFAULT) -> None:
        back = (target.number, target.digest) if target else (0, "")
        made = Suspension("incident", self.now, self.now + seconds, "ada", *back)
        suspension.write(self.state, made)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "state")


MISSING = SourceError("lb.yaml: there is no such file", "FileMissing")


# ---- the source


def test_what_is_applied_survives_everything_the_source_does(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.apply(content(1))
    for trouble in (MISSING, SourceError("lb.yaml: the file is empty", "FileEmpty")):
        assert not node.offer(trouble)
        assert node.text == content(1).text
        assert node.follower.following.trouble is not None
        assert str(trouble) in caplog.text
    assert not node.offer(revision("lb.yaml", b"bad\n...\n"))
    assert node.follower.following.rejected is not None
    assert not node.offer(revision("lb.yaml", b"a: 2\n"))  # cut off
    assert node.follower.following.rejected is not None
    assert node.follower.following.rejected.reason == "CutOff"
    assert node.offer(content(3))
    assert node.follower.following.rejected is None


def test_trouble_is_said_once_and_again_after_a_while(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.apply(content(1))
    node.offer(MISSING)
    said = caplog.text.count("no such file")
    node.follower.look()
    assert caplog.text.count("no such file") == said == 1
    node.now += 3600
    node.follower.look()
    assert caplog.text.count("no such file") == 2


@pytest.mark.parametrize("trouble", [MISSING, revision("lb.yaml", b"bad\n...\n")])
def test_a_start_without_a_usable_source_takes_the_last_good_one(
    node: Node, trouble: Revision | SourceError
) -> None:
    node.apply(content(1))
    node.apply(content(2))
    node.apply(content(3), Result.FAILED)
    node.restart()
    assert node.offer(trouble)
    assert node.text == content(2).text


def test_a_source_that_takes_its_time_does_not_keep_a_node_empty(node: Node) -> None:
    node.apply(content(1))
    node.restart()
    assert not node.follower.look()
    node.now += SLOW
    assert node.follower.look()
    assert node.text == content(1).text
    assert node.offer(content(2))


def test_a_start_with_nothing_applies_nothing(node: Node) -> None:
    assert not node.offer(MISSING)
    assert node.follower.accepted is None


def test_the_same_content_from_another_commit_is_no_other_generation(node: Node) -> None:
    node.apply(content(1, "a" * 40))
    assert node.offer(content(1, "b" * 40))  # so that meta names it
    node.follower.applied(1, Result.APPLIED)
    (kept,) = node.follower.history.generations()
    assert (kept.number, kept.commit) == (1, "b" * 40)


# ---- suspended


def test_a_suspended_source_is_not_followed_until_it_is_over(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.apply(content(1))
    node.suspend(seconds=60)
    assert not node.offer(content(2))
    assert "incident (by ada)" in caplog.text
    assert node.follower.following.suspended is not None
    node.now += 59
    assert not node.follower.look()
    node.now += 1
    assert node.follower.look()
    assert node.text == content(2).text
    assert not suspension.path_in(node.state).exists()
    assert "no longer suspended" in caplog.text


def test_resuming_follows_what_came_meanwhile(node: Node) -> None:
    node.apply(content(1))
    node.suspend()
    node.offer(content(2))
    assert suspension.clear(node.state)
    assert node.follower.look()
    assert node.text == content(2).text


def test_a_restart_does_not_end_a_suspension(node: Node) -> None:
    node.apply(content(1))
    node.suspend()
    node.restart()
    assert node.offer(content(2))
    assert node.text == content(1).text


def test_a_suspension_that_cannot_be_read_suspends(node: Node) -> None:
    node.apply(content(1))
    suspension.path_in(node.state).write_text("{")
    assert not node.offer(content(2))
    assert "reconciler resume" in node.follower.following.suspended.message  # type: ignore[union-attr]


# ---- back


def test_a_rollback_pins_a_generation_across_restarts(node: Node) -> None:
    for number in (1, 2, 3):
        node.apply(content(number))
    node.suspend(node.follower.history.find(1))
    assert node.follower.look()
    assert node.text == content(1).text
    node.keep()
    newest = node.follower.history.generations()[0]
    assert (newest.number, newest.note) == (4, "rolled back to generation 1: incident")
    node.restart()
    node.offer(content(5))
    assert node.text == content(1).text
    suspension.clear(node.state)
    assert node.follower.look()
    assert node.text == content(5).text


def test_a_generation_that_is_gone_leaves_everything_as_it_is(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.apply(content(1))
    gone = generation(7, content(7), 0, Result.APPLIED)
    node.suspend(gone)
    assert not node.follower.look()
    assert node.text == content(1).text
    assert "generation 7 is not kept" in caplog.text


def test_going_back_twice_goes_back_two_steps(node: Node) -> None:
    for number in (1, 2, 3):
        node.apply(content(number))
    kept = node.follower.history
    first = rollback.choose(kept.generations(), None, None)
    assert first.number == 2
    node.suspend(first)
    node.follower.look()
    node.keep()
    paused = suspension.read(node.state)
    assert rollback.choose(kept.generations(), paused, None).number == 1
    assert rollback.choose(kept.generations(), paused, 3).number == 3
    with pytest.raises(OSError, match="not kept; there are: 4, 3, 2, 1"):
        rollback.choose(kept.generations(), paused, 9)


def test_a_rollback_says_at_once_what_could_not_be_applied_of_it(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    node.apply(content(1))
    node.follower.applied(1, Result.PARTLY, "services[api]: 3 more backends do not fit")
    (target,) = node.follower.history.generations()
    assert rollback._await(node.follower.history, target, time.time()) == 1
    said = capsys.readouterr().err
    assert said == "generation 1 is applied but for services[api]: 3 more backends do not fit\n"


def test_what_history_prints_has_the_published_shape(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    node.apply(content(1, "a" * 40))
    node.suspend(node.follower.history.find(1), seconds=time.time())
    assert main(["history", "--output", "json", "--state-dir", str(node.state)]) == 0
    document = json.loads(capsys.readouterr().out)
    schema = json.loads(Path("schemas/history.schema.json").read_text())
    jsonschema.validate(document, schema)
    assert document["generations"][0]["commit"] == "a" * 40
    assert document["suspension"]["generation"] == 1
    assert main(["history", "--state-dir", str(node.state)]) == 0
    assert "suspended: incident (by ada); generation 1 instead" in capsys.readouterr().out


@pytest.mark.parametrize("time", ["0s", "31d", "soon", ""])
def test_a_suspension_has_an_end_and_a_reason(time: str, tmp_path: Path) -> None:
    for words in (("--for", time, "--reason", "why"), ("--reason", " ")):
        with pytest.raises(SystemExit) as caught:
            main(["suspend", *words, "--state-dir", str(tmp_path)])
        assert caught.value.code == 64
    assert not suspension.path_in(tmp_path).exists()


def test_suspend_and_resume_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ("--state-dir", str(tmp_path))
    assert main(["suspend", "--reason", "incident  4711", *place]) == 0
    found = suspension.read(tmp_path)
    assert found is not None
    assert (found.reason, found.until - found.since) == ("incident 4711", DEFAULT)
    assert main(["resume", *place]) == 0
    assert "it was suspended: incident 4711" in capsys.readouterr().out
    assert main(["resume", *place]) == 0
    assert "nothing was suspended" in capsys.readouterr().err


# ---- on disk


def test_the_last_five_are_kept_and_the_last_good_one_however_old(tmp_path: Path) -> None:
    history = History(tmp_path)
    for number in range(1, 10):
        result = Result.APPLIED if number < 3 else Result.FAILED
        history.record(generation(number, content(number), 0, result), content(number).text)
    numbers = [found.number for found in history.generations()]
    assert numbers == [9, 8, 7, 6, 5, 2]
    assert len(numbers) == KEPT + 1
    assert len(list(tmp_path.iterdir())) == 2 * len(numbers)
    good = history.last_good()
    assert good is not None
    assert history.revision(good).text == content(2).text


def test_what_is_half_written_or_changed_is_no_generation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    history = History(tmp_path)
    for number in (1, 2):
        history.record(generation(number, content(number), 0, Result.APPLIED), content(number).text)
    one, two = sorted(tmp_path.glob("*.json"))
    one.write_text(one.read_text()[:40])
    two.with_suffix(".yaml").write_text("changed: 1\n")
    (found,) = history.generations()
    assert "no record of a generation" in caplog.text
    with pytest.raises(OSError, match="not what was accepted as generation 2"):
        history.revision(found)


def test_a_disk_that_is_full_does_not_stop_the_reconciler(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.state.write_text("no folder")
    assert node.offer(content(1))
    node.follower.applied(1, Result.APPLIED)
    assert "is not kept" in caplog.text


def test_what_is_torn_down_is_not_taken_up_again(node: Node) -> None:
    node.apply(content(1))
    node.suspend()
    sources.forget(node.state)
    node.restart()
    assert not node.offer(MISSING)
    assert node.offer(revision("lb.yaml", b"a: 2\n"))  # nor does its end marker count


def test_times_are_said_as_people_say_them() -> None:
    spans = {5: "5s", 65: "1m05s", 7999: "2h13m", 200000: "2d7h", -1: "0s"}
    assert {seconds: suspension.span(seconds) for seconds in spans} == spans


def test_a_suspension_says_all_of_itself(tmp_path: Path) -> None:
    made = Suspension("why", NOW, NOW + DEFAULT, "ada", 4, "ab", allow_removals=True)
    suspension.write(tmp_path, made)
    assert suspension.read(tmp_path) == made
    assert json.loads(suspension.path_in(tmp_path).read_text())["format_version"] == "1.0"
    assert made.active(NOW + DEFAULT - 1)
    assert not made.active(NOW + DEFAULT)
