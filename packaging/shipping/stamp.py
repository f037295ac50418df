"""What the packages in dist/ were made of: when nothing of that has changed they are not made again."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from shipping.places import CACHE, PROJECT
from shipping.release import Release

_SOURCES: Final = ("agent", "controller", "packaging", "pyproject.toml", "CHANGELOG.md", "LICENSE")
_SKIPPED: Final = ("__pycache__",)


def _files() -> Iterator[Path]:
    for name in _SOURCES:
        top = PROJECT / name
        yield from sorted(each for each in top.rglob("*") if each.is_file()) if top.is_dir() else (top,)


def fingerprint(wanted: Release) -> str:
    """Return a digest of all that a build reads of this project, and of the versions of the interpreter's sources."""
    digest = hashlib.sha256(repr(wanted).encode())
    versions = CACHE / "sources" / "versions.json"
    for each in (*_files(), *((versions,) if versions.is_file() else ())):
        if not set(each.parts) & set(_SKIPPED):
            digest.update(f"\0{each.relative_to(PROJECT)}\0{each.stat().st_mode & 0o100}\0".encode())
            digest.update(hashlib.sha256(each.read_bytes()).digest())
    return digest.hexdigest()


def _place(wanted: Release, dist: Path) -> Path:
    return dist / f".built-{wanted.version}.json"


def current(wanted: Release, dist: Path) -> list[Path] | None:
    """Return the packages if they are there, whole, and of this very tree."""
    try:
        kept = json.loads(_place(wanted, dist).read_text())
    except (OSError, ValueError):
        return None
    if kept.get("of") != fingerprint(wanted):
        return None
    for name, digest in kept["files"].items():
        if not (dist / name).is_file() or _sha256(dist / name) != digest:
            return None
    return [dist / name for name in kept["files"]]


def write(wanted: Release, dist: Path, made: Sequence[Path], of: str) -> None:
    """Note them, and write what `sha256sum --check` reads.

    `of` is the fingerprint from before the build: what is changed meanwhile is built next time.
    """
    digests = {each.name: _sha256(each) for each in made}
    _place(wanted, dist).write_text(json.dumps({"of": of, "epoch": wanted.epoch, "files": digests}, indent=2) + "\n")
    sums = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    (dist / f"hostmesh-{wanted.version}.sha256").write_text(sums)


def _sha256(path: Path) -> str:
    return hashlib.file_digest(path.open("rb"), "sha256").hexdigest()
