"""keepalived's role: from its lines, and from a FIFO whose other end comes and goes."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler import vrrp
from reconciler.fifo import LONGEST_LINE, MOST, Fifo
from reconciler.vrrp import Role, State, heard, orphaned


def test_a_line_is_a_role() -> None:
    found = heard({}, ['INSTANCE "edge" BACKUP 150', 'GROUP "all" MASTER 0', "nonsense"], 10)
    assert found == {"edge": Role("edge", State.BACKUP, 150, 10)}


def test_since_is_when_the_role_began_not_when_it_was_last_said() -> None:
    found = heard({}, ['INSTANCE "edge" MASTER 150'], 10)
    found = heard(found, ['INSTANCE "edge" MASTER_PRIORITY 145'], 20)
    assert found["edge"] == Role("edge", State.MASTER, 145, 10)
    found = heard(found, ['INSTANCE "edge" FAULT 145'], 30)
    assert found["edge"] == Role("edge", State.FAULT, 145, 30)


@pytest.mark.parametrize(
    "line",
    ['INSTANCE "edge" DANCING 1', "INSTANCE edge MASTER 1", 'INSTANCE "edge" MASTER 1 2', "", 'INSTANCE "" MASTER 1'],
)  # fmt: skip
def test_other_lines_say_nothing(line: str) -> None:
    assert heard({}, [line], 10) == {}


def test_whoever_was_killed_is_unknown_and_whoever_stopped_stopped() -> None:
    before = heard({}, ['INSTANCE "a" MASTER 9', 'INSTANCE "b" STOP 9'], 10)
    after = orphaned(before, 20)
    assert after["a"] == Role("a", State.UNKNOWN, None, 20)
    assert after["b"] == before["b"]
    assert orphaned(after, 30) == after, "since it was lost, not since it was looked at"


def test_what_is_kept_comes_back() -> None:
    roles = heard({}, ['INSTANCE "a" MASTER 9', 'INSTANCE "b" BACKUP'], 10)
    assert vrrp.parse(vrrp.document(roles)) == roles


# ---- the FIFO


class Keepalived:
    """Opens the FIFO as keepalived does: for reading and writing, so that it never blocks."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            os.mkfifo(path, 0o600)
        self.descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def say(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def die(self) -> None:
        os.close(self.descriptor)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run/vrrp.fifo"


@pytest.fixture
def fifo(path: Path, clock: Clock) -> Iterator[Fifo]:
    made = Fifo(path, path.parent, clock)
    yield made
    made.close()


def roles(fifo: Fifo) -> dict[str, State]:
    return {one.name: one.role for one in fifo.look().instances}


def test_we_make_the_fifo_for_root_alone_and_wait_for_nobody(fifo: Fifo, path: Path) -> None:
    found = fifo.look()
    assert (found.running, found.instances) == (False, ())
    assert path.is_fifo()
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_keepalived_says_is_the_role(fifo: Fifo, path: Path) -> None:
    fifo.look()
    keepalived = Keepalived(path)
    keepalived.say('INSTANCE "edge" BACKUP 150\nINSTANCE "ed')
    assert fifo.look().running
    assert roles(fifo) == {"edge": State.BACKUP}
    keepalived.say('ge" MASTER 150\n')
    assert roles(fifo) == {"edge": State.MASTER}
    keepalived.die()
    assert roles(fifo) == {"edge": State.UNKNOWN}


def test_keepalived_may_be_first_and_may_come_again(fifo: Fifo, path: Path) -> None:
    path.parent.mkdir()
    keepalived = Keepalived(path)
    keepalived.say('INSTANCE "edge" MASTER 150\n')
    assert roles(fifo) == {"edge": State.MASTER}, "said before anybody listened"
    keepalived.say('INSTANCE "edge" STOP 150\n')
    keepalived.die()
    assert roles(fifo) == {"edge": State.STOP}
    keepalived = Keepalived(path)
    keepalived.say('INSTANCE "edge" BACKUP 150\n')
    assert roles(fifo) == {"edge": State.BACKUP}
    keepalived.die()


def test_a_line_that_its_writer_left_unfinished_is_nobody_elses(fifo: Fifo, path: Path) -> None:
    fifo.look()
    for text in ('INSTANCE "ed', 'INSTANCE "edge" MASTER 150\n'):
        keepalived = Keepalived(path)
        keepalived.say(text)
        fifo.look()
        keepalived.die()
        before = roles(fifo)
    assert before == {"edge": State.UNKNOWN}


def test_a_fifo_made_anew_is_noticed(fifo: Fifo, path: Path) -> None:
    fifo.look()
    path.unlink()
    keepalived = Keepalived(path)
    keepalived.say('INSTANCE "edge" MASTER 150\n')
    assert roles(fifo) == {"edge": State.MASTER}
    path.unlink()
    assert roles(fifo) == {"edge": State.UNKNOWN}, "keepalived writes where nobody can listen"
    keepalived.die()


def test_a_restart_of_ours_remembers_what_keepalived_says_only_once(
    fifo: Fifo, path: Path, clock: Clock
) -> None:
    fifo.look()
    keepalived = Keepalived(path)
    keepalived.say('INSTANCE "edge" MASTER 150\n')
    before = fifo.look()
    fifo.close()
    clock.now += 50
    again = Fifo(path, path.parent, clock)
    assert again.look() == before
    again.close()
    keepalived.say('INSTANCE "edge" BACKUP 150\n')
    third = Fifo(path, path.parent, clock)
    assert third.look().instances == (Role("edge", State.BACKUP, 150, 150),)
    third.close()
    keepalived.die()
    fourth = Fifo(path, path.parent, clock)
    assert roles(fourth) == {"edge": State.UNKNOWN}
    fourth.close()


def test_no_flood_keeps_the_loop(fifo: Fifo, path: Path) -> None:
    """Endless lines are dropped, and no turn reads for ever."""
    fifo.look()
    keepalived = Keepalived(path)
    keepalived.say("x" * (LONGEST_LINE * 3))
    fifo.look()
    keepalived.say('\nINSTANCE "edge" MASTER 1\n')
    assert roles(fifo) == {"edge": State.MASTER}
    keepalived.die()
    assert MOST < 1 << 20


@pytest.mark.parametrize("content", ["", "{", "[]", '{"roles": [["a"]]}', '{"roles": [["a", "king", 1, 2]]}'])  # fmt: skip
def test_what_was_kept_may_be_nonsense(path: Path, content: str) -> None:
    path.parent.mkdir()
    (path.parent / "vrrp.json").write_text(content)
    made = Fifo(path, path.parent)
    assert made.look().instances == ()
    made.close()


def test_what_is_no_fifo_is_said_once_and_left_alone(
    fifo: Fifo, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir()
    path.write_text("precious")
    for _ in range(3):
        assert not fifo.look().running
    assert path.read_text() == "precious"
    (said,) = caplog.messages
    assert str(path) in said
    path.unlink()
    fifo.look()
    assert path.is_fifo()
