"""The kernel's word that a directory has changed: inotify, of which Python has nothing."""

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

# linux/inotify.h
CREATE, DELETE, MOVED_TO, MOVED_FROM, CLOSE_WRITE = 0x100, 0x200, 0x80, 0x40, 0x8
_ONLYDIR: Final = 0x01000000
_Q_OVERFLOW: Final = 0x4000
_EVENT: Final = struct.Struct("=iIII")
_READ_BYTES: Final = 1 << 16


def listen() -> int | None:
    """Return a descriptor that does not block, by which events are read; None: there is no more of them."""
    descriptor = int(_libc().inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    return None if descriptor < 0 else descriptor


def watch(descriptor: int, directory: Path, mask: int) -> bool:
    """Hear of what `mask` says in a directory; return whether that is done or the directory is not there."""
    watched = _libc().inotify_add_watch(descriptor, os.fsencode(directory), mask | _ONLYDIR)
    # Else mostly fs.inotify.max_user_watches.
    return watched >= 0 or ctypes.get_errno() == errno.ENOENT


def heard(descriptor: int) -> list[str]:
    """Return the name in each event that has come; "" for those that were lost."""
    found: list[str] = []
    with suppress(BlockingIOError):
        while data := os.read(descriptor, _READ_BYTES):
            found += _names(data)
    return found


def _names(data: bytes) -> Iterator[str]:
    offset = 0
    while offset + _EVENT.size <= len(data):
        _, mask, _, length = _EVENT.unpack_from(data, offset)
        offset += _EVENT.size
        yield "" if mask & _Q_OVERFLOW else os.fsdecode(data[offset : offset + length].rstrip(b"\0")) or "."
        offset += length


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
