"""The Debian package: what the wheel holds, units, manual pages and documents. Compiles nothing, asks no network.

    python packaging/deb.py WHEEL DIRECTORY     prints the path of the package that it made there

The code is private (/usr/lib/evenkeel), because `bpf` or `schemas` are no names to give to everybody's Python.
"""

import gzip
import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from email.utils import formatdate
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
UNITS = ("evenkeel-reconciler", "evenkeel-healthcheck")
COMMANDS = ("reconciler", "healthcheck")
MAINTAINER = "Evenkeel maintainers <maintainers@evenkeel.example>"
LIBRARY = "usr/lib/evenkeel"
DOCUMENTS = "usr/share/doc/evenkeel"
ENTRY = """\
#!/usr/bin/python3 -I
import sys

sys.path.insert(0, "/usr/lib/evenkeel")
from {name}.__main__ import main

sys.exit(main())
"""
# From the plain unit, which is the instance `default`, to the template for all others.
INSTANCES = (
    ("evenkeel/default", "evenkeel/%i"),
    ("--instance default", "--instance %i"),
    ("/etc/evenkeel/", "/etc/evenkeel/%i/"),
    ("/etc/default/evenkeel", "/etc/default/evenkeel-%i"),
    ("evenkeel-reconciler.service", "evenkeel-reconciler@%i.service"),
    ("evenkeel-healthcheck.service", "evenkeel-healthcheck@%i.service"),
)
SECTIONS = {"reconciler": "make the maps of the packet program equal what lb.yaml says",
            "healthcheck": "probe backends, and say which of them may be chosen"}  # fmt: skip


class Tree:
    """The files of the package, under a temporary root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def text(self, path: str, text: str, mode: int = 0o644) -> None:
        self.data(path, text.encode(), mode)

    def data(self, path: str, data: bytes, mode: int = 0o644) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        target.chmod(mode)

    def packed(self, path: str, text: str) -> None:
        self.data(f"{path}.gz", gzip.compress(text.encode(), 9, mtime=0))

    def copy(self, source: Path, path: str) -> None:
        executable = source.stat().st_mode & stat.S_IXUSR
        self.data(path, source.read_bytes(), 0o755 if executable else 0o644)

    def folder(self, path: str) -> None:
        (self.root / path).mkdir(parents=True, exist_ok=True)

    def files(self) -> list[Path]:
        found = (path for path in self.root.rglob("*") if path.is_file() and not path.is_symlink())
        return sorted(path for path in found if "DEBIAN" not in path.parts)


def code(tree: Tree, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        for name in packed.namelist():
            if not name.endswith(("/RECORD", "/WHEEL", "/entry_points.txt", "/top_level.txt")):
                tree.data(f"{LIBRARY}/{name}", packed.read(name))
    for name in COMMANDS:
        tree.text(f"usr/bin/{name}", ENTRY.format(name=name), 0o755)
    tree.copy(ROOT / "libexec/evenkeel-check", "usr/libexec/evenkeel/evenkeel-check")


def system(tree: Tree) -> None:
    for name in UNITS:
        text = (HERE / f"systemd/{name}.service").read_text()
        tree.text(f"usr/lib/systemd/system/{name}.service", text)
        tree.text(f"usr/lib/systemd/system/{name}@.service", for_instances(text))
    for kind in ("sysusers.d", "tmpfiles.d"):
        tree.copy(HERE / kind / "evenkeel.conf", f"usr/lib/{kind}/evenkeel.conf")
    tree.copy(HERE / "debian/evenkeel.default", "etc/default/evenkeel")
    tree.folder("etc/evenkeel")


def for_instances(unit: str) -> str:
    """The template: files of its own folder, and all the rest of the plain unit."""
    for plain, instance in INSTANCES:
        unit = unit.replace(plain, instance)
    unit = (
        unit.replace(
            "--instance %i $",
            "--instance %i --config /etc/evenkeel/%i/lb.yaml --node /etc/evenkeel/%i/node.yaml $",
        )
        if "/usr/bin/reconciler" in unit
        else unit
    )
    return re.sub(r"^Description=(.*)$", r"Description=\1, instance %i", unit, flags=re.MULTILINE)


def documents(tree: Tree, version: str) -> None:
    for pattern in ("docs/**/*.md", "docs/**/*.svg", "examples/**/*"):
        for source in sorted(ROOT.glob(pattern)):
            if source.is_file() and "__pycache__" not in source.parts:
                place = source.relative_to(ROOT / "docs" if pattern.startswith("docs") else ROOT)
                tree.copy(source, f"{DOCUMENTS}/{place}")
    tree.copy(HERE / "debian/copyright", f"{DOCUMENTS}/copyright")
    tree.copy(HERE / "debian/lintian-overrides", "usr/share/lintian/overrides/evenkeel")
    tree.packed(f"{DOCUMENTS}/NEWS.md", (ROOT / "CHANGELOG.md").read_text())
    tree.packed(f"{DOCUMENTS}/changelog", changelog(version))
    for name in COMMANDS:
        tree.packed(f"usr/share/man/man8/{name}.8", manual(name, version))


def changelog(version: str) -> str:
    return (
        f"evenkeel ({version}) unstable; urgency=medium\n\n"
        "  * What changes for those who run it is in NEWS.md.gz.\n\n"
        f" -- {MAINTAINER}  {formatdate(made_at())}\n"
    )


def made_at() -> int:
    """The same input gives the same package: the time is that of the newest commit, not now."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    asked = ("git", "-C", str(ROOT), "log", "-1", "--format=%ct")
    found = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return int(found or (ROOT / "pyproject.toml").stat().st_mtime)


