"""Which programs listen on the host: services found, to be proposed and never imposed.

The kernel is asked for listening TCP sockets only, so a host with 100,000 connections costs no more than an idle one.
Which program holds a socket needs a walk through /proc, and that is done for new sockets only.
"""

import asyncio
import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from hostmesh_agent import rights, socket_holders
from hostmesh_agent.cgroup_names import Place, place_of
from hostmesh_agent.sock_diag import listeners
from hostmesh_api.v1.hostmesh_pb2 import ListeningSocket

EVERY_S: Final = 15.0
"""A look takes a third of a millisecond while nothing new listens."""
MAX_SOCKETS: Final = 512
"""A report stays small whatever the host does."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Holder:
    """The program that has the socket open; pid 0 where none could be found."""

    pid: int = 0
    program: str = ""
    place: Place = field(default_factory=Place)


class Services:
    """Remembers who holds which socket between looks."""

    def __init__(self) -> None:
        self._holders: Mapping[int, Holder] = {}

    def look(self) -> list[ListeningSocket]:
        """Return the listening sockets of this network namespace, sorted. Blocks for some milliseconds.

        Raises:
            OSError: the kernel does not answer.
        """
        found = listeners()
        inodes = {each.inode for each in found}
        if not inodes <= self._holders.keys():
            self._holders = {inode: Holder() for inode in inodes} | holders(inodes)
        else:
            self._holders = {inode: self._holders[inode] for inode in inodes}
        return [
            ListeningSocket(
                address=each.address,
                port=each.port,
                protocol="tcp",
                uid=each.uid,
                pid=holder.pid,
                program=holder.program,
                unit=holder.place.unit,
                container=holder.place.container,
            )
            for each, holder in ((each, self._holders[each.inode]) for each in found[:MAX_SOCKETS])
        ]


class Listening:
    """The listening sockets for reports: looked at every few seconds at most, however often something else changes."""

    def __init__(self) -> None:
        self._services = Services()
        self._found: list[ListeningSocket] = []
        self._next_look = 0.0

    async def sockets(self) -> list[ListeningSocket]:
        """Return what listens; nothing if that cannot be read."""
        at = asyncio.get_running_loop().time()
        if at >= self._next_look:
            self._next_look = at + EVERY_S
            try:
                self._found = await asyncio.to_thread(self._services.look)
            except OSError as error:
                log.warning("listening sockets cannot be read", error=str(error))
                self._found = []
        return self._found


def holders(inodes: Collection[int], proc: Path = Path("/proc")) -> dict[int, Holder]:
    """Find the programs that hold the sockets."""
    found: dict[int, Holder] = {}
    known: dict[int, Holder] = {}
    for inode, pid in rights.here().holders(inodes, lambda: socket_holders.pids(inodes, proc)).items():
        # A process may have ended meanwhile.
        with contextlib.suppress(OSError):
            found[inode] = known[pid] = known.get(pid) or _holder(proc / str(pid))
    return found


def _holder(process: Path) -> Holder:
    program = (process / "comm").read_text(errors="replace").strip()
    place = Place()
    with contextlib.suppress(OSError):
        place = place_of((process / "cgroup").read_text(errors="replace"))
    return Holder(int(process.name), program, place)
