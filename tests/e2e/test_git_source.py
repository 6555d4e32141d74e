"""Real repositories, real git: what is followed, what is refused, and what a stuck remote costs.

Whoever follows is the user of the reconciler's unit, with its capabilities, and so is the git that it starts; the
repositories are root's.
"""

import functools
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler import git as gits
from reconciler.git import Git, GitError
from reconciler.gitsource import JITTER, LONGEST, GitSource, Place, Terms
from reconciler.revision import Ancestry, Candidate, Revision, SourceError
from reconciler.source import FileSource, Poke
from reconciler.yamlpos import MAX_BYTES
from tests.support.hurried import Hurried
from tests.support.repository import Repository, allowed_signers, signing_key
from tests.support.unit import open_folder, unit
from tests.support.wait import until

OLD, NEW = "a: 1\n...\n", "a: 2\n...\n"


DAEMON = unit("reconciler")


class Following(GitSource):
    """As the daemon does it: each call, and the thread."""

    def fetch(self) -> Candidate:
        return DAEMON.doing(super().fetch)

    def preview(self) -> Candidate:
        return DAEMON.doing(super().preview)

    def accepted(self, revision: Revision) -> None:
        DAEMON.doing(functools.partial(super().accepted, revision))

    def start(self, poke: Poke) -> None:
        DAEMON.doing(functools.partial(super().start, poke))

    def close(self) -> None:
        DAEMON.doing(super().close)


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as made:
        DAEMON.own(made / "state", DAEMON.mode("StateDirectory"))
        yield made


@pytest.fixture
def upstream(folder: Path) -> Repository:
    made = Repository(folder / "upstream")
    made.commit(OLD, "first")
    return made


def source(upstream: Repository, terms: Terms | None = None, path: str = "lb.yaml") -> GitSource:
    return Following(Place(upstream.url, path), mirror_beside(upstream), terms)


def mirror_beside(upstream: Repository) -> Path:
    return upstream.folder.with_name("state") / "git"


def reason(follower: GitSource) -> str:
    with pytest.raises(SourceError) as caught:
        follower.fetch()
    return caught.value.reason


def take(follower: GitSource) -> Candidate:
    found = follower.fetch()
    follower.accepted(found.revision)
    return found


# ---- what is offered


def test_the_content_comes_with_who_said_what(upstream: Repository) -> None:
    commit = upstream.commit(NEW, "drain web3\n\nfor its kernel")
    found = source(upstream).fetch()
    made = found.revision.made
    assert found.revision.text == NEW
    assert (made.id, made.author, made.subject) == (
        commit, "Ada <ada@example.com>", "drain web3",
    )  # fmt: skip
    assert found.ancestry is Ancestry.UNASKED


def test_nothing_is_checked_out(upstream: Repository) -> None:
    source(upstream).fetch()
    mirror = mirror_beside(upstream)
    assert (mirror / "objects").is_dir()
    assert not list(mirror.rglob("*.yaml"))
    assert not (mirror / "index").exists()


def test_ancestry_is_told_from_the_commit_that_was_accepted(upstream: Repository) -> None:
    follower = source(upstream)
    first = take(follower).revision.commit
    assert follower.fetch().ancestry is Ancestry.SAME
    second = upstream.commit(NEW)
    assert follower.fetch().ancestry is Ancestry.FORWARD
    take(follower)
    upstream.reset(first)
    assert follower.fetch().ancestry is Ancestry.BACKWARD
    upstream.commit("a: 3\n...\n")
    assert follower.fetch().ancestry is Ancestry.DIVERGED
    upstream.reset(second)
    upstream.revert()
    found = take(follower)
    assert (found.ancestry, found.revision.text) == (Ancestry.FORWARD, OLD)


def test_a_restart_does_not_forget_what_was_accepted(upstream: Repository) -> None:
    upstream.commit(NEW)
    take(source(upstream))
    upstream.reset("HEAD~1")
    assert source(upstream).fetch().ancestry is Ancestry.BACKWARD


def test_another_repository_is_no_continuation(upstream: Repository, folder: Path) -> None:
    take(source(upstream))
    stranger = Repository(folder / "stranger")
    stranger.commit("other: 1\n")
    mirror = folder / "state/git"
    assert Following(Place(stranger.url, "lb.yaml"), mirror).fetch().ancestry is Ancestry.DIVERGED


