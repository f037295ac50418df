"""How often something is put right that is undone each time: at once, but never as a fight. Pure.

The rules after another program changed them, the resolver's file, and a workload's health where its program flaps.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

LIMIT: Final = 5
"""Repairs within the window that are made at once: a firewall that is reloaded takes one or two."""
WINDOW_S: Final = 60.0
_FIRST_PAUSE_S: Final = 1.0
LAST_PAUSE_S: Final = 30.0


@dataclass(slots=True)
class Repairs:
    """The repairs of the last minute. Times are seconds of any clock that only goes forward.

    `first_pause_s`, `last_pause_s`: between repairs that are more than a few; each pause is twice the one before.
    """

    first_pause_s: float = _FIRST_PAUSE_S
    last_pause_s: float = LAST_PAUSE_S
    _made: deque[float] = field(default_factory=deque)
    _pause_s: float = 0.0

    def wait_s(self, now: float) -> float:
        """Return for how long the rules must stay as they are; 0: repair now."""
        self._forget(now)
        if len(self._made) < LIMIT:
            return 0.0
        return max(0.0, self._made[-1] + self._pause_s - now)

    def made(self, now: float) -> None:
        """Note a repair."""
        self._forget(now)
        self._made.append(now)
        if len(self._made) >= LIMIT:
            self._pause_s = min(max(self._pause_s * 2, self.first_pause_s), self.last_pause_s)

    def count(self, now: float) -> int:
        """Return how many were made within the window."""
        self._forget(now)
        return len(self._made)

    def _forget(self, now: float) -> None:
        # While they are far apart the memory must be longer than the pause, or each would be the first again.
        while self._made and now - self._made[0] > WINDOW_S + LIMIT * self._pause_s:
            self._made.popleft()
        if len(self._made) < LIMIT:
            self._pause_s = 0.0
