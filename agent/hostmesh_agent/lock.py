"""One agent per state directory; `leave` counts as one."""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

FILE: Final = "agent.lock"
_POLL_S: Final = 0.05


class LockedError(Exception):
    """Another agent runs on the same state directory, or a `leave`."""


@contextmanager
def held(state_dir: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock; it ends with the process, however that ends.

    Raises:
        LockedError: somebody else holds it after `wait_s`.
    """
    state_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    path = state_dir / FILE
    descriptor = _open(path)
    try:
        _take(descriptor, path, time.monotonic() + wait_s)
        yield
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    """Open the file, made if missing; where nothing can be written the directory itself is what is locked."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            raise
    with suppress(FileNotFoundError):
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    return os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _take(descriptor: int, path: Path, until: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise LockedError(f"another hostmesh-agent works on {path.parent} (it holds {path.name})") from None
            time.sleep(_POLL_S)
        else:
            return
