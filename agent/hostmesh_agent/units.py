"""Where the units are that capture is about: their cgroups, found below the slices, and found again when they restart.

A unit that restarts has another cgroup, made before its program is started and removed after it has ended. The kernel
tells of both at once (inotify), so the rules follow within milliseconds. Where that cannot be had they follow at the
next look. Only what root owns is looked into: below a unit that was handed to a user, he names things as he likes.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from hostmesh_agent import inotify
from hostmesh_agent.capture.who import MAX_LEVEL, Cgroup

RELOOK_S: Final = 60.0
"""After which what nobody told of is looked for again."""
_SLICE: Final = ".slice"
_WATCHED: Final = inotify.CREATE | inotify.DELETE | inotify.MOVED_TO | inotify.MOVED_FROM

log = structlog.get_logger(__name__)


class Units:
    """Finds units by name. `changed` is called when one that is wanted may have come or gone. For one event loop.

    `top` is where cgroup v2 is mounted (`cgroup.root`); None: no unit is known.
    """

    def __init__(self, changed: Callable[[], None], top: Path | None) -> None:
        self._changed = changed
        self._top = top
        self._wanted: frozenset[str] = frozenset()
        self._found: frozenset[Cgroup] | None = None
        self._found_at = 0.0
        self._inotify: int | None = None
        self._blind = False
        """Some slice is not watched: what was found may have changed unheard."""

    def look(self, wanted: frozenset[str]) -> frozenset[Cgroup]:
        """Return the cgroups of those units that run. Costs nothing while nothing was heard of."""
        if not wanted or self._top is None:
            self.close()
            return frozenset()
        if self._inotify is None:
            self._listen()
        now = time.monotonic()
        if wanted != self._wanted or self._found is None or self._blind or now - self._found_at > RELOOK_S:
            self._wanted, self._found_at = wanted, now
            saw, self._blind = not self._blind, self._inotify is None
            self._found = frozenset(self._scan(self._top, wanted))
            if self._blind and saw:
                log.warning("units cannot be watched (fs.inotify.max_user_…); they are looked for now and then")
        return self._found

    def close(self) -> None:
        self._wanted, self._found = frozenset(), None
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify)
            os.close(self._inotify)
            self._inotify = None

    def _scan(self, top: Path, wanted: frozenset[str]) -> Iterator[Cgroup]:
        below = [(top, 0)]
        while below:
            directory, level = below.pop()
            # Before it is looked: what comes meanwhile is heard of.
            self._watch(directory)
            with suppress(OSError):  # it went meanwhile
                for name, identifier in _children(directory):
                    if name in wanted and level < MAX_LEVEL:
                        yield Cgroup(name, level + 1, identifier)
                    if name.endswith(_SLICE):
                        below.append((directory / name, level + 1))

    def _listen(self) -> None:
        descriptor = inotify.listen()
        if descriptor is None:
            return
        self._inotify = descriptor
        asyncio.get_running_loop().add_reader(descriptor, self._heard, descriptor)

    def _watch(self, directory: Path) -> None:
        if self._inotify is None:
            return
        # Of one that went meanwhile its parent tells.
        if not inotify.watch(self._inotify, directory, _WATCHED):
            self._blind = True

    def _heard(self, descriptor: int) -> None:
        names = inotify.heard(descriptor)
        if any(not name or name in self._wanted or name.endswith(_SLICE) for name in names):
            self._found = None
            self._changed()


def _children(directory: Path) -> Iterable[tuple[str, int]]:
    with os.scandir(directory) as entries:
        for each in entries:
            if each.is_dir(follow_symlinks=False):
                # What somebody else owns was handed to him.
                told = each.stat(follow_symlinks=False)
                if told.st_uid == 0:
                    yield each.name, told.st_ino
