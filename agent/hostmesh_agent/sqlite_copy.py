"""A copy of an SQLite file, for where the file cannot be opened: SQLite wants to write even where it only reads."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

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
