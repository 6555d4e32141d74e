"""The last generations, on disk: what was accepted, from where, and how it went.

Keeps files and decides nothing. A generation counts once its record is there, and the
record is written after the content: what was half written does not exist.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from reconciler import durable
from reconciler.revision import Commit, Provenance, Revision

FORMAT = "1.0"
KEPT = 5
log = logging.getLogger("reconciler")


class Result(StrEnum):
    APPLIED = "applied"
    HELD = "held"  # applied but for removals that a guardrail refused
    PARTLY = "partly"  # applied but for services that could not be
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Generation:
    """One accepted configuration, without its text."""

    number: int
    digest: str
    time: int  # when it was first applied
    result: Result
    source: str
    commit: str = ""
    author: str = ""
    subject: str = ""
    signer: str = ""
    provenance: Provenance = Provenance.NONE
    note: str = ""  # why it failed, or what was gone back to

    def document(self) -> dict[str, Any]:
        return {"format_version": FORMAT, **asdict(self)}

    @property
    def stem(self) -> str:
        return f"{self.number:08}-{self.digest[:12]}"


def generation(
    number: int, revision: Revision, time: int, result: Result, note: str = ""
) -> Generation:
    made = revision.made
    return Generation(
        number, revision.digest.hex(), time, result, revision.path,
        made.id, made.author, made.subject, made.signer, made.provenance, note,
    )  # fmt: skip


class History:
    """A folder of generations."""

    def __init__(self, folder: Path, kept: int = KEPT) -> None:
        self.folder, self._kept = folder, kept

    def generations(self) -> list[Generation]:
        """Newest first. What cannot be read is no generation, and that is said."""
        return sorted(self._read(), key=lambda found: found.number, reverse=True)

    def last_good(self) -> Generation | None:
        """The newest that was applied; if there is none, the newest that was accepted."""
        found = self.generations()
        return next(
            (one for one in found if one.result is not Result.FAILED), next(iter(found), None)
        )

    def find(self, number: int) -> Generation | None:
        return next((found for found in self.generations() if found.number == number), None)

    def revision(self, found: Generation) -> Revision:
        """The content, if it is still what was recorded. OSError when it is not."""
        path = self._content(found)
        data = path.read_bytes()
        digest = hashlib.sha256(data)
        if digest.hexdigest() != found.digest:
            raise OSError(f"{path}: not what was accepted as generation {found.number}; remove it")
        made = Commit(found.commit, found.author, found.subject, found.signer, found.provenance)
        return Revision(found.source, data.decode(), digest.digest(), made)

    def record(self, made: Generation, text: str) -> None:
        """Keep it, on disk when this returns; the oldest beyond the limit goes."""
        before = self.find(made.number)
        if before == made:
            return
        path = self._content(made)
        if before is None or before.digest != made.digest or not path.exists():
            durable.write(path, text)
        document = json.dumps(made.document(), indent=1) + "\n"
        durable.write(self.folder / f"{made.stem}.json", document)
        if before is not None and before.stem != made.stem:
            self._drop(before)
        self._prune()

    def _prune(self) -> None:
        """The last good one stays, however many failed since."""
        good = self.last_good()
        for old in self.generations()[self._kept :]:
            if old != good:
                self._drop(old)

    def _drop(self, old: Generation) -> None:
        durable.remove(self.folder / f"{old.stem}.json")
        durable.remove(self._content(old))

    def _content(self, found: Generation) -> Path:
        return self.folder / f"{found.stem}.yaml"

    def _read(self) -> Iterator[Generation]:
        try:
            found = list(self.folder.glob("*.json"))
        except PermissionError:  # a dry run without privilege: it has no history to go by
            return
        for path in found:
            try:
                said = json.loads(path.read_text())
                said.pop("format_version")
                yield Generation(
                    **said
                    | {
                        "result": Result(said["result"]),
                        "provenance": Provenance(said["provenance"]),
                    }
                )
            except (OSError, ValueError, TypeError, KeyError) as error:
                log.error("%s: no record of a generation (%s); remove it", path, error)  # noqa: TRY400
