"""One machine for all tests of the package: see tests/support/machine.py. Each test finds it running."""

from collections.abc import Iterator

import pytest

from tests.support.installed import (
    BACKEND_PORT,
    CONFIG,
    LB_YAML,
    NODE,
    NODE_YAML,
    UNITS,
)
from tests.support.lab import Lab
from tests.support.machine import Machine, package


@pytest.fixture(scope="package")
def lab() -> Iterator[Lab]:
    with Lab(2) as made:
        for backend in made.backends:
            made.serve(backend, BACKEND_PORT)
        yield made


@pytest.fixture(scope="package")
def bare(lab: Lab) -> Iterator[Machine]:
    with Machine(lab.balancer, package()) as made:
        yield made


@pytest.fixture
def machine(bare: Machine) -> Machine:
    """Both daemons run, on files that are sound."""
    bare.write(LB_YAML, CONFIG)
    bare.write(NODE_YAML, NODE)
    bare.run("systemctl", "start", *UNITS)
    return bare
