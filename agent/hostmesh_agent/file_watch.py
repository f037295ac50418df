"""A few files that other programs write: the agent hears of it at once instead of at its next look.

Files are replaced by renames and links, so it is their directories that are watched. Where that cannot be had the next
look finds it.
"""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from hostmesh_agent import inotify

SETTLES_S: Final = 0.05
"""A program that writes in place makes several changes."""
PAUSE_S: Final = 1.0
"""Between two words of it, at least: who writes without end costs no more than a look a second."""
_MASK: Final = inotify.CREATE | inotify.DELETE | inotify.MOVED_TO | inotify.CLOSE_WRITE


class FileWatch:
    """Calls `changed` when one of the files may have changed. For one event loop."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._names: frozenset[str] = frozenset()
        self._inotify: int | None = None
        self._due: asyncio.TimerHandle | None = None
        self._told_at = float("-inf")

    def look(self, files: frozenset[Path]) -> None:
        """Watch these files, and no others; none: nothing. A directory that was made anew is watched again.

        Where they are others than before, `changed` is called once: it may have happened before they were watched.
        """
        names = frozenset(each.name for each in files)
        others = names != self._names
        if others:
            self.close()
            self._names = names
        if not names:
            return
        if self._inotify is None:
            self._inotify = inotify.listen()
            if self._inotify is None:
                return
            asyncio.get_running_loop().add_reader(self._inotify, self._heard, self._inotify)
        for each in {file.parent for file in files}:
            inotify.watch(self._inotify, each, _MASK)
        if others:
            self._tell_soon()

    def close(self) -> None:
        self._names = frozenset()
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify)
            os.close(self._inotify)
            self._inotify = None

    def _heard(self, descriptor: int) -> None:
        found = inotify.heard(descriptor)
        if not (self._names | {""}).isdisjoint(found):
            self._tell_soon()

    def _tell_soon(self) -> None:
        if self._due is None:
            loop = asyncio.get_running_loop()
            self._due = loop.call_at(max(loop.time() + SETTLES_S, self._told_at + PAUSE_S), self._tell)

    def _tell(self) -> None:
        self._due = None
        self._told_at = asyncio.get_running_loop().time()
        self._changed()
