"""A file in a git repository, local or remote, as a source.

A mirror of our own holds the objects; nothing is ever checked out. Fetching may take
its time, so it has a thread; what that finds is complete, verified and immutable.
"""

import random
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from reconciler.git import Access, Git, GitError
from reconciler.revision import (
    Ancestry,
    Candidate,
    Commit,
    Provenance,
    Revision,
    SourceError,
    revision,
)
from reconciler.source import Poke
from reconciler.yamlpos import MAX_BYTES

EVERY = 30.0
JITTER = 0.2  # of the pause, up or down: many nodes must not knock at once
LONGEST = 300.0  # between attempts, however long a remote has been away
POLL = 0.05  # seconds between looks while somebody waits for a fetch
_OFFERED = "refs/evenkeel/offered"
_ACCEPTED = "refs/evenkeel/accepted"


@dataclass(frozen=True, slots=True)
class Place:
    """Which file of which repository."""

    repository: str
    path: str
    ref: str = "main"

    @property
    def full_ref(self) -> str:
        return self.ref if self.ref.startswith("refs/") else f"refs/heads/{self.ref}"

    def __str__(self) -> str:
        return f"{self.repository} {self.ref}:{self.path}"

    def problem(self) -> str:
        """Why git must not be asked for this; empty if it may."""
        parts = Path(self.path).parts
        if not self.repository or self.repository.startswith("-"):
            return f"--from-git {self.repository!r}: a path or a URL is wanted"
        if not parts or parts[0] == "/" or ".." in parts or Path(self.path).as_posix() != self.path:
            return (
                f"--path {self.path!r}: a path inside the repository is wanted, like hosts/lb.yaml"
            )
        if self.ref.startswith("-") or any(letter in self.ref for letter in " ~^:?*[\\"):
            return f"--ref {self.ref!r}: a branch, or a full name like refs/tags/v1, is wanted"
        return ""


@dataclass(frozen=True, slots=True)
class Terms:
    """How the repository is asked, and what is asked of a commit."""

    verify: bool = False
    allowed_signers: Path | None = None
    access: Access = field(default_factory=Access)
    every: float = EVERY
    timeout: float = 60.0


