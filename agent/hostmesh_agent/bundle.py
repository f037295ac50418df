"""A file for somebody else to read: a compressed archive of texts that is made by root in a place of anybody's choice.

Made new, for its owner alone, and never through a link. Names inside are ours; each text and the whole are bounded.
"""

import io
import os
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

MAX_TEXT_BYTES: Final = 2 << 20
MAX_BYTES: Final = 32 << 20
"""Of all texts, before they are compressed."""


class Bundle:
    """An archive that is being written."""

    def __init__(self, archive: tarfile.TarFile, directory: str) -> None:
        self._archive = archive
        self._directory = directory
        self._left_bytes = MAX_BYTES
        self._at = int(time.time())

    def add(self, name: str, text: str, *, end: bool = False) -> int:
        """Put a text in; return how many bytes of it were left out, of its middle or (`end`) its beginning."""
        data = text.encode("utf-8", "replace")
        room = min(MAX_TEXT_BYTES, self._left_bytes)
        kept = data if len(data) <= room else data[len(data) - room :] if end else data[:room]
        info = tarfile.TarInfo(f"{self._directory}/{name}")
        info.size, info.mode, info.mtime = len(kept), 0o600, self._at
        self._archive.addfile(info, io.BytesIO(kept))
        self._left_bytes -= len(kept)
        return len(data) - len(kept)


@contextmanager
def new(path: Path, directory: str) -> Iterator[Bundle]:
    """Make the file; its texts are in `directory` inside. What cannot be finished is removed.

    Raises:
        FileExistsError: there is something, be it a link to nowhere.
        OSError: the disk refuses.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    made = os.fstat(descriptor)
    try:
        with os.fdopen(descriptor, "wb") as file:
            with tarfile.open(fileobj=file, mode="w:gz", compresslevel=6) as archive:
                yield Bundle(archive, directory)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        # In a directory of others somebody may have put another file there: theirs stays.
        if os.path.lexists(path) and os.path.samestat(path.lstat(), made):
            path.unlink()
        raise
