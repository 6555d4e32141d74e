"""A content and where it came from, as values. Reads nothing, decides nothing."""

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum


class Ancestry(StrEnum):
    """Where a commit stands to the one that was accepted last."""

    UNASKED = "unasked"  # no repository to ask, or nothing accepted yet
    SAME = "same"
    FORWARD = "forward"
    BACKWARD = "backward"
    DIVERGED = "diverged"
    UNKNOWN = "unknown"  # the repository does not have the accepted commit


class Provenance(StrEnum):
    """How the commit is known."""

    NONE = ""
    COMMENT = "comment"
    LINK = "git-sync link"
    WORK_TREE = "work tree"
    OBJECT = "git object"


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit, as far as it is known: the id alone, or who said what in it."""

    id: str = ""
    author: str = ""
    subject: str = ""
    signer: str = ""
    provenance: Provenance = Provenance.NONE

    def __str__(self) -> str:
        subject = f' "{self.subject}"' if self.subject else ""
        author = f" by {self.author}" if self.author else ""
        signer = f", signed by {self.signer}" if self.signer else ""
        return f"commit {self.id[:12]}{subject}{author}{signer}" if self.id else ""


NO_COMMIT = Commit()


@dataclass(frozen=True, slots=True)
class Revision:
    """A content and where it came from."""

    path: str
    text: str = field(repr=False)
    digest: bytes
    made: Commit = NO_COMMIT

    @property
    def commit(self) -> str:
        return self.made.id

    @property
    def sealed(self) -> bool:
        return sealed(self.text)

    def __str__(self) -> str:
        commit = f" {self.made}" if self.commit else ""
        return f"{self.path}{commit} sha256:{self.digest.hex()[:12]}"


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a source offers."""

    revision: Revision
    ancestry: Ancestry = Ancestry.UNASKED


class SourceError(Exception):
    """Nothing can be had from the source now; what is applied stays."""

    def __init__(self, message: str, reason: str = "Unreadable") -> None:
        super().__init__(message)
        self.reason = reason


def revision(path: str, data: bytes, made: Commit = NO_COMMIT) -> Revision:
    """The content as text; SourceError when it is none, or nothing at all."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: byte {error.start} is not UTF-8", "NotText") from error
    if not text.strip():
        raise SourceError(f"{path}: the file is empty", "FileEmpty")
    return Revision(path, text, hashlib.sha256(data).digest(), made)


def sealed(text: str) -> bool:
    """Whether the last line that says anything is YAML's end marker."""
    for line in reversed(text.splitlines()):
        said = line.partition(" #")[0].rstrip()
        if said and not said.startswith("#"):
            return said == "..."
    return False
