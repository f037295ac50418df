"""Packages of several versions of this very tree, made once a tree by the same code as `make packages`.

A bad version is a good one that was opened, spoilt and closed again.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

from shipping import deb, sources, staging
from shipping.parts import AGENT, ENVOY, PARTS, Part, deb_name
from shipping.places import CACHE, PROJECT
from shipping.release import Release

HOME: Final = Path("usr/lib/hostmesh-agent")
_WITHIN_S: Final = 900
_EPOCH: Final = 1_790_000_000
"""The time of all files: not that of the last commit, with which the packages would be others each time."""


@cache
def directory() -> Path:
    """Return where the packages of this tree are; what another tree made goes."""
    of = CACHE / "versions" / _fingerprint()
    if not of.is_dir():
        shutil.rmtree(of.parent, ignore_errors=True)
        of.mkdir(parents=True)
    return of


def _fingerprint() -> str:
    """Return a digest of all that becomes a part of these packages, or makes them."""
    digest = hashlib.sha256()
    for name in ("agent", "controller/hostmesh_api", "packaging"):
        for each in sorted((PROJECT / name).rglob("*")):
            if each.is_file() and "__pycache__" not in each.parts:
                digest.update(f"\0{each.relative_to(PROJECT)}\0".encode() + hashlib.sha256(each.read_bytes()).digest())
    return digest.hexdigest()[:16]


def good(part: Part, version: str) -> Path:
    """Return the .deb of a version, built if it is not there yet (half a minute)."""

    def build(work: Path, into: Path) -> None:
        # A process of its own, as `make packages` is: what it leaves open is none of the tests'.
        command = [sys.executable, "-m", "hosts.versions", part.name, version, str(work), str(into)]
        environment = {**os.environ, "PYTHONPATH": f"{PROJECT / 'tests'}:{PROJECT / 'packaging'}"}
        _run(*command, environment=environment)

    return _made(part, version, build)


def main(name: str, version: str, work: str, into: str) -> None:
    """Build one .deb, as fast as may be."""
    part = next(each for each in PARTS if each.name == name)
    wanted = Release(version, _EPOCH, level=1)
    sources.sources(refresh=False)
    deb.build(part, wanted, staging.Staging(wanted, Path(work)).stage(part), Path(into))


def bad_agent(version: str, of: str, code: str) -> Path:
    """Return the .deb of an agent like `of`, but for `code`, which it runs first."""

    def spoil(tree: Path) -> None:
        module = next((tree / HOME).glob("lib/*/dist-packages/hostmesh_agent/run.py"))
        module.write_text(f"{code}\n")
        for each in (module.parent / "__pycache__").glob("run.*.pyc"):
            each.unlink()
        info = next((tree / HOME).glob("lib/*/dist-packages/hostmesh-*.dist-info"))
        (info / "METADATA").write_text((info / "METADATA").read_text().replace(of, version))
        info.rename(info.with_name(f"hostmesh-{version}.dist-info"))

    return _made(AGENT, version, lambda work, into: _repacked(good(AGENT, of), of, version, spoil, work, into))


def other_envoy(version: str, of: str, *, starts: bool) -> Path:
    """Return the .deb of an Envoy that is another by its digest; one that does not start is a script that fails."""

    def change(tree: Path) -> None:
        home = tree / ENVOY.home
        binary = home / "envoy"
        if starts:
            binary.write_bytes(binary.read_bytes() + version.encode())
        else:
            binary.write_text("#!/bin/sh\nexit 7\n")
        said = json.loads((home / "manifest.json").read_text())
        said |= {"package": version, "sha256": hashlib.sha256(binary.read_bytes()).hexdigest()}
        said["version"] = f"1.40.{version.rpartition('.')[2]}"
        (home / "manifest.json").write_text(json.dumps(said))

    return _made(ENVOY, version, lambda work, into: _repacked(good(ENVOY, of), of, version, change, work, into))


def _made(part: Part, version: str, build: Callable[[Path, Path], None]) -> Path:
    place = directory()
    target = place / deb_name(part, version)
    if target.exists():
        return target
    with (place / f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            work = place / f"{target.name}.work"
            shutil.rmtree(work, ignore_errors=True)
            (work / "made").mkdir(parents=True)
            build(work, work / "made")
            (work / "made" / target.name).rename(target)
            shutil.rmtree(work)
    return target


def _repacked(source: Path, of: str, version: str, change: Callable[[Path], None], work: Path, into: Path) -> None:
    tree = work / "tree"
    _run("dpkg-deb", "--raw-extract", str(source), str(tree))
    change(tree)
    control = tree / "DEBIAN" / "control"
    control.write_text(control.read_text().replace(f"Version: {of}\n", f"Version: {version}\n"))
    name = source.name.replace(f"_{of}_", f"_{version}_")
    _run("dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(into / name))


def _run(*command: str, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_WITHIN_S,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, f"{command}: code {done.returncode}\n{done.stdout}{done.stderr}"


if __name__ == "__main__":
    main(*sys.argv[1:])