class GitSource:
    """Follows one file on one ref."""

    def __init__(self, place: Place, mirror: Path, terms: Terms | None = None) -> None:
        self.place, self.name = place, str(place)
        self._terms = terms or Terms()
        self._mirror = mirror
        self._git = self._repository(mirror)
        self._known: Candidate | None = None
        self._latest: Candidate | SourceError | None = None
        self._taken: object = None
        self._failures = 0
        self._wanted = Poke()
        self._asked = self._answered = 0  # hurries, and those that a fetch has followed
        self._stopping = False
        self._thread: threading.Thread | None = None

    # ---- for the loop

    def start(self, wake: Callable[[], None]) -> None:
        """Fetch every so often, and say when there is something to look at."""
        self._thread = threading.Thread(target=self._follow, args=(wake,), name="git")
        self._thread.start()

    def look(self) -> Candidate | None:
        latest = self._latest
        if latest is self._taken or latest is None:
            return None
        self._taken = latest
        if isinstance(latest, SourceError):
            raise latest
        return latest

    def read(self) -> Candidate:
        return self.fetch()

    def due(self) -> float:
        return POLL if self._answered < self._asked else float("inf")

    def hurry(self) -> None:
        self._asked += 1
        self._wanted()

    def accepted(self, taken: Revision) -> None:
        """From here on there is no going back behind this commit."""
        if taken.made.provenance is Provenance.OBJECT:
            self._git.set_ref(_ACCEPTED, taken.commit)

    def folders(self) -> tuple[Path, ...]:
        return ()

    def close(self) -> None:
        self._stopping = True
        self._git.close()
        self._wanted()
        if self._thread is not None:
            self._thread.join()

    # ---- one fetch

    def fetch(self) -> Candidate:
        """What the ref offers now. SourceError says what it lacks, and for which reason."""
        try:
            self._settings().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._settings().write_text(_trusting(self.place.repository))
            self._git.create()
            return self._offer(self._git, self._git)
        except OSError as error:
            raise SourceError(f"{self.place}: {error}", "MirrorUnusable") from error

    def preview(self) -> Candidate:
        """The same, leaving no trace: the mirror is only read, if there is one."""
        with _scratch() as folder:
            settings = folder / "config"
            settings.write_text(_trusting(self.place.repository))
            ours = self._mirror if (self._mirror / "HEAD").exists() else None
            fresh = self._repository(folder / "git", settings, ours)
            fresh.create()
            return self._offer(fresh, self._git if ours else fresh)

    def _offer(self, objects: Git, accepted: Git) -> Candidate:
        commit = self._fetched(objects)
        known = self._known
        ancestry = self._ancestry(objects, accepted, commit)
        if known is not None and known.revision.commit == commit and known.ancestry is ancestry:
            return known
        made = Commit(commit)
        try:
            made = objects.describe(commit, Provenance.OBJECT, self._signer(objects, commit))
            data = self._content(objects, commit)
        except GitError as error:
            raise SourceError(f"{self.place}: {error}", "Unreadable") from error
        self._known = Candidate(revision(f"{self.place.path}", data, made), ancestry)
        return self._known

    def _fetched(self, objects: Git) -> str:
        try:
            return objects.fetch(self.place.repository, self.place.full_ref, _OFFERED)
        except GitError as error:
            raise SourceError(f"{self.place}: {error}", "FetchFailed") from error

    def _signer(self, objects: Git, commit: str) -> str:
        if not self._terms.verify:
            return ""
        try:
            return objects.signer(commit)
        except GitError as error:
            raise SourceError(f"{self.place}: {error}", "Unverified") from error

    def _content(self, objects: Git, commit: str) -> bytes:
        entry = objects.entry(commit, self.place.path)
        if entry.size > MAX_BYTES:
            message = f"{self.place}: {entry.size} bytes, and no lb.yaml has more than {MAX_BYTES}"
            raise SourceError(message, "TooLarge")
        return objects.blob(entry)

    def _ancestry(self, objects: Git, accepted: Git, commit: str) -> Ancestry:
        if not accepted.has_ref(_ACCEPTED):
            return Ancestry.UNASKED
        return objects.ancestry(accepted.commit_at(_ACCEPTED), commit)

    # ---- again and again

    def _follow(self, wake: Callable[[], None]) -> None:
        while not self._ended():
            asked = self._asked
            latest = self._attempt()
            if not self._ended() and not _same(latest, self._latest):
                self._latest = latest
                wake()
            self._answered = asked
            self._wanted.wait(self.pause(random.uniform(-JITTER, JITTER)))  # noqa: S311 -- no secret

    def _ended(self) -> bool:
        return self._stopping

    def _attempt(self) -> Candidate | SourceError:
        try:
            offered = self.fetch()
        except SourceError as error:
            self._failures += 1
            return error
        except Exception as error:  # noqa: BLE001 -- a thread that ends would follow nothing, silently
            self._failures += 1
            what = error if isinstance(error, GitError) else repr(error)
            return SourceError(f"{self.place}: {what}", "FetchFailed")
        self._failures = 0
        return offered

    def pause(self, jitter: float) -> float:
        """Seconds to the next attempt: twice as long after each failure, within limits."""
        longest = max(LONGEST, self._terms.every)
        return float(min(self._terms.every * 2 ** min(self._failures, 16), longest)) * (1 + jitter)

    # ---- our mirror

    def _repository(
        self, folder: Path, settings: Path | None = None, borrowed: Path | None = None
    ) -> Git:
        signers = self._terms.allowed_signers
        return Git(
            folder,
            access=self._terms.access,
            trusted=(folder,),
            settings=(f"gpg.ssh.allowedSignersFile={signers.absolute()}",) if signers else (),
            global_settings=settings or self._settings(),
            borrowed=borrowed,
            timeout=self._terms.timeout,
        )

    def _settings(self) -> Path:
        return self._mirror.with_name(f"{self._mirror.name}.config")


def _trusting(repository: str) -> str:
    """Naming a local repository is consent to read it, whoever owns it."""
    path = Path(repository.removeprefix("file://")).absolute()
    if not path.is_dir():
        return ""
    places = (path, path / ".git")
    quoted = (str(place).replace("\\", "\\\\").replace('"', '\\"') for place in places)
    return "[safe]\n" + "".join(f'\tdirectory = "{place}"\n' for place in quoted)


def _same(one: Candidate | SourceError | None, other: Candidate | SourceError | None) -> bool:
    if isinstance(one, SourceError) and isinstance(other, SourceError):
        return (one.reason, str(one)) == (other.reason, str(other))
    return one is other


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="evenkeel-") as folder:
        yield Path(folder)
