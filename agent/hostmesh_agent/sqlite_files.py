"""SQLite files that cannot be opened: copied, as SQLite wants to write even where it only reads, or set aside."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_SUFFIXES: Final = ("", "-wal", "-shm")
_IN_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a directory of our own is made in it, closed to others


@contextmanager
def copied(path: Path) -> Iterator[Path]:
    """Copy the file, with the log that belongs to it; the file itself is not touched.

    Raises:
        OSError: it cannot be read, or the copy not be written.
    """
    with tempfile.TemporaryDirectory(prefix="hostmesh-", dir=_IN_MEMORY if _IN_MEMORY.is_dir() else None) as name:
        for suffix in ("", "-wal"):
            source = path.with_name(path.name + suffix)
            if source.exists():
                shutil.copyfile(source, Path(name) / source.name)
        yield Path(name) / path.name


def set_aside(path: Path) -> None:
    """Move a damaged file out of the way. The first one that was moved is kept, and never replaced by a later one.

    Raises:
        OSError: the disk refuses.
    """
    files = [path.with_name(path.name + suffix) for suffix in _SUFFIXES]
    kept = any(_aside(each).exists() for each in files)
    for each in files:
        if kept:
            each.unlink(missing_ok=True)
        elif each.exists():
            each.rename(_aside(each))


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.unreadable")
