"""The agent looks how busy its host is, where one of its workloads is called by that (`hostmesh.io/capacity: load`)."""

import asyncio
from collections.abc import Callable
from typing import Final

import psutil

from hostmesh_agent.free_cpu import CpuTimes, FreeCpu

EVERY_S: Final = 5.0


class Weighing:
    """Measures while it is asked for. `changed` is called when callers should hear of it, once in 10 s at most."""

    def __init__(self, changed: Callable[[], None], read: Callable[[], CpuTimes] | None = None) -> None:
        """`read` returns the kernel's counts; None: of this host."""
        self._changed = changed
        self._read = read or cpu_times
        self._free = FreeCpu()
        self._asked = asyncio.Event()

    @property
    def level(self) -> int:
        """How much is free, in eighths; 0: it is not asked for, or not known yet."""
        return self._free.level if self._asked.is_set() else 0

    def ask(self, *, wanted: bool) -> None:
        """Measure from now on, or no more."""
        if not wanted:
            self._asked.clear()
        elif not self._asked.is_set():
            self._free = FreeCpu()
            self._asked.set()

    async def run(self) -> None:
        while True:
            await self._asked.wait()
            if self._free.sample(self._read(), asyncio.get_running_loop().time()):
                self._changed()
            await asyncio.sleep(EVERY_S)


def cpu_times() -> CpuTimes:
    """Return the kernel's counts. What the hypervisor gave to others is busy: nobody here can have it."""
    found = psutil.cpu_times()
    idle = found.idle + found.iowait
    # The kernel counts guests as user time, too.
    return CpuTimes(sum(found) - idle - found.guest - found.guest_nice, idle)
