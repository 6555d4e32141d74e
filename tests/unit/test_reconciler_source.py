"""A file at rest is read whole; anything else is waited for, or said. Real files, virtual time."""

import os
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from reconciler.revision import Candidate, Provenance, SourceError
from reconciler.source import LOCK_GRACE, PATIENCE, SETTLE, FileSource, Poke, folders_on_the_way
from tests.support.hurried import Hurried
from tests.support.wait import until

OLD, NEW = "a: 1\n...\n", "a: 2\n...\n"


class Clock:
    """Time goes by when somebody sleeps, and never by itself."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.each: Callable[[], object] = lambda: None  # what others do meanwhile

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        self.now += seconds
        self.each()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "etc"
    folder.mkdir()
    file = folder / "lb.yaml"
    file.write_text(OLD)
    return file


@pytest.fixture
def source(path: Path, clock: Clock) -> FileSource:
    """One that has read the old content."""
    made = FileSource(path, clock)
    assert made.read().revision.text == OLD
    assert made.look() is None
    return made


def looked(source: FileSource, clock: Clock, seconds: float = 1.0) -> Candidate | None:
    """What looks find within that time."""
    end = clock.now + seconds
    while clock.now < end:
        if found := source.look():
            return found
        clock.sleep(SETTLE / 4)
    return None


def text_of(found: Candidate | None) -> str:
    assert found is not None
    return found.revision.text


def replace(path: Path, text: str) -> None:
    beside = path.with_name("beside")
    beside.write_text(text)
    beside.rename(path)


# ---- how files are changed


def test_a_write_in_place(path: Path, source: FileSource, clock: Clock) -> None:
    path.write_text(NEW)
    assert text_of(looked(source, clock)) == NEW


def test_editors_rename_a_new_file_over_the_old(
    path: Path, source: FileSource, clock: Clock
) -> None:
    for text in (NEW, OLD, NEW):
        replace(path, text)
        assert text_of(looked(source, clock)) == text


def test_vim_moves_the_old_file_away_first(path: Path, source: FileSource, clock: Clock) -> None:
    path.rename(path.with_name("lb.yaml~"))
    assert source.look() is None  # gone, but only just now
    path.write_text(NEW)
    path.with_name("lb.yaml~").unlink()
    assert text_of(looked(source, clock)) == NEW


def test_kubernetes_swaps_a_link_to_the_folder(tmp_path: Path, clock: Clock) -> None:
    for name, text in (("..1", OLD), ("..2", NEW)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lb.yaml").write_text(text)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "lb.yaml").symlink_to("..data/lb.yaml")
    source = FileSource(tmp_path / "lb.yaml", clock)
    assert text_of(source.read()) == OLD
    (tmp_path / "..data_tmp").symlink_to("..2")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    assert text_of(looked(source, clock)) == NEW


def test_git_sync_swaps_a_link_that_names_the_commit(tmp_path: Path, clock: Clock) -> None:
    for name, text in (("1" * 40, OLD), ("2" * 40, NEW)):
        (tmp_path / ".worktrees" / name).mkdir(parents=True)
        (tmp_path / ".worktrees" / name / "lb.yaml").write_text(text)
    link = tmp_path / "current"
    link.symlink_to(Path(".worktrees") / ("1" * 40))
    source = FileSource(link / "lb.yaml", clock)
    first = source.read().revision
    assert (first.commit, first.made.provenance) == ("1" * 40, Provenance.LINK)
    (tmp_path / "tmp-link").symlink_to(Path(".worktrees") / ("2" * 40))
    (tmp_path / "tmp-link").rename(link)
    found = looked(source, clock)
    assert found is not None
    assert (found.revision.text, found.revision.commit) == (NEW, "2" * 40)


def test_a_folder_that_is_replaced(path: Path, source: FileSource, clock: Clock) -> None:
    path.parent.rename(path.parent.with_name("old"))
    path.parent.mkdir()
    path.write_text(NEW)
    assert text_of(looked(source, clock)) == NEW


def test_a_touch_or_another_mode_is_the_same_content(
    path: Path, source: FileSource, clock: Clock
) -> None:
    before = source.read().revision
    os.utime(path)
    path.chmod(0o600)
    found = looked(source, clock)
    assert found is not None
    assert found.revision == before


# ---- files that do not rest


def test_a_change_is_not_read_before_it_rests(path: Path, source: FileSource, clock: Clock) -> None:
    path.write_text(NEW)
    assert source.look() is None
    clock.sleep(SETTLE * 0.9)
    path.write_text(NEW + "# more\n")
    assert source.look() is None
    clock.sleep(SETTLE * 0.9)
    assert source.look() is None
    clock.sleep(SETTLE * 0.2)
    assert text_of(source.look()) == NEW + "# more\n"


def test_churn_does_not_starve_it(path: Path, source: FileSource, clock: Clock) -> None:
    writes = iter(range(1000))
    clock.each = lambda: replace(path, f"a: {next(writes)}\n...\n")
    clock.each()
    began = clock.now
    assert looked(source, clock, 2 * PATIENCE) is not None
    assert PATIENCE <= clock.now - began < PATIENCE + 1


def test_a_file_that_is_open_for_writing_is_waited_for(
    path: Path, source: FileSource, clock: Clock
) -> None:
    with path.open("w") as file:
        file.write("a: 2\n")
        file.flush()
        assert looked(source, clock, PATIENCE - 1) is None
        file.write("...\n")
    assert text_of(looked(source, clock)) == NEW


def test_one_that_stays_open_is_read_once_it_rested_long(
    path: Path, source: FileSource, clock: Clock
) -> None:
    with path.open("w") as file:
        file.write(NEW)
        file.flush()
        assert text_of(looked(source, clock, PATIENCE + 1)) == NEW


def test_no_half_written_file_is_ever_taken(path: Path) -> None:
    """Beside a writer that cuts it at every length, as checkouts and copies do."""
    whole = "".join(f"k{n}: {n}\n" for n in range(1500)) + "...\n"
    clock = Hurried()
    source, stop = FileSource(path, clock), threading.Event()
    rounds, between = 0, threading.Event()

    def write() -> None:
        nonlocal rounds
        while not stop.is_set():
            rounds += 1
            data = f"# {rounds}\n{whole}".encode()
            with path.open("wb", buffering=0) as file:
                for at in range(0, len(data), 4096):
                    file.write(data[at : at + 4096])
                    between.wait(0.0005)

    writer = threading.Thread(target=write)
    writer.start()
    taken = []
    try:
        while len(taken) < 4 and clock.monotonic() < 15:
            with suppress(SourceError):  # "is being written all the time": it is
                if found := source.look():
                    taken.append(found.revision.text)
            clock.sleep(0.01)
    finally:
        stop.set()
        writer.join()

    def last_is_taken() -> bool:
        taken.extend(found.revision.text for found in [source.look()] if found)
        return taken[-1:] == [path.read_text()]

    until(last_is_taken, what="the last one")
    assert all(text == OLD or text.split("\n", 1)[1] == whole for text in taken)


def test_a_checkout_under_way_is_waited_for_but_not_for_ever(
    path: Path, clock: Clock
) -> None:  # fmt: skip
    (path.parent / ".git").mkdir()
    source = FileSource(path, clock)
    assert text_of(source.read()) == OLD
    lock = path.parent / ".git/index.lock"
    lock.touch()
    path.write_text("a: half\n")
    assert looked(source, clock, LOCK_GRACE - 1) is None
    path.write_text(NEW)
    lock.unlink()
    assert text_of(looked(source, clock)) == NEW
    lock.touch()  # left behind by a crash
    path.write_text(OLD)
    assert text_of(looked(source, clock, LOCK_GRACE + 1)) == OLD


# ---- files that are not there


def test_a_missing_file_is_said_once_it_stays_missing(
    path: Path, source: FileSource, clock: Clock
) -> None:
    path.unlink()
    assert source.look() is None
    with pytest.raises(SourceError, match="no such file") as caught:
        looked(source, clock)
    assert caught.value.reason == "FileMissing"
    assert looked(source, clock) is None  # said once
    path.write_text(OLD)
    assert text_of(looked(source, clock)) == OLD


def test_an_empty_file_is_an_error(path: Path, source: FileSource, clock: Clock) -> None:
    path.write_text("")
    with pytest.raises(SourceError) as caught:
        looked(source, clock)
    assert caught.value.reason == "FileEmpty"


def test_a_folder_in_its_place_is_an_error(path: Path, source: FileSource, clock: Clock) -> None:
    path.unlink()
    path.mkdir()
    with pytest.raises(SourceError, match="not a regular file"):
        looked(source, clock)


def test_a_file_that_never_rests_ends_the_wait_with_an_error(path: Path, clock: Clock) -> None:
    lock = path.parent / ".git/index.lock"
    lock.parent.mkdir()
    lock.touch()
    with path.open("a") as file:
        clock.each = lambda: (file.write("#\n"), file.flush())
        with pytest.raises(SourceError) as caught:
            FileSource(path, clock).read()
    assert caught.value.reason == "Restless"


# ---- where it is from


def test_a_comment_names_the_commit(path: Path, clock: Clock) -> None:
    path.write_text(f"# commit: {'f' * 40}\n{OLD}")
    made = FileSource(path, clock).read().revision.made
    assert (made.id, made.provenance) == ("f" * 40, Provenance.COMMENT)


def test_the_work_tree_names_the_commit_of_just_this_content(path: Path, clock: Clock) -> None:
    def git(*command: str) -> str:
        who = ("-c", "user.name=Ada", "-c", "user.email=ada@example.com")
        run = ("git", "-C", str(path.parent), *who, *command)
        return subprocess.run(run, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("add", "lb.yaml")
    git("commit", "-q", "-m", "drain web3\n\nfor its kernel")
    made = FileSource(path, clock).read().revision.made
    assert made.id == git("rev-parse", "HEAD")
    assert (made.author, made.subject) == ("Ada <ada@example.com>", "drain web3")
    path.write_text(NEW)  # edited, not committed
    assert FileSource(path, clock).read().revision.commit == ""


def test_every_link_on_the_way_has_its_folder_watched(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/lb.yaml").touch()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/data").symlink_to("../real")
    (tmp_path / "etc/lb.yaml").symlink_to("data/lb.yaml")
    found = set(folders_on_the_way(tmp_path / "etc/lb.yaml"))
    assert {tmp_path / "etc", tmp_path / "real"} <= found


def test_a_circle_of_links_ends(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    assert set(folders_on_the_way(tmp_path / "one")) == {tmp_path}


def test_many_pokes_are_one() -> None:
    poke = Poke()
    assert not poke.wait(0)
    poke()
    poke()
    assert poke.wait(0)
    assert not poke.wait(0)
