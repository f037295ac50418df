"""Where the units are that capture is about: their cgroups, found below the slices, and found again when they restart.

A unit that restarts has another cgroup, made before its program is started and removed after it has ended. The kernel
tells of both at once (inotify), so the rules follow within milliseconds. Where that cannot be had they follow at the
next look. Only what root owns is looked into: below a unit that was handed to a user, he names things as he likes.
"""

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from hostmesh_agent.capture.who import MAX_LEVEL, Cgroup

_ROOTS: Final = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
_MARK: Final = "cgroup.controllers"
"""A file of every cgroup of version 2, and of no other."""
_SLICE: Final = ".slice"
# linux/inotify.h
_IN_CREATE, _IN_DELETE, _IN_MOVED_TO, _IN_MOVED_FROM, _IN_ONLYDIR = 0x100, 0x200, 0x80, 0x40, 0x01000000
_WATCHED: Final = _IN_CREATE | _IN_DELETE | _IN_MOVED_TO | _IN_MOVED_FROM | _IN_ONLYDIR
_IN_Q_OVERFLOW: Final = 0x4000
_EVENT: Final = struct.Struct("=iIII")
_READ_BYTES: Final = 1 << 16

log = structlog.get_logger(__name__)


def root() -> Path | None:
    """Return where the cgroups of version 2 are, None if the host has none."""
    return next((each for each in _ROOTS if (each / _MARK).exists()), None)


class Units:
    """Finds units by name. `changed` is called when one that is wanted may have come or gone. For one event loop."""

    def __init__(self, changed: Callable[[], None], top: Path | None = None) -> None:
        self._changed = changed
        self._top = top
        self._wanted: frozenset[str] = frozenset()
        self._found: frozenset[Cgroup] | None = None
        self._inotify: int | None = None

    def look(self, wanted: frozenset[str]) -> frozenset[Cgroup]:
        """Return the cgroups of those units that run. Costs nothing while nothing was heard of."""
        if not wanted:
            self.close()
            return frozenset()
        if self._inotify is None:
            self._listen()
        if wanted != self._wanted or self._found is None or self._inotify is None:
            # Before it is looked: what comes meanwhile is heard of.
            self._wanted, self._found = wanted, None
            self._found = frozenset(self._scan(wanted))
        return self._found

    def close(self) -> None:
        self._wanted, self._found = frozenset(), None
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify)
            os.close(self._inotify)
            self._inotify = None

    def _scan(self, wanted: frozenset[str]) -> Iterator[Cgroup]:
        top = self._top or root()
        if top is None:
            return
        below = [(top, 0)]
        while below:
            directory, level = below.pop()
            self._watch(directory)
            with suppress(OSError):  # it went meanwhile
                for name, identifier in _children(directory):
                    if name in wanted and level < MAX_LEVEL:
                        yield Cgroup(name, level + 1, identifier)
                    if name.endswith(_SLICE):
                        below.append((directory / name, level + 1))

    def _listen(self) -> None:
        descriptor = _libc().inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if descriptor < 0:
            log.warning("units cannot be watched; they are looked for now and then", error=os.strerror(_errno()))
            return
        self._inotify = descriptor
        asyncio.get_running_loop().add_reader(descriptor, self._heard, descriptor)

    def _watch(self, directory: Path) -> None:
        if self._inotify is not None:
            _libc().inotify_add_watch(self._inotify, os.fsencode(directory), _WATCHED)

    def _heard(self, descriptor: int) -> None:
        names: list[str] = []
        with suppress(BlockingIOError):
            while data := os.read(descriptor, _READ_BYTES):
                names += _names(data)
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


def _names(data: bytes) -> Iterator[str]:
    """Yield the name in each event; "" for those that were lost."""
    offset = 0
    while offset + _EVENT.size <= len(data):
        _, mask, _, length = _EVENT.unpack_from(data, offset)
        offset += _EVENT.size
        yield "" if mask & _IN_Q_OVERFLOW else os.fsdecode(data[offset : offset + length].rstrip(b"\0")) or "."
        offset += length


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _errno() -> int:
    return ctypes.get_errno()
