"""The processes that the distributed tests share."""

import pytest
from processes import Processes


def _processes(count):
    processes = Processes(count)
    yield processes
    processes.close()


@pytest.fixture(scope="session")
def two():
    """Two ranks of a gloo group."""
    yield from _processes(2)


@pytest.fixture(scope="session")
def four():
    """Four ranks of a gloo group."""
    yield from _processes(4)
