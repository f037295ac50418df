"""Tells at once when a cgroup comes or goes among systemd's slices: a unit that starts again is in a new one."""

import asyncio
import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from hostmesh_agent.cgroup import slices

# sys/inotify.h
_CREATE_DELETE_AND_MOVES: Final = 0x100 | 0x200 | 0xC0
_ONLY_DIRECTORIES: Final = 0x01000000
_BUFFER_BYTES: Final = 1 << 16

log = structlog.get_logger(__name__)


async def watch(root: Path, changed: Callable[[], None]) -> None:
    """Call `changed` whenever units or slices came or went, until cancelled."""
    loop = asyncio.get_running_loop()
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        log.warning("units cannot be watched; they are looked at now and then", errno=ctypes.get_errno())
        return
    heard = asyncio.Event()

    def drain() -> None:
        with suppress(BlockingIOError):
            while os.read(descriptor, _BUFFER_BYTES):
                pass
        heard.set()

    loop.add_reader(descriptor, drain)
    try:
        while True:
            # Again for those that are watched already changes nothing; a slice that has just come gets its watch.
            for path in slices(root):
                libc.inotify_add_watch(descriptor, os.fsencode(path), _CREATE_DELETE_AND_MOVES | _ONLY_DIRECTORIES)
            changed()
            await heard.wait()
            heard.clear()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
