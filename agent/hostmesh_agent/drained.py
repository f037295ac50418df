"""Nobody is to call this host's workloads for a while: a mark says so, and outlives the agent.

That of the host's owner is in the state directory and outlives a boot: a host under maintenance does not come back into
use by itself. That of a shutdown is in the run directory, which a boot empties.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

FILE: Final = "drained"
QUIET_S: Final = 1.0
"""A change of endpoints reaches callers within a second."""
LONGEST_S: Final = 5.0


class Drained:
    """The marks."""

    def __init__(self, state_dir: Path, run_dir: Path) -> None:
        self._lasting = state_dir / FILE
        self._until_boot = run_dir / FILE
        self.asked = self._lasting.exists() or self._until_boot.exists()

    def ask(self, wanted: bool, *, until_boot: bool = False) -> None:
        """Set a mark, or take both away (`until_boot`: that of a shutdown alone). Raises OSError."""
        if wanted:
            (self._until_boot if until_boot else self._lasting).touch(mode=0o600)
        else:
            for each in (self._until_boot,) if until_boot else (self._lasting, self._until_boot):
                each.unlink(missing_ok=True)
        self.asked = wanted or self._lasting.exists()


class Quiet:
    """Tells when callers have left: the controller knowing it is not yet every caller's Envoy knowing it."""

    def __init__(self) -> None:
        self._told_at: float | None = None
        self._begun: int | None = None
        self._since = 0.0

    def over(self, reply: Mapping[str, Any], now: float) -> bool:
        """Tell whether nobody calls any more: nothing is under way, and nothing new began for a while.

        Who looks at this host's health goes on calling, so new calls alone are not waited for without an end.

        Args:
            reply: the agent's answer to `drain`.
            now: monotonic seconds.
        """
        if self._told_at is None and reply["told"]:
            self._told_at = now
        if reply["begun"] != self._begun:
            self._begun, self._since = reply["begun"], now
        if self._told_at is None or reply["calls"]:
            return False
        return now - max(self._told_at, self._since) >= QUIET_S or now - self._told_at >= LONGEST_S
