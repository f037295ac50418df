"""A directory of directories that Envoy's user may own: written by root without trusting what lies there.

Every step goes by an open directory and follows no symbolic link, so that whoever has Envoy's user can confuse Envoy,
and make root write nowhere else.
"""

import os
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from hostmesh_agent.state import MAX_FILE_BYTES, StateError, write_at

_ALONE: Final = 0o600
_SHARED: Final = 0o640
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Tree:
    """`<base>/<name>/<directory>/<file>`: directories 0700, files 0600, all of one owner.

    An agent that is neither root nor the owner keeps them itself, 0750 and 0640, for the owner's group to read.
    """

    def __init__(self, base: Path, name: str, owner: tuple[int, int]) -> None:
        """`base` exists; `owner` is (uid, gid)."""
        self._base = base
        self._name = name
        ours = os.geteuid() in (0, owner[0])
        self._owner = owner if ours else (os.geteuid(), owner[1])
        self._mode = _ALONE if ours else _SHARED

    def write(self, directory: str, file: str, data: bytes) -> bool:
        """Make the file hold the data, by an atomic rename; return False if it did already.

        Raises:
            StateError: the disk refuses, or something else is in the way.
        """
        with self._explained(directory, file), self._open(directory) as descriptor:
            if _read(descriptor, file, self._owner[0], self._mode) == data:
                return False
            _remove_drafts(descriptor)
            alone = os.geteuid() == self._owner[0] and self._mode == _ALONE
            write_at(descriptor, file, data, None if alone else self._owner, self._mode)
            return True

    def read(self, directory: str, file: str) -> bytes | None:
        """Return the content, or None if there is no such plain file that is closed to others.

        Raises:
            StateError: something else is in the way.
        """
        with self._explained(directory, file), self._open(directory) as descriptor:
            return _read(descriptor, file, self._owner[0], self._mode)

    def keep_only(self, keep: Collection[str]) -> tuple[str, ...]:
        """Remove all directories but these; return the names of the removed ones.

        Raises:
            StateError: the disk refuses.
        """
        with self._explained(), self._open() as descriptor:
            gone = tuple(sorted(_names(descriptor) - set(keep)))
            for name in gone:
                if stat.S_ISDIR(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode):
                    shutil.rmtree(name, dir_fd=descriptor)
                else:
                    os.unlink(name, dir_fd=descriptor)
            return gone

    @contextmanager
    def _open(self, *names: str) -> Iterator[int]:
        """Yield a descriptor of the directory, made if missing."""
        descriptor = os.open(self._base, _DIRECTORY)
        try:
            for name in (self._name, *names):
                below = self._enter(descriptor, name)
                os.close(descriptor)
                descriptor = below
            yield descriptor
        finally:
            os.close(descriptor)

    def _enter(self, parent: int, name: str) -> int:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
        descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
        status = os.fstat(descriptor)
        try:
            mode, found = 0o700, (status.st_uid, self._owner[1])
            if self._mode == _SHARED:
                mode, found = 0o750, (status.st_uid, status.st_gid)
            if found != self._owner:
                os.fchown(descriptor, *self._owner)
            if stat.S_IMODE(status.st_mode) != mode:
                os.fchmod(descriptor, mode)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    @contextmanager
    def _explained(self, *names: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            path = self._base.joinpath(self._name, *names)
            msg = f"{path}: {error.strerror}: make room, or remove what is in the way there"
            raise StateError(msg) from error


def _read(directory: int, file: str, uid: int, mode: int) -> bytes | None:
    """Return the content of a plain file of the user's with this mode; None if it is anything else."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as opened:
        status = os.fstat(descriptor)
        as_it_should_be = stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) == mode
        if not as_it_should_be or status.st_uid != uid or status.st_size > MAX_FILE_BYTES:
            return None
        return opened.read(MAX_FILE_BYTES)


def _names(directory: int) -> set[str]:
    with os.scandir(directory) as entries:
        return {entry.name for entry in entries}


def _remove_drafts(directory: int) -> None:
    """Remove what a crash left before its rename."""
    for name in _names(directory):
        if name.startswith("."):
            with suppress(OSError):
                os.unlink(name, dir_fd=directory)
