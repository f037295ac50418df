"""The packages of this tree, built once for all tests of this folder, and as another version for upgrades."""

import os
import shutil
from pathlib import Path

import pytest

from packages.building import Built, build_both
from packages.roots import SUITES, Root


@pytest.fixture(scope="session", autouse=True)
def _can_build() -> None:
    if os.getuid() != 0:
        pytest.skip("packages are built, and installed in roots, as root")
    if not shutil.which("mmdebstrap") or not shutil.which("rpmbuild"):
        pytest.skip("needs mmdebstrap and rpmbuild: make test-packages installs them")


@pytest.fixture(scope="session")
def built() -> Built:
    return build_both()


@pytest.fixture(params=SUITES)
def disk(built: Built, request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    """A fresh root of each of Debian's versions."""
    return Root.make(request.param, tmp_path / "disk", built.dist)
