"""One bed for all table tests: loading takes a second, a test milliseconds."""

from collections.abc import Iterator

import pytest

from bpf import kernel
from tests.support.bed import Bed
from tests.support.bed import bed as make_bed


@pytest.fixture(scope="session")
def shared_bed() -> Iterator[Bed]:
    with make_bed() as made:
        yield made


@pytest.fixture
def bed(request: pytest.FixtureRequest) -> Bed:
    try:
        made: Bed = request.getfixturevalue("shared_bed")
    except (kernel.NotPermitted, kernel.Unsupported) as error:
        pytest.skip(str(error))
    return made