def manual(name: str, version: str) -> str:
    """Made of `--help`, so that it never says something else."""
    asked = (sys.executable, "-m", name, "--help")
    environment = os.environ | {"COLUMNS": "78", "NO_COLOR": "1"}
    said = subprocess.run(
        asked, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout
    escaped = said.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    lines = "\n".join(
        f"\\&{line}" if line.startswith(".") else line for line in escaped.splitlines()
    )
    return (
        f'.TH {name.upper()} 8 "" "evenkeel {version}"\n.SH NAME\n{name} \\- {SECTIONS[name]}\n'
        f".SH SYNOPSIS\n.B {name}\n[\\fIoptions\\fR] [\\fIcommand\\fR]\n.SH DESCRIPTION\n.nf\n{lines}\n.fi\n"
        f".SH SEE ALSO\n/usr/share/doc/evenkeel/README.md\n"
    )


def control(tree: Tree, version: str, architecture: str) -> None:
    size = sum(path.stat().st_size for path in tree.files()) // 1024
    text = (HERE / "debian/control").read_text()
    facts = {"VERSION": version, "ARCHITECTURE": architecture, "SIZE": str(size)}
    for key, value in {**facts, "MAINTAINER": MAINTAINER}.items():
        text = text.replace(f"@{key}@", value)
    tree.text("DEBIAN/control", text)
    tree.text("DEBIAN/conffiles", "/etc/default/evenkeel\n")
    for script in ("postinst", "prerm", "postrm"):
        tree.text(f"DEBIAN/{script}", (HERE / f"debian/{script}").read_text(), 0o755)
    sums = (
        f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  "
        f"{path.relative_to(tree.root)}\n" for path in tree.files()
    )  # fmt: skip
    tree.text("DEBIAN/md5sums", "".join(sums))


def settle(root: Path, when: int) -> None:
    """Permissions and times that do not depend on who built it, nor when."""
    for path in (root, *root.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
        os.utime(path, (when, when), follow_symlinks=False)


def main(wheel: Path, directory: Path) -> int:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    said = subprocess.run(
        ("dpkg", "--print-architecture"), capture_output=True, text=True, check=True
    )
    architecture = said.stdout.strip()
    directory.mkdir(parents=True, exist_ok=True)
    made = directory / f"evenkeel_{version}_{architecture}.deb"
    with tempfile.TemporaryDirectory() as folder:
        tree = Tree(Path(folder))
        code(tree, wheel)
        system(tree)
        documents(tree, version)
        control(tree, version, architecture)
        settle(tree.root, made_at())
        new = made.with_suffix(".new")
        build = ("dpkg-deb", "--root-owner-group", "-Zxz", "--build", folder, str(new))
        environment = os.environ | {"SOURCE_DATE_EPOCH": str(made_at())}
        subprocess.run(build, env=environment, capture_output=True, check=True)
        shutil.move(new, made)
    print(made)
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 3:  # noqa: PLR2004 -- a wheel and a directory
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
