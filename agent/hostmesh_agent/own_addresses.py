"""The host's addresses while they change: who must know of it does so at once.

    kernel (rtnetlink) ─▶ lost or gained ─▶ a new connection to the controller ─▶ a report from the new address

The connection from an address that went is dead, and nobody would notice for minutes: nothing refuses it. Whether the
controller follows, and why it does not, is its answer to the report.
"""

import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

import structlog

from hostmesh_agent.alarms import Alarms
from hostmesh_api.v1.hostmesh_pb2 import ReportResponse
from hostmesh_api.wire import ADDRESS_STAYS

COALESCE_S: Final = 0.2
"""A lease of DHCP is a dozen messages."""
LOOK_S: Final = 60.0
"""How often it is looked without a word from the kernel, which may not have been heard."""
AT_ONCE: Final = 3
WINDOW_S: Final = 30.0
"""So many connections are given up in so long for addresses that went. A host of containers loses one with each network
of theirs, and a stream that never stands never takes what changes."""
_GROUPS: Final = 0x10 | 0x100
"""RTMGRP_IPV4_IFADDR and RTMGRP_IPV6_IFADDR (linux/rtnetlink.h)."""
_DRAIN_BYTES: Final = 1 << 16

log = structlog.get_logger(__name__)


class OwnAddresses:
    """Watches until cancelled.

    Args:
        alarms: of the agent.
        addresses: returns those under which others may reach the host.
        connected: tells whether the controller is reached.
        reconnect: opens another connection to the controller.
        changed: is called when there is something to report soon.
    """

    def __init__(
        self,
        alarms: Alarms,
        addresses: Callable[[], Iterable[str]],
        connected: Callable[[], bool],
        reconnect: Callable[[], None],
        changed: Callable[[], None],
        look_s: float = LOOK_S,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._alarms = alarms
        self._addresses = addresses
        self._connected = connected
        self._reconnect = reconnect
        self._changed = changed
        self._look_s = look_s
        self._now_s = now_s
        self._reconnected_at_s: deque[float] = deque(maxlen=AT_ONCE)
        self._is_due = False
        """An address went, and the connection to the controller may have been from it."""
        self._known: frozenset[str] | None = None
        self._untold = False

    async def run(self) -> None:
        heard = asyncio.Event()
        loop = asyncio.get_running_loop()
        with _listening() as kernel:
            loop.add_reader(kernel.fileno(), _drain, kernel, heard)
            try:
                while True:
                    try:
                        self.look()
                    except OSError as error:
                        # No descriptor left to look with, say. What is known stays known until the next look.
                        log.warning("the host's addresses cannot be read", reason=str(error))
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._wait_s()):
                            await heard.wait()
                            await asyncio.sleep(COALESCE_S)
                    heard.clear()
            finally:
                loop.remove_reader(kernel.fileno())

    def look(self) -> None:
        """Look once, and do what follows from what changed.

        Raises:
            OSError: the addresses cannot be read.
        """
        before, now = self._known, frozenset(self._addresses())
        self._known = now
        if before is not None and now != before:
            self._note(before, now)
        if self._is_due and not self._pause_s():
            self._is_due = False
            self._reconnected_at_s.append(self._now_s())
            self._reconnect()

    def _wait_s(self) -> float:
        return min(self._look_s, max(self._pause_s(), COALESCE_S)) if self._is_due else self._look_s

    def _pause_s(self) -> float:
        """Return how long the connection is left alone yet."""
        if len(self._reconnected_at_s) < AT_ONCE:
            return 0.0
        return max(self._reconnected_at_s[0] + WINDOW_S - self._now_s(), 0.0)

    def _note(self, before: frozenset[str], now: frozenset[str]) -> None:
        log.info("addresses changed", lost=sorted(before - now), gained=sorted(now - before))
        self._untold = True
        if not self._connected():
            # The wait for one: it may be for an address that is not there.
            self._reconnect()
        elif before - now:
            self._is_due = True
        self._changed()

    def reached(self) -> None:
        """Take note that there is a new connection: what could not be told before is told now."""
        self._is_due = False
        if self._untold:
            self._changed()

    def taken(self, response: ReportResponse) -> None:
        """Take note of what the controller says to the addresses that it was told."""
        self._untold = False
        if response.address_problem:
            self._alarms.up(ADDRESS_STAYS, response.address_problem)
        else:
            self._alarms.down(ADDRESS_STAYS)


def _listening() -> socket.socket:
    """Return a socket that hears of changes of addresses in this network namespace.

    Raises:
        OSError: the kernel has no rtnetlink, and the agent no rules.
    """
    kernel = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
    )
    try:
        kernel.bind((0, _GROUPS))
    except OSError:
        kernel.close()
        raise
    return kernel


def _drain(kernel: socket.socket, heard: asyncio.Event) -> None:
    # What was said does not matter, and neither do messages lost (ENOBUFS): that something was said, does.
    with suppress(OSError):
        while kernel.recv(_DRAIN_BYTES):
            pass
    heard.set()
