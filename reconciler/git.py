"""Git, asked for objects only: never a checkout, a hook, a filter, a submodule or a shell.

Every call has a time limit, after which it and everything it started is killed, and
an environment of its own: what the caller's says about git does not count.
"""

import os
import resource
import shlex
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from reconciler.printable import printable
from reconciler.revision import Ancestry, Commit, Provenance

LOCAL = 10.0  # seconds for what needs no network
REMOTE = 60.0
PACK_LIMIT = 256 << 20  # bytes that a fetch may write to one file
_KEPT = (
    "PATH", "SSH_AUTH_SOCK", "GNUPGHOME", "HOME", "http_proxy", "https_proxy", "no_proxy",
    "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR",
)  # fmt: skip
_SETTINGS = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.attributesFile=/dev/null",
    "credential.helper=",
    "fetch.recurseSubmodules=false",
    "gc.autoDetach=false",
    "http.lowSpeedLimit=100",
    "http.lowSpeedTime=20",
    "log.showSignature=false",
    "transfer.fsckObjects=true",
)
_REGULAR = ("100644", "100755")


class GitError(Exception):
    """What git said, or that it took too long."""

    def __init__(self, message: str, code: int = -1) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in a commit."""

    blob: str
    size: int


@dataclass(frozen=True, slots=True)
class Access:
    """How a remote repository is reached."""

    ssh_key: Path | None = None
    known_hosts: Path | None = None

    def ssh_command(self) -> str:
        words = ["ssh", "-oBatchMode=yes", "-oStrictHostKeyChecking=yes", "-oConnectTimeout=10"]
        if self.known_hosts:
            words.append(f"-oUserKnownHostsFile={self.known_hosts}")
        if self.ssh_key:
            words += ["-oIdentitiesOnly=yes", "-i", str(self.ssh_key)]
        return shlex.join(words)


class Git:
    """One repository's objects."""

    def __init__(
        self,
        folder: Path,
        *,
        access: Access | None = None,
        trusted: tuple[Path | str, ...] = (),
        settings: tuple[str, ...] = (),
        global_settings: Path | None = None,
        borrowed: Path | None = None,
        timeout: float = REMOTE,
    ) -> None:
        """`trusted` may belong to another user; `borrowed` lends its objects.

        Settings reach the programs that serve a local repository only as `global_settings`.
        """
        self.folder = folder
        self._timeout = timeout
        safe = tuple(f"safe.directory={place}" for place in trusted)
        self._environment = _environment(access or Access(), (*_SETTINGS, *settings, *safe))
        if global_settings:
            self._environment["GIT_CONFIG_GLOBAL"] = str(global_settings)
        if borrowed:
            self._environment["GIT_ALTERNATE_OBJECT_DIRECTORIES"] = str(borrowed / "objects")
        self._running: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._lock = Lock()

    def create(self) -> None:
        """An empty bare repository, unless there is one."""
        if not (self.folder / "HEAD").exists():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._run("init", "--quiet", "--bare")

    def fetch(self, repository: str, ref: str, into: str) -> str:
        """The commit that the ref is at over there, with all that it descends from."""
        self._run(
            "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules",
            repository, f"+{ref}:{into}", timeout=self._timeout,
        )  # fmt: skip
        return self.commit_at(into)

    def commit_at(self, ref: str) -> str:
        return self._run("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}").decode().strip()

    def has_ref(self, ref: str) -> bool:
        return self._answers("show-ref", "--verify", "--quiet", ref)

    def set_ref(self, ref: str, commit: str) -> None:
        self._run("update-ref", ref, commit)

    def entry(self, commit: str, path: str) -> Entry:
        """The file at that path; GitError when it is none, or a link."""
        listed = self._run("ls-tree", "-l", "-z", "--full-tree", commit, "--", path).decode()
        if not listed:
            raise GitError(f"{path}: not in commit {commit[:12]}")
        said, _, name = listed.split("\0")[0].partition("\t")
        mode, kind, blob, size = said.split()
        if kind != "blob" or mode not in _REGULAR or name != path:
            raise GitError(f"{path}: not a regular file in commit {commit[:12]}")
        return Entry(blob, int(size))

    def blob(self, entry: Entry) -> bytes:
        return self._run("cat-file", "blob", entry.blob)

    def describe(self, commit: str, provenance: Provenance, signer: str = "") -> Commit:
        """Author and subject, from the object itself."""
        text = self._run("cat-file", "commit", commit).decode(errors="replace")
        head, _, message = text.partition("\n\n")
        author = next((line for line in head.splitlines() if line.startswith("author ")), "")
        name = author.removeprefix("author ").rpartition(">")[0]
        return Commit(
            commit,
            author=printable(name + ">" if name else ""),
            subject=printable(message.strip().partition("\n")[0]),
            signer=signer,
            provenance=provenance,
        )

    def ancestry(self, before: str, now: str) -> Ancestry:
        if before == now:
            return Ancestry.SAME
        if not self._answers("cat-file", "-e", f"{before}^{{commit}}"):
            return Ancestry.UNKNOWN
        if self._answers("merge-base", "--is-ancestor", before, now):
            return Ancestry.FORWARD
        if self._answers("merge-base", "--is-ancestor", now, before):
            return Ancestry.BACKWARD
        return Ancestry.DIVERGED

    def signer(self, commit: str) -> str:
        """Who signed the commit; GitError unless the signature is good and the signer allowed.

        Text such as "Good signature" is also printed for keys that nobody allowed:
        the exit code and %G? alone tell.
        """
        if not self._answers("verify-commit", commit):
            raise GitError(f"commit {commit[:12]} has no valid signature of an allowed signer")
        said = self._run("log", "-1", "--no-show-signature", "--format=%G?%n%GS", commit)
        verdict, _, signer = said.decode(errors="replace").partition("\n")
        if verdict != "G":
            raise GitError(f"commit {commit[:12]}: the signature is not good (%G? is {verdict})")
        return printable(signer.strip())

    def close(self) -> None:
        """No further call; one that is under way ends now."""
        with self._lock:
            self._closed = True
            if self._running is not None:
                _kill(self._running)

    def _answers(self, *command: str) -> bool:
        """Whether git says yes; only a failure to run at all is an error."""
        try:
            self._run(*command)
        except GitError as error:
            if error.code < 0:
                raise
            return False
        return True

    def _run(self, *command: str, timeout: float = LOCAL) -> bytes:
        process = self._start(command)
        try:
            output, said = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            _kill(process)
            process.communicate()
            raise GitError(f"git {command[0]}: no end after {timeout:g} s, killed") from None
        finally:
            self._running = None
        if process.returncode != 0:
            raise GitError(_complaint(command, said, process.returncode), process.returncode)
        return output

    def _start(self, command: tuple[str, ...]) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._closed:
                raise GitError(f"git {command[0]}: we are stopping")
            try:
                process = subprocess.Popen(
                    ("git", f"--git-dir={self.folder}", *command),
                    env=self._environment,
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                )
            except (FileNotFoundError, PermissionError):
                raise GitError("there is no `git` on the PATH: install it") from None
            with_limit = (PACK_LIMIT, PACK_LIMIT)
            with suppress(ProcessLookupError):  # it has ended already
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, with_limit)
            self._running = process
            return process


def _environment(access: Access, settings: tuple[str, ...]) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return (
        kept
        | _configured(settings)
        | {
            "LC_ALL": "C",
            "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh",
            "GIT_ASKPASS": "/bin/false",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_LITERAL_PATHSPECS": "1",
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_SSH_COMMAND": access.ssh_command(),
            "GIT_TERMINAL_PROMPT": "0",
        }
    )


def _configured(settings: tuple[str, ...]) -> dict[str, str]:
    """Settings of command scope, which a repository's own cannot override."""
    pairs = {"GIT_CONFIG_COUNT": str(len(settings))}
    for number, setting in enumerate(settings):
        name, _, value = setting.partition("=")
        pairs |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    return pairs


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The whole group: a fetch is several programs."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _complaint(command: tuple[str, ...], said: bytes, code: int) -> str:
    lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
    return printable(f"git {command[0]}: {lines[0] if lines else f'exit code {code}'}")
