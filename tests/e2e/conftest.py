"""One lab for all tests that only use it; tests that break one bring their own."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.driver import Lab


@pytest.fixture(scope="session", autouse=True)
def _needs_root() -> None:
    if os.getuid() != 0:
        pytest.skip("labs in tests are made as root; an ordinary user's lab has its own test")


@pytest.fixture
def empty_lab() -> Iterator[Lab]:
    """A lab that has not been started; ended and checked to be gone whatever the test did."""
    root = Path(tempfile.mkdtemp(prefix="hm-e2e-"))
    lab = Lab(root / "lab")
    try:
        yield lab
    finally:
        lab.verb("down", check=False)
        shutil.rmtree(root)


@pytest.fixture(scope="session")
def mesh() -> Iterator[Lab]:
    """Client and server in the mesh, outside not; nothing is configured."""
    root = Path(tempfile.mkdtemp(prefix="hm-e2e-"))
    lab = Lab(root / "lab")
    try:
        lab.verb("up", "client", "server", "--no-join", "outside")
        yield lab
    finally:
        lab.verb("down", check=False)
        shutil.rmtree(root)
