"""Hints: told of what happens in a folder, whatever happens to the folder; and said when there are none."""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from watchdog.events import FileClosedEvent, FileClosedNoWriteEvent, FileOpenedEvent
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from reconciler.source import FileSource, Poke
from reconciler.watching import Hint
from tests.support.wait import until


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "etc"
    made.mkdir()
    return made


class Watch:
    """A hint that pokes, as the loop has it."""

    def __init__(self, path: Path) -> None:
        self.poke = Poke()
        self.hint = Hint(FileSource(path).folders, self.poke)
        self.hint.check()

    def told(self) -> None:
        until(lambda: self.poke.wait(0), 5, what="an event")

    def quiet(self) -> None:
        """Events of before are told by now: this one comes after them."""
        while self.poke.wait(0.05):
            pass


@pytest.fixture
def watch(folder: Path) -> Iterator[Watch]:
    made = Watch(folder / "lb.yaml")
    yield made
    made.hint.close()


def test_every_way_of_changing_a_file_is_told(folder: Path, watch: Watch) -> None:
    path = folder / "lb.yaml"
    path.write_text("a: 1\n")
    watch.told()
    for round_ in range(2):  # watches of files are dead after the first
        watch.quiet()
        (folder / "new").write_text(f"a: {round_}\n")
        (folder / "new").rename(path)
        watch.told()
    watch.quiet()
    path.unlink()
    watch.told()
    assert not watch.hint.trouble


def test_a_swapped_link_is_told(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lb.yaml").touch()
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/data").symlink_to("../one")
    (tmp_path / "conf/lb.yaml").symlink_to("data/lb.yaml")
    watch = Watch(tmp_path / "conf/lb.yaml")
    try:
        (tmp_path / "conf/next").symlink_to("../two")
        watch.quiet()
        (tmp_path / "conf/next").rename(tmp_path / "conf/data")
        watch.told()
        assert watch.hint.check()  # another folder is behind the link now
        watch.quiet()
        (tmp_path / "two/lb.yaml").write_text("a: 1\n")
        watch.told()
    finally:
        watch.hint.close()


@pytest.mark.parametrize("how", ["renamed", "removed"])
def test_a_folder_that_is_replaced_is_watched_anew(folder: Path, watch: Watch, how: str) -> None:
    if how == "renamed":
        folder.rename(folder.with_name("old"))
    else:
        shutil.rmtree(folder)
    folder.mkdir()
    # A removed folder's number may be the new one's: then it is the emitter's end that tells.
    until(watch.hint.check, what="a new watch")
    watch.quiet()
    (folder / "lb.yaml").write_text("a: 1\n")
    watch.told()
    assert not watch.hint.check(), "nothing to set up while all is well"


def test_a_dead_emitter_is_noticed(folder: Path, watch: Watch) -> None:
    observer = watch.hint._observer
    assert observer is not None
    (emitter,) = observer.emitters
    emitter.stop()
    emitter.join()
    assert observer.is_alive()  # or so it says
    assert watch.hint.check()
    watch.quiet()
    (folder / "lb.yaml").touch()
    watch.told()


def test_reading_does_not_wake_the_reader(folder: Path) -> None:
    poke = Poke()
    hint = Hint(lambda: (folder,), poke)
    hint.dispatch(FileOpenedEvent("lb.yaml"))
    hint.dispatch(FileClosedNoWriteEvent("lb.yaml"))
    assert not poke.wait(0)
    hint.dispatch(FileClosedEvent("lb.yaml"))
    assert poke.wait(0)


def test_without_watches_it_is_said_once_and_tried_again(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full = True

    def observer() -> BaseObserver:
        made: BaseObserver = Observer()
        if full:
            made.start = _no_watches  # type: ignore[method-assign]
        return made

    hint = Hint(lambda: (folder,), Poke(), observer)
    hint.check()
    hint.check()
    assert hint.trouble.startswith("no file events (No space left on device)")
    assert len(caplog.records) == 1
    full = False
    hint.check()
    assert hint.trouble == ""
    hint.close()


def _no_watches() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_folder_that_is_not_there_yet_is_no_trouble(tmp_path: Path) -> None:
    watch = Watch(tmp_path / "later/lb.yaml")
    assert not watch.hint.trouble
    (tmp_path / "later").mkdir()
    assert watch.hint.check()
    (tmp_path / "later/lb.yaml").touch()
    watch.told()
    watch.hint.close()
