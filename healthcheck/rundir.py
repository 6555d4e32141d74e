"""Who may publish in the run directory: one checker at a time, and none whose files the next could not replace.

Makes the directory and the lock in it. Becomes nobody else: what a checker may do is its unit's to say.
"""

import fcntl
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = "healthcheck.lock"


@contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Two checkers on one map would write over each other's verdicts."""
    run_dir.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        _not_anothers(run_dir)
    lock = run_dir / LOCK
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"{lock}: another healthcheck holds it; stop that one first") from None
        yield
    finally:
        os.close(descriptor)


def _not_anothers(run_dir: Path) -> None:
    """The daemons of a unit are no root: what root leaves there would stop the next one that starts."""
    owner = run_dir.stat().st_uid
    if owner != 0:
        raise PermissionError(
            f"{run_dir} is {_name(owner)}'s: what root leaves there, its own healthcheck cannot replace."
            " `systemctl start evenkeel-healthcheck` (another instance: @NAME), or run this as its user:"
            " `runuser -u evenkeel-healthcheck -g evenkeel -- healthcheck ...`; `--once` may be root's"
        )


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
