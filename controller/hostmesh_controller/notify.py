"""The service manager is told how the controller does: sd_notify(3), one datagram each. Nothing happens without one.

The watchdog is fed by the event loop: a controller whose loop hangs is ended and started anew, and no packet goes
another way because of it.
"""

import asyncio
import os
import socket
from collections.abc import MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

SOCKET: Final = "NOTIFY_SOCKET"
WATCHDOG: Final = "WATCHDOG_USEC"
WATCHDOG_PID: Final = "WATCHDOG_PID"


@dataclass(frozen=True, slots=True)
class Manager:
    """Who is to be told. `address` "": nobody; `watchdog_s` 0.0: nobody watches."""

    address: str = ""
    watchdog_s: float = 0.0

    def tell(self, *lines: str) -> None:
        """Send the lines (`READY=1`). A manager that does not listen is not waited for."""
        if not self.address:
            return
        # An abstract socket is written with an @.
        name = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)
            sender.sendto("\n".join(lines).encode(), name)

    async def feed(self) -> None:
        """Feed the watchdog, thrice as often as it wants, until cancelled."""
        while True:
            self.tell("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s / 3 or 3600.0)


def take(environment: MutableMapping[str, str] = os.environ, pid: int | None = None) -> Manager:
    """Read whom to tell, and take it out of the environment: what is started here must not speak in our name."""
    address = environment.pop(SOCKET, "")
    own = str(pid or os.getpid())
    period, watched = environment.pop(WATCHDOG, "0"), environment.pop(WATCHDOG_PID, own)
    # One that is meant for another process is none of ours.
    watchdog_s = int(period) / 1e6 if address and watched == own and period.isdecimal() else 0.0
    return Manager(address, watchdog_s)
