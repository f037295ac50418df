"""Looks for other programs' chains that are at odds with our rules; nothing of theirs is changed.

They take connections before ours see them, or lead callers to where ours refuse them.
"""

import socket
import time
from ipaddress import ip_address
from typing import Final

import psutil

from hostmesh_agent.capture import CaptureError, Table, kernel, led, nft
from hostmesh_agent.capture.foreign import Finding, findings
from hostmesh_agent.capture.led import Led
from hostmesh_agent.generation import generation

PAUSE_S: Final = 5.0
"""Between two looks: a tool that changes rules all day must not cost a core."""


def look() -> tuple[Finding | Led, ...]:
    """Return what there is now. Blocks for milliseconds.

    Raises:
        CaptureError: the kernel does not tell.
    """
    return look_at(kernel.read())


def look_at(ours: Table | None) -> tuple[Finding | Led, ...]:
    """Return what there would be, were `ours` in force."""
    closed = bool(led.closed(ours))
    chains = nft.foreign(behind=closed)
    return (*findings(chains, ours), *(led.findings(chains, ours, _own_addresses()) if closed else ()))


def _own_addresses() -> frozenset[bytes]:
    found = (each for interface in psutil.net_if_addrs().values() for each in interface)
    return frozenset(
        ip_address(each.address.partition("%")[0]).packed
        for each in found
        if each.family in {socket.AF_INET, socket.AF_INET6}
    )


class Foreign:
    """What was found last; looked for again when somebody has changed nftables. For a thread."""

    def __init__(self) -> None:
        self.found: tuple[Finding | Led, ...] = ()
        self._generation: int | None = None
        self._at = -PAUSE_S

    def look(self) -> tuple[Finding | Led, ...]:
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
