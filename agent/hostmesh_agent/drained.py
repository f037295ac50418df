"""Nobody is to call this host's workloads for a while: a mark says so, and outlives the agent.

That of the host's owner is in the state directory and outlives a boot: a host under maintenance does not come back into
use by itself. That of a shutdown is in the run directory, which a boot empties.
"""

from pathlib import Path
from typing import Final

FILE: Final = "drained"


class Drained:
    """The marks."""

    def __init__(self, state_dir: Path, run_dir: Path) -> None:
        self._lasting = state_dir / FILE
        self._until_boot = run_dir / FILE
        self.asked = self._lasting.exists() or self._until_boot.exists()

    def ask(self, wanted: bool, *, until_boot: bool = False) -> None:
        """Set a mark, or take both away. Raises OSError."""
        if wanted:
            (self._until_boot if until_boot else self._lasting).touch(mode=0o600)
        else:
            for each in (self._lasting, self._until_boot):
                each.unlink(missing_ok=True)
        self.asked = wanted
