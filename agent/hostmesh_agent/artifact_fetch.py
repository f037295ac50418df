"""Fetches an artifact from the controller's mirror, piece by piece, and goes on where it was broken off.

Nothing of it is used before all of it has the digest that was signed. It lies in a directory of root's alone.
"""

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from hostmesh_api.manifest import File

DIRECTORY: Final = "updates"
SPARE_BYTES: Final = 64 << 20
"""So much of the disk stays free: certificates and configuration must have room."""
MAX_PIECE_BYTES: Final = 4 << 20

Piece = Callable[[int], Awaitable[bytes]]
"""Returns bytes from an offset on, none at the end; raises what it likes, with a bound on its time."""


class FetchError(Exception):
    """It cannot be had, and asking again would not help; the text says why."""


def free_bytes(directory: Path) -> int:
    """Return how much of the disk is free for the agent."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def part_of(state_dir: Path, wanted: File) -> Path:
    """Return where an artifact lies while it is not whole. Its name is the digest: a rest of it is never another's."""
    return state_dir / DIRECTORY / f"{wanted.sha256}.part"


async def fetch(wanted: File, state_dir: Path, piece: Piece, free: Callable[[Path], int] = free_bytes) -> Path:
    """Return a file with the whole artifact.

    Raises:
        FetchError: it is not what was signed, or there is no room.
    """
    path = part_of(state_dir, wanted)
    try:
        await asyncio.to_thread(_prepare, path, wanted, free)
        have = path.stat().st_size if path.exists() else 0
        while have < wanted.size_bytes:
            data = await piece(have)
            if not data:
                raise FetchError(f"it ends after {have} of {wanted.size_bytes} bytes")
            if len(data) > MAX_PIECE_BYTES or have + len(data) > wanted.size_bytes:
                raise FetchError(f"more comes than the {wanted.size_bytes} bytes that were signed")
            await asyncio.to_thread(_append, path, data, have)
            have += len(data)
        found = await asyncio.to_thread(_sha256, path)
    except FetchError:
        path.unlink(missing_ok=True)
        raise
    except OSError as error:
        raise FetchError(f"{path}: {error.strerror or error}") from error
    if found != wanted.sha256:
        path.unlink(missing_ok=True)
        raise FetchError(f"its sha256 is {found}, signed was {wanted.sha256}")
    return path


def _prepare(path: Path, wanted: File, free: Callable[[Path], int]) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.parent.chmod(0o700)
    for other in path.parent.iterdir():
        if other != path:
            other.unlink()
    have = path.stat().st_size if path.exists() else 0
    if have > wanted.size_bytes:
        path.unlink()
        have = 0
    need = wanted.size_bytes - have + SPARE_BYTES
    if free(path.parent) < need:
        raise FetchError(f"no room: it needs {need >> 20} MiB free in {path.parent}")


def _append(path: Path, data: bytes, at: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.seek(at)
        file.write(data)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
