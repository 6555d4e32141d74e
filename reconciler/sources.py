"""From command-line options to a source, and to what may be taken from it."""

import argparse
import os
import shutil
from pathlib import Path

from reconciler import suspension
from reconciler.acceptance import Rules
from reconciler.git import Access
from reconciler.gitsource import EVERY, GitSource, Place, Terms
from reconciler.source import FileSource

DEFAULT = Path("/etc/evenkeel/lb.yaml")
# systemd's StateDirectory=evenkeel says the same.
STATE_ROOT = Path(os.environ.get("STATE_DIRECTORY", "/var/lib/evenkeel").split(":")[0])


def add_source(arguments: argparse.ArgumentParser) -> None:
    """Where lb.yaml comes from: a file, or a git repository."""
    places = arguments.add_mutually_exclusive_group()
    places.add_argument(
        "--config",
        type=Path,
        default=DEFAULT,
        metavar="FILE",
        help="what is balanced to where (default: %(default)s)",
    )
    places.add_argument(
        "--from-git",
        metavar="REPO",
        help="read it from this repository instead: a path or a URL; nothing is checked out",
    )
    git = arguments.add_argument_group("with --from-git")
    git.add_argument("--ref", metavar="REF", help="branch, or refs/... (default: main)")
    git.add_argument("--path", metavar="PATH", help="of the file in the repository (lb.yaml)")
    git.add_argument(
        "--every",
        type=float,
        metavar="SECONDS",
        help=f"between fetches, give or take a fifth (default: {EVERY:g})",
    )
    git.add_argument(
        "--verify-commit", action="store_true", help="take only commits with a good signature"
    )
    git.add_argument(
        "--allowed-signers", type=Path, metavar="FILE", help="of SSH signatures: see ssh-keygen(1)"
    )
    git.add_argument("--ssh-key", type=Path, metavar="FILE", help="to reach the repository with")
    git.add_argument("--known-hosts", type=Path, metavar="FILE", help="whom to trust to be it")
    git.add_argument(
        "--allow-rollback",
        action="store_true",
        help="take also a commit that does not descend from the one that is applied",
    )
    arguments.add_argument(
        "--allow-unsealed",
        action="store_true",
        help="take also a file without the end marker `...` that the applied one has",
    )


def add_state_dir(arguments: argparse.ArgumentParser) -> None:
    arguments.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help=f"where history, suspension and git mirror are kept (default: {STATE_ROOT}/NAME)",
    )


def problem(options: argparse.Namespace) -> str:
    """What is wrong with these options together; empty if nothing is."""
    if options.from_git is None:
        needs = ("ref", "path", "every", "verify_commit", "allowed_signers", "ssh_key",
                 "known_hosts", "allow_rollback")  # fmt: skip
        given = next((name for name in needs if getattr(options, name)), "")
        return f"--{given.replace('_', '-')} goes with --from-git" if given else ""
    if options.allowed_signers and not options.verify_commit:
        return "--allowed-signers goes with --verify-commit: without it nothing is verified"
    if options.every is not None and not options.every >= 1:
        return f"--every {options.every:g}: at least one second between fetches"
    return _place(options).problem()


def source_of(options: argparse.Namespace, state_dir: Path) -> FileSource | GitSource:
    if options.from_git is None:
        return FileSource(options.config)
    terms = Terms(
        verify=options.verify_commit,
        allowed_signers=options.allowed_signers,
        access=Access(options.ssh_key, options.known_hosts),
        every=options.every or EVERY,
    )
    return GitSource(_place(options), state_dir / "git", terms)


def forget(state_dir: Path) -> None:
    """A new instance starts from its source, and from nothing that was before."""
    suspension.clear(state_dir)
    for folder in ("history", "git"):
        shutil.rmtree(state_dir / folder, ignore_errors=True)
    (state_dir / "git.config").unlink(missing_ok=True)


def rules_of(options: argparse.Namespace) -> Rules:
    return Rules(options.allow_rollback, options.allow_unsealed)


def _place(options: argparse.Namespace) -> Place:
    return Place(options.from_git, options.path or "lb.yaml", options.ref or "main")
