"""Files of root's, which nobody else can have written; and files that are nobody's to trust, which are copied first."""

import hashlib
import os
import stat
from pathlib import Path
from typing import Final

CHUNK_BYTES: Final = 1 << 20
MAX_CONFIG_BYTES: Final = 1 << 20


class UntrustedError(Exception):
    """A file is not what it must be; the text names it."""


def read(path: Path, most: int = MAX_CONFIG_BYTES) -> bytes:
    """Return a file that root alone can have written, or put there.

    Raises:
        FileNotFoundError: there is none.
        UntrustedError: others may write it, or what leads to it.
    """
    place = path.parent.resolve()
    for each in (place, *place.parents):
        info = each.lstat()
        # In a directory with the sticky bit nobody moves what is another's.
        if not _of_root(info) and not info.st_mode & stat.S_ISVTX:
            raise UntrustedError(f"{path}: others than root may write into {each}")
    descriptor = os.open(place / path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode) or not _of_root(info):
            raise UntrustedError(f"{path}: others than root may write into it")
        return file.read(most)


def _of_root(info: os.stat_result) -> bool:
    return info.st_uid in {0, os.geteuid()} and not info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def read_foreign(path: Path, most: int) -> bytes:
    """Return what somebody wrote, whoever it was; no more than `most` bytes. Raises UntrustedError."""
    try:
        with os.fdopen(_open_foreign(path), "rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise UntrustedError(f"{path}: {error.strerror}") from None
    if len(data) > most:
        raise UntrustedError(f"{path}: has more than {most} bytes")
    return data


def copy_foreign(source: Path, target: Path, size_bytes: int) -> str:
    """Copy what somebody wrote to a new file of ours, and return the sha256 of the copy. Raises UntrustedError."""
    digest, left = hashlib.sha256(), size_bytes
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(_open_foreign(source), "rb") as file, os.fdopen(os.open(target, flags, 0o600), "wb") as copy:
            while left and (chunk := file.read(min(CHUNK_BYTES, left))):
                digest.update(chunk)
                copy.write(chunk)
                left -= len(chunk)
            whole = not left and not file.read(1)
            copy.flush()
            os.fsync(copy.fileno())
    except OSError as error:
        raise UntrustedError(f"{source}: {error.strerror}") from None
    if not whole:
        raise UntrustedError(f"{source}: does not have the {size_bytes} bytes that were signed")
    return digest.hexdigest()


def _open_foreign(path: Path) -> int:
    # A pipe must not keep us waiting, a link not lead us to a device.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UntrustedError(f"{path}: is no plain file")
    return descriptor
