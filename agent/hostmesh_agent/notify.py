"""The service manager is told how the agent does: sd_notify(3), which is one datagram. Nothing happens without one.

The watchdog is fed by the event loop: an agent whose loop hangs is ended and started anew, and what it runs goes on.
"""

import asyncio
import os
import socket
import subprocess
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SOCKET: Final = "NOTIFY_SOCKET"
WATCHDOG: Final = "WATCHDOG_USEC"
WATCHDOG_PID: Final = "WATCHDOG_PID"
_MAX_STATUS_CHARS: Final = 200
UNIT: Final = "hostmesh-agent.service"
SYSTEMD_RUNS: Final = Path("/run/systemd/system")  # sd_booted(3)
STATE_DIR: Final = Path("/var/lib/hostmesh")
"""That of the unit."""
_ANSWERS_WITHIN_S: Final = 10.0
_LOOK_S: Final = 10.0
"""How often the status is told without a watchdog."""


@dataclass(frozen=True, slots=True)
class Manager:
    """Who is to be told. `address` "": nobody; `watchdog_s` 0.0: nobody watches."""

    address: str
    watchdog_s: float

    def tell(self, *lines: str) -> None:
        """Send the lines (`READY=1`). A manager that does not listen is not waited for."""
        if not self.address:
            return
        # An abstract socket is written with an @.
        name = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)
            sender.sendto("\n".join(lines).encode(), name)


NOBODY: Final = Manager("", 0.0)


def manager(environment: Mapping[str, str] = os.environ, pid: int | None = None) -> Manager:
    """Read from the environment whom to tell. A watchdog that is meant for another process is none of ours."""
    address = environment.get(SOCKET, "")
    watched = environment.get(WATCHDOG_PID, str(pid or os.getpid())) == str(pid or os.getpid())
    try:
        watchdog_s = int(environment.get(WATCHDOG, "0")) / 1e6 if watched else 0.0
    except ValueError:
        watchdog_s = 0.0
    return Manager(address, max(0.0, watchdog_s) if address else 0.0)


def take(environment: MutableMapping[str, str]) -> Manager:
    """Read whom to tell, and take it out of the environment: what is started here must not speak in our name."""
    found = manager(environment)
    for name in (SOCKET, WATCHDOG, WATCHDOG_PID):
        environment.pop(name, None)
    return found


async def run(to: Manager, ready: asyncio.Event, status: Callable[[], str]) -> None:
    """Say READY once `ready` is set, then feed the watchdog and tell the status, until cancelled.

    Before READY the manager bounds the start by itself (TimeoutStartSec); the watchdog is fed from the beginning.
    """
    if not to.address:
        return
    pause_s = min(_LOOK_S, to.watchdog_s / 3 or _LOOK_S)
    try:
        told = False
        while True:
            lines = ["WATCHDOG=1", f"STATUS={_one_line(status())}"]
            if ready.is_set() and not told:
                lines.insert(0, "READY=1")
                told = True
            to.tell(*lines)
            if told:
                await asyncio.sleep(pause_s)
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await ready.wait()
    finally:
        to.tell("STOPPING=1", "STATUS=ended; Envoy and capture stay as they are")


def stay_down(
    state_dir: Path, runs: Path = SYSTEMD_RUNS, program: str = "systemctl", of_unit: Path = STATE_DIR
) -> None:
    """Have systemd end the agent's unit and not start it again, where there is one; do not wait for that.

    An agent of another state directory or another network (a second one, one of a lab) is none of the unit's: the
    host's own must not end because that one leaves.

    What it restarts looks at no condition of its unit any more (an agent that waits for its restart counts as
    activating), and would make its directories anew while, and after, the host leaves.
    """
    if of_the_units(state_dir, runs, of_unit):
        _systemctl(program, "--no-block", "stop")


def left_well(
    state_dir: Path, runs: Path = SYSTEMD_RUNS, program: str = "systemctl", of_unit: Path = STATE_DIR
) -> None:
    """Have systemd count the agent's unit as ended and not as failed, also where the agent had to be killed."""
    if of_the_units(state_dir, runs, of_unit):
        _systemctl(program, "reset-failed")


def _systemctl(program: str, *words: str) -> None:
    with suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            [program, "--quiet", *words, UNIT],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # That there is no such unit is nothing to tell.
            stderr=subprocess.DEVNULL,
            timeout=_ANSWERS_WITHIN_S,
            check=False,
        )


def of_the_units(state_dir: Path, runs: Path = SYSTEMD_RUNS, of_unit: Path = STATE_DIR) -> bool:
    """Tell whether this host's units are those of this state directory: a second agent, or one of a lab, has none."""
    return runs.is_dir() and state_dir.resolve() == of_unit.resolve() and _in_network_of_system()


def _in_network_of_system() -> bool:
    try:
        return Path("/proc/1/ns/net").readlink() == Path("/proc/self/ns/net").readlink()
    except OSError:  # not told: /proc hides it
        return True


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_MAX_STATUS_CHARS]
