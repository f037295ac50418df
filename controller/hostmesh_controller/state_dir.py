"""The controller's state directory: private, and of one controller at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

STORE: Final = "store.sqlite"
RESTORING: Final = "restoring"
"""The file that says that a backup is being put back."""


class StateDirError(Exception):
    """The directory cannot be used; the text says why and what to do."""


@contextmanager
def claimed(path: Path, *, restoring: bool = False) -> Iterator[None]:
    """Make the directory private and hold it against other controllers; the kernel lets go when the process ends.

    Args:
        path: made if missing.
        restoring: a restore that was interrupted may be done again.

    Raises:
        StateDirError: another controller has it, it cannot be made, or a restore was interrupted.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
        descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateDirError(f"state_dir {path} cannot be used: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise StateDirError(
                f"state_dir {path} is in use by another hostmesh-controller (pid {holder}): "
                "stop it, or give this one a state_dir of its own"
            ) from error
        if not restoring and (path / RESTORING).exists():
            raise StateDirError(
                f"state_dir {path}: a backup was not put back to the end: run `hostmesh-controller restore FILE` again"
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def require_whole(path: Path, *, authority: bool) -> None:
    """Refuse to begin a mesh anew beside the authority of one that was there.

    The store is made before the authority: one without a store has lost it, and every host would be refused.

    Args:
        path: the state directory.
        authority: there is one in it.

    Raises:
        StateDirError: it has, and the store is missing or empty.
    """
    store = path / STORE
    if authority and (not store.exists() or not store.stat().st_size):
        what = "is empty" if store.exists() else "is not there"
        raise StateDirError(
            f"{store} {what}, and this directory has the authority of a mesh: put a backup back (hostmesh-controller "
            f"restore --replace FILE); for a new mesh, which its hosts would have to join anew, move {path / 'ca'} away"
        )
