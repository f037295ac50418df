"""What `make packages` builds, built for tests: this tree's version, and the same code under a newer number."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TREE: Final = Path(__file__).parents[2]
DIST: Final = TREE / ".cache" / "packages" / "tests"
"""Not dist/: what is built there is meant for hosts."""
NEXT: Final = "99.0"
NAMES: Final = ("hostmesh-envoy", "hostmesh-agent", "hostmesh", "hostmesh-controller")
BUILT_WITHIN_S: Final = 3600


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


def ship(what: str, environment: Mapping[str, str] | None = None, tree: Path = TREE) -> str:
    """Run what `make packages` and `make repo` run, quickly packed; return what it told."""
    given = {**os.environ, "PYTHONPATH": str(tree / "packaging"), "DIST": str(DIST), "LEVEL": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "shipping", what],
        cwd=tree,
        env={**given, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BUILT_WITHIN_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(version: str = "") -> str:
    return ship("packages", {"VERSION": version})


def build_both() -> Built:
    # AS_BUILT=1: those of the last run, while tests are written.
    if not os.environ.get("AS_BUILT"):
        build()
        build(NEXT)
    return Built(DIST, (TREE / "pyproject.toml").read_text().partition('\nversion = "')[2].partition('"')[0])
