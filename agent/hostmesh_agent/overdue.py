"""When what is held back is taken by itself: once it was held for long enough, over however many streams. Pure.

A stream that ends takes along what is held, and the next one brings it again. The time without one does not count:
nobody sees then that something is held back.
"""

from dataclasses import dataclass

from hostmesh_agent.shrink import WAIT_S


@dataclass(slots=True)
class Overdue:
    """Counts the seconds; times are those of a monotonic clock."""

    after_s: float
    """After so long it is taken; 0: never."""
    _held_s: float = 0.0
    """For how long it was held on streams that have ended."""
    _since_s: float | None = None

    def begin(self, now_s: float) -> float | None:
        """Take note that something is held back from now on; return in how many seconds it is taken, None for never.

        What comes again is not taken before all of it can have come: a loss shows in several types.
        """
        self._since_s = now_s
        return max(self.after_s - self._held_s, min(self.after_s, WAIT_S)) if self.after_s else None

    def interrupt(self, now_s: float) -> None:
        """Take note that the stream has ended."""
        if self._since_s is not None:
            self._held_s += now_s - self._since_s
        self._since_s = None

    def end(self) -> None:
        """Forget it: it was taken, or is no loss any more."""
        self._held_s, self._since_s = 0.0, None
