"""How much of the host's CPU is free, in eighths, so calmly that noise is never told. Pure.

Callers' Envoys are told of each change, so there are few: the mean of half a minute, a level that is left only when it
is left clearly, and no more than one step in ten seconds. What is left of a swing after that is slower than the callers
that follow it, so two hosts do not throw their load to and fro.
"""

import math
from dataclasses import dataclass
from typing import Final

LEVELS: Final = 8
"""From 1, no CPU to speak of, to this, all of it. Nobody is told 0: a host that is asked for nothing learns nothing."""
STEP_S: Final = 10.0
"""Between two steps of one level."""
_MEAN_S: Final = 30.0
_CLEARLY: Final = 0.7
"""Of a level, beyond its edge."""


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Seconds since boot, of all cores together."""

    busy_s: float
    idle_s: float


class FreeCpu:
    """The level, from samples of a kernel's counts. Times are seconds of a clock that only goes forward."""

    def __init__(self) -> None:
        self._before: CpuTimes | None = None
        self._at = 0.0
        self._mean: float | None = None
        self._level = 0
        self._stepped_at = 0.0

    @property
    def level(self) -> int:
        """1 to LEVELS; 0 until it is known."""
        return self._level

    def sample(self, times: CpuTimes, now: float) -> bool:
        """Take the counts of now; return whether the level is another one."""
        before, self._before, passed_s, self._at = self._before, times, now - self._at, now
        if before is None:
            return False
        busy, idle = times.busy_s - before.busy_s, times.idle_s - before.idle_s
        # Counts go back where a core is taken out, or a virtual machine was moved.
        if not (busy >= 0 and idle >= 0 and busy + idle > 0 and passed_s > 0):
            return False
        free = idle / (busy + idle) * LEVELS
        if self._mean is None:
            self._mean, self._stepped_at = free, now
            self._level = min(max(math.ceil(free), 1), LEVELS)
            return True
        self._mean += (free - self._mean) * (1 - math.exp(-passed_s / _MEAN_S))
        step = self._step(self._mean) if now - self._stepped_at >= STEP_S else 0
        if step:
            self._level, self._stepped_at = self._level + step, now
        return bool(step)

    def _step(self, free: float) -> int:
        if free > self._level + _CLEARLY and self._level < LEVELS:
            return 1
        return -1 if free < self._level - 1 - _CLEARLY and self._level > 1 else 0