def test_a_preview_leaves_no_trace(upstream: Repository) -> None:
    follower = source(upstream)
    assert follower.preview().revision.text == OLD
    assert not mirror_beside(upstream).exists()
    take(follower)
    upstream.commit(NEW)
    mirror = mirror_beside(upstream)
    before = sorted(mirror.rglob("*"))
    found = follower.preview()
    assert (found.ancestry, found.revision.text) == (Ancestry.FORWARD, NEW)
    assert sorted(mirror.rglob("*")) == before


def test_a_repository_of_another_user(upstream: Repository) -> None:
    subprocess.run(("chown", "-R", "65534:65534", str(upstream.folder)), check=True)
    assert source(upstream).fetch().revision.text == OLD


def test_a_checkout_in_place_is_never_read_half(folder: Path) -> None:
    """git unlinks, creates and writes in pieces, and half of a file is often valid."""
    tree = Repository(folder / "tree")
    one, two = ("".join(f"{name}{n}: {n}\n" for n in range(100_000)) for name in "ab")
    commits = {tree.commit(text): text for text in (one, two)}
    clock, taken, done = Hurried(), [], threading.Event()
    follower = FileSource(tree.folder / "lb.yaml", clock)

    def check_out() -> None:
        for _ in range(20):
            for commit in commits:
                tree.git("checkout", "--quiet", "--detach", commit)
        done.set()

    worker = threading.Thread(target=check_out)
    worker.start()
    while not done.is_set():
        taken += _offered(follower)
        clock.sleep(0.01)
    worker.join()

    def last_is_taken() -> bool:
        taken.extend(_offered(follower))
        return bool(taken) and taken[-1].text == two

    until(last_is_taken, what="the last one")
    assert {found.text for found in taken} <= {one, two}
    assert {commits[found.commit] == found.text for found in taken if found.commit} <= {True}


def _offered(follower: FileSource) -> list[Revision]:
    try:
        found = DAEMON.doing(follower.look)  # who may ask for a lease on another user's file
    except SourceError as error:
        assert error.reason in {"FileMissing", "Restless"}  # noqa: PT017 -- git unlinks it first
        return []
    return [found.revision] if found else []


# ---- signatures


def test_only_allowed_signers_are_followed(upstream: Repository, folder: Path) -> None:
    """By root: ssh-keygen works for nobody whom /etc/passwd does not know. tests/e2e/package has it by the unit's user."""
    ops, stranger = signing_key(folder, "ops"), signing_key(folder, "stranger")
    terms = Terms(verify=True, allowed_signers=allowed_signers(folder, ops))
    follower = GitSource(Place(upstream.url, "lb.yaml"), folder / "git", terms)
    assert reason(follower) == "Unverified"  # not signed at all
    signed = upstream.commit(NEW, key=ops)
    found = take(follower).revision
    assert (found.commit, found.made.signer) == (signed, "ops@example.com")
    upstream.commit("a: 3\n...\n", key=stranger)  # git prints 'Good "git" signature' for it
    assert reason(follower) == "Unverified"
    upstream.reset(signed)
    upstream.revert(key=ops)
    assert take(follower).revision.text == OLD


# ---- what is no lb.yaml


def test_a_file_that_is_not_in_the_commit(upstream: Repository) -> None:
    assert reason(source(upstream, path="hosts/lb.yaml")) == "Unreadable"


def test_a_link_is_not_followed(upstream: Repository) -> None:
    (upstream.folder / "lb.yaml").unlink()
    (upstream.folder / "lb.yaml").symlink_to("/etc/shadow")
    upstream.git("add", "lb.yaml")
    upstream.git("commit", "--quiet", "-m", "a link")
    assert reason(source(upstream)) == "Unreadable"


def test_a_huge_file_is_not_even_read(upstream: Repository) -> None:
    upstream.commit("#" * (MAX_BYTES + 1))
    assert reason(source(upstream)) == "TooLarge"


def test_an_empty_file_is_nothing(upstream: Repository) -> None:
    upstream.commit("")
    assert reason(source(upstream)) == "FileEmpty"


