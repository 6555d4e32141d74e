"""What pyproject.toml cannot say: the wheel carries what `make build` compiled. No other build logic lives here."""

from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

COMPILED = {
    "build/lb.bpf.o": "bpf/lb.bpf.o",
    "build/via.bpf.o": "bpf/via.bpf.o",
    "build/peek.bpf.o": "bpf/peek.bpf.o",
    "build/table.so": "reconciler/libtable.so",
}


class BuildPy(build_py):  # type: ignore[misc]  # setuptools has no types
    """An installed package needs no compiler; an editable one finds build/ itself."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for compiled, installed in COMPILED.items():
            if not Path(compiled).exists():
                raise SystemExit(f"{compiled} is missing: make build")
            self.copy_file(compiled, str(Path(self.build_lib, installed)))


class Compiled(Distribution):  # type: ignore[misc]
    """table.so is for one kind of processor, and so is the wheel."""

    def has_ext_modules(self) -> bool:
        return True


setup(distclass=Compiled, cmdclass={"build_py": BuildPy})
