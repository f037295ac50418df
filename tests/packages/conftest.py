"""The packages of this tree, built once for all tests of this folder, and as another version for upgrades."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from packages.roots import SUITES, Root

TREE = Path(__file__).parents[2]
DIST = TREE / ".cache" / "packages" / "tests"
"""Not dist/: what is built there is meant for hosts."""
NEXT = "99.0"
BUILT_WITHIN_S = 3600


@dataclass(frozen=True)
class Built:
    """`version` is this tree's, `following` the same code under a newer number."""

    dist: Path
    version: str
    following: str = NEXT

    def deb(self, name: str, version: str = "") -> str:
        return f"{name}_{version or self.version}_amd64.deb"

    def rpm(self, name: str, version: str = "") -> str:
        return f"{name}-{version or self.version}-1.x86_64.rpm"

    def debs(self, version: str = "") -> list[str]:
        return [self.deb(each, version) for each in NAMES]


NAMES = ("hostmesh-envoy", "hostmesh-agent", "hostmesh", "hostmesh-controller")


def build(version: str = "", **environment: str) -> str:
    """Run what `make packages` runs; return what it told."""
    given = {
        **os.environ,
        "PYTHONPATH": str(TREE / "packaging"),
        "DIST": str(DIST),
        "LEVEL": "1",
        **({"VERSION": version} if version else {}),
    }
    done = subprocess.run(
        [sys.executable, "-m", "shipping", "packages"],
        cwd=TREE,
        env={**given, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BUILT_WITHIN_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session", autouse=True)
def _can_build() -> None:
    if os.getuid() != 0:
        pytest.skip("packages are built, and installed in roots, as root")
    if not shutil.which("mmdebstrap") or not shutil.which("rpmbuild"):
        pytest.skip("needs mmdebstrap and rpmbuild: make test-packages installs them")


@pytest.fixture(scope="session")
def built() -> Built:
    # AS_BUILT=1: those of the last run, while tests are written.
    if not os.environ.get("AS_BUILT"):
        build()
        build(NEXT)
    return Built(DIST, (TREE / "pyproject.toml").read_text().partition('\nversion = "')[2].partition('"')[0])


@pytest.fixture(params=SUITES)
def disk(built: Built, request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    """A fresh root of each of Debian's versions."""
    return Root.make(request.param, tmp_path / "disk", built.dist)
