"""The owner of the host wants nobody to call its workloads for a while: a mark in the state directory says so.

It outlives the agent and a boot: a host under maintenance does not come back into use by itself.
"""

from pathlib import Path
from typing import Final

FILE: Final = "drained"


class Drained:
    """The mark."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE
        self.asked = self._path.exists()

    def ask(self, wanted: bool) -> None:
        """Set the mark or take it away. Raises OSError."""
        if wanted:
            self._path.touch(mode=0o600)
        else:
            self._path.unlink(missing_ok=True)
        self.asked = wanted
