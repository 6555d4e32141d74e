"""Where overrides are kept: one file in the state folder, renamed into place. Decides nothing about them.

Reading needs no lock. Who changes it holds one meanwhile, so that the daemon and
a command line without it lose none of each other's.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from reconciler import durable, overrides
from reconciler.overrides import Overrides, Unusable

NAME = "overrides.json"


class OverrideFile:
    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / NAME

    def read(self) -> Overrides:
        """All that were set, expired or not; Unusable when the file says something else."""
        try:
            return overrides.parse(json.loads(self.path.read_text()))
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, Unusable) as error:
            raise Unusable(
                f"{self.path}: {error}; remove it to be without overrides, or set them anew"
            ) from error

    def change(self, how: Callable[[Overrides], Overrides]) -> Overrides:
        """Replace the content; what the file says now."""
        with self._locked():
            changed = how(self.read())
            durable.write(self.path, json.dumps(overrides.document(changed), indent=1) + "\n")
            return changed

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = self.path.with_name(f".{NAME}.lock")
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