@pytest.mark.parametrize(
    ("repository", "ref", "path"),
    [
        ("--upload-pack=touch /tmp/x", "main", "lb.yaml"),
        ("", "main", "lb.yaml"),
        ("repo", "--all", "lb.yaml"),
        ("repo", "a:b", "lb.yaml"),
        ("repo", "main", "/etc/passwd"),
        ("repo", "main", "../lb.yaml"),
        ("repo", "main", ""),
    ],
)
def test_options_and_ways_out_are_no_places(repository: str, ref: str, path: str) -> None:
    assert Place(repository, path, ref).problem()


def test_helpers_that_run_commands_are_not_asked(folder: Path) -> None:
    place = Place(f"ext::sh -c touch% {folder}/state/ran", "lb.yaml")
    assert reason(Following(place, folder / "state/git")) == "FetchFailed"
    assert not (folder / "state/ran").exists()


def test_what_the_caller_says_about_git_does_not_count(
    upstream: Repository, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(folder))
    monkeypatch.setenv("GIT_SSH_COMMAND", "false")
    monkeypatch.setenv("GIT_CONFIG_PARAMETERS", "'core.bare=maybe'")
    assert source(upstream).fetch().revision.text == OLD


# ---- remotes that do not answer


def test_a_remote_that_hangs_is_given_up_and_everything_killed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"git://127.0.0.1:{silent.getsockname()[1]}/x.git"
        follower = Following(Place(url, "lb.yaml"), folder / "state/git", Terms(timeout=0.3))
        with pytest.raises(SourceError, match=r"no end after 0\.3 s, killed"):
            follower.fetch()
    until(lambda: not _asking(url), what="the end of git's children")


def test_stopping_does_not_wait_for_a_remote_that_hangs(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"git://127.0.0.1:{silent.getsockname()[1]}/x.git"
        follower = Following(Place(url, "lb.yaml"), folder / "state/git")
        follower.start(Poke())
        until(lambda: _asking(url), what="a fetch")
        stopper = threading.Thread(target=follower.close)
        stopper.start()
        stopper.join(5)
        assert not stopper.is_alive()


def _asking(url: str) -> list[str]:
    """Processes that have the URL on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if entry.name.isdigit() and int(entry.name) != os.getpid() and url.encode() in line:
            found.append(line.decode())
    return found


def test_the_thread_finds_commits_and_says_when_the_remote_is_gone(upstream: Repository) -> None:
    follower, poke = source(upstream, Terms(every=3600)), Poke()
    follower.start(poke)
    try:
        found = until(follower.look, what="the first commit")
        follower.accepted(found.revision)
        upstream.commit(NEW)
        follower.hurry()  # SIGHUP: not in an hour, now
        found = until(follower.look, what="the second commit")
        assert (found.revision.text, found.ancestry) == (NEW, Ancestry.FORWARD)
        assert poke.wait(0)
        upstream.folder.rename(upstream.folder.with_name("gone"))
        follower.hurry()
        with pytest.raises(SourceError) as caught:
            until(follower.look, what="the failure")
        assert caught.value.reason == "FetchFailed"
    finally:
        follower.close()


def test_a_mistake_of_ours_does_not_end_the_following(
    upstream: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: GitSource) -> Candidate:
        raise ValueError("a mistake")

    follower = source(upstream, Terms(every=3600))
    with monkeypatch.context() as patch:
        patch.setattr(GitSource, "fetch", broken)
        follower.start(Poke())
        with pytest.raises(SourceError, match="a mistake"):
            until(follower.look)
    follower.hurry()
    assert until(follower.look).revision.text == OLD
    follower.close()


def test_pauses_grow_with_failures_up_to_a_limit(folder: Path) -> None:
    follower = Following(Place(str(folder / "none"), "lb.yaml"), folder / "git", Terms(every=30))
    pauses = []
    for _ in range(6):
        pauses.append(follower.pause(0))
        follower._attempt()
    assert pauses == [30, 60, 120, 240, LONGEST, LONGEST]
    assert follower.pause(-JITTER) == LONGEST * (1 - JITTER)


def test_without_git_the_message_says_what_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(GitError, match="install it"):
        Git(folder / "git").create()


def test_a_fetch_may_not_fill_the_disk(
    upstream: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    (upstream.folder / "big").write_bytes(os.urandom(4 << 20))
    upstream.git("add", "big")
    upstream.git("commit", "--quiet", "-m", "big")
    monkeypatch.setattr(gits, "PACK_LIMIT", 1 << 20)
    assert reason(source(upstream)) == "FetchFailed"
