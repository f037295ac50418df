"""One lab for all tests that only use it; tests that break one bring their own."""

import os
from collections.abc import Iterator

import pytest

from e2e.driver import Lab, new_lab


@pytest.fixture(scope="session", autouse=True)
def _needs_root() -> None:
    if os.getuid() != 0:
        pytest.skip("labs in tests are made as root; an ordinary user's lab has its own test")


@pytest.fixture
def empty_lab() -> Iterator[Lab]:
    """A lab that has not been started; ended and checked to be gone whatever the test did."""
    with new_lab() as lab:
        yield lab


@pytest.fixture(scope="session")
def mesh() -> Iterator[Lab]:
    """Client and server in the mesh, outside not; nothing is configured."""
    with new_lab() as lab:
        lab.verb("up", "client", "server", "--no-join", "outside")
        yield lab
