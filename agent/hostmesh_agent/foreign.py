"""Looks for other programs' chains that take connections before our rules see them; nothing of theirs is changed."""

import time
from typing import Final

from hostmesh_agent.capture import CaptureError, kernel, nft
from hostmesh_agent.capture.foreign import Finding, findings
from hostmesh_agent.generation import generation

PAUSE_S: Final = 5.0
"""Between two looks: a tool that changes rules all day must not cost a core."""


def look() -> tuple[Finding, ...]:
    """Return what there is now. Blocks for milliseconds.

    Raises:
        CaptureError: the kernel does not tell.
    """
    return findings(nft.foreign(), kernel.read())


class Foreign:
    """What was found last; looked for again when somebody has changed nftables. For a thread."""

    def __init__(self) -> None:
        self.found: tuple[Finding, ...] = ()
        self._generation: int | None = None
        self._at = -PAUSE_S

    def look(self) -> tuple[Finding, ...]:
        """Return what there is, at most a pause old; what was found last where the kernel does not tell."""
        number, now = generation(), time.monotonic()
        if number is not None and number != self._generation and now - self._at >= PAUSE_S:
            self._at = now
            try:
                self.found = look()
            except CaptureError:
                return self.found
            self._generation = number
        return self.found
