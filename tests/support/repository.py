"""A git repository to follow: commits of one file, signed or not."""

import subprocess
from pathlib import Path


class Repository:
    """A work tree somewhere; `url` is how others name it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch=main")
        self.url = str(folder)

    def git(self, *command: str) -> str:
        run = ("git", "-C", str(self.folder), *_WHO, *command)
        result = subprocess.run(run, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{run}: {result.stderr}"
        return result.stdout.strip()

    def commit(
        self, text: str, subject: str = "change", path: str = "lb.yaml", key: Path | None = None
    ) -> str:
        """The id of the commit that gives the file this content."""
        (self.folder / path).parent.mkdir(exist_ok=True)
        (self.folder / path).write_text(text)
        self.git("add", path)
        return self._committed(("commit", "--quiet", "--allow-empty", "-m", subject), key)

    def revert(self, key: Path | None = None) -> str:
        return self._committed(("revert", "--no-edit", "HEAD"), key)

    def reset(self, commit: str) -> None:
        """What a force-push looks like from afar."""
        self.git("reset", "--quiet", "--hard", commit)

    def _committed(self, command: tuple[str, ...], key: Path | None) -> str:
        signing = ("-c", "gpg.format=ssh", "-c", f"user.signingKey={key}") if key else ()
        self.git(*signing, *command, *(("-S",) if key else ()))
        return self.git("rev-parse", "HEAD")


_WHO = ("-c", "user.name=Ada", "-c", "user.email=ada@example.com")


def signing_key(folder: Path, name: str) -> Path:
    """A new SSH key; its public half beside it, as `.pub`."""
    key = folder / name
    make = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(key))
    subprocess.run(make, check=True)
    return key


def allowed_signers(folder: Path, *keys: Path) -> Path:
    path = folder / "allowed_signers"
    lines = (f"{key.name}@example.com {key.with_suffix('.pub').read_text()}" for key in keys)
    path.write_text("".join(lines))
    return path
