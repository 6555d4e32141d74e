"""Which commit a file is of: as a pull script noted it, as git-sync names its work trees, or as
the enclosing work tree says. Never claims a commit whose blob is not just these bytes.
"""

import hashlib
import re
from pathlib import Path

from reconciler import git
from reconciler.revision import NO_COMMIT, Commit, Provenance

_NOTED = re.compile(rb"^#\s*commit:\s*([0-9a-f]{7,64})\s*$", re.MULTILINE)
_HEAD = 400  # where a comment counts as the file's
_SHA = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?\Z")


def of_file(data: bytes, path: Path, target: Path) -> Commit:
    """`target` is the file that `path` led to when it was read."""
    if noted := _NOTED.search(data[:_HEAD]):
        return Commit(noted[1].decode(), provenance=Provenance.COMMENT)
    linked = next((part for part in reversed(target.parts) if _SHA.match(part)), "")
    if linked and linked not in path.parts:
        return Commit(linked, provenance=Provenance.LINK)
    return _of_work_tree(data, target) or NO_COMMIT


def checking_out(target: Path) -> bool:
    """Whether git is at work in the enclosing work tree: its lock is there from the first
    file that it touches to the last.
    """
    try:
        folder = git_folder(target)
        return folder is not None and (folder / "index.lock").exists()
    except PermissionError:
        return False


def git_folder(target: Path) -> Path | None:
    """The `.git` of the enclosing work tree; of a linked one, the folder its file names."""
    for parent in target.parents:
        found = parent / ".git"
        if found.is_dir():
            return found
        if found.is_file():
            said = found.read_text(errors="replace").strip()
            return parent / said.removeprefix("gitdir:").strip()
    return None


def _of_work_tree(data: bytes, target: Path) -> Commit | None:
    try:
        folder = git_folder(target)
        if folder is None:
            return None
        top = next(parent for parent in target.parents if (parent / ".git").exists())
        repository = git.Git(folder, trusted=(top, folder))
        head = repository.commit_at("HEAD")
        entry = repository.entry(head, str(target.relative_to(top)))
        if entry.blob != _blob_id(data, len(entry.blob)):
            return None  # edited and not committed
        return repository.describe(head, Provenance.WORK_TREE)
    except (git.GitError, OSError):
        return None


def _blob_id(data: bytes, length: int) -> str:
    """What git calls these bytes."""
    named = b"blob %d\0%b" % (len(data), data)
    wide = length > 40  # noqa: PLR2004 -- hexadecimal digits of SHA-1
    # Not for security: it is the repository that chose the hash.
    return (
        hashlib.sha256(named) if wide else hashlib.sha1(named, usedforsecurity=False)
    ).hexdigest()
