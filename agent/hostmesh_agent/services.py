"""Which programs listen on the host: services found, to be proposed and never imposed.

The kernel is asked for listening TCP sockets only (sock_diag(7)), so a host with 100,000 connections costs no more than
an idle one. Which program holds a socket needs a walk through /proc, and that is done for new sockets only.
"""

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from hostmesh_api.v1.hostmesh_pb2 import ListeningSocket

EVERY_S: Final = 60.0
MAX_SOCKETS: Final = 512
"""A report stays small whatever the host does."""

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h, net/tcp_states.h
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST_DUMP: Final = 0x1 | 0x300
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_TCP_LISTEN: Final = 10
_HEADER: Final = struct.Struct("=IHHII")
_REQUEST: Final = struct.Struct("=BBBxI48x")
# family, state, (timer, retransmissions), source port, (destination port), source, (destination, interface, cookie,
# expiry, queues), uid, inode
_ANSWER: Final = struct.Struct("=BBxx2s2x16s40xII")
_ANSWER_BYTES: Final = 72
_RECEIVE_BYTES: Final = 1 << 18
_TIMEOUT_S: Final = 2.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, order=True)
class Listener:
    """One listening TCP socket as the kernel tells it."""

    address: str
    port: int
    uid: int
    inode: int


@dataclass(frozen=True, slots=True)
class Holder:
    """The program that has the socket open; pid 0 where none could be found."""

    pid: int = 0
    program: str = ""


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
                pid=self._holders[each.inode].pid,
                program=self._holders[each.inode].program,
            )
            for each in found[:MAX_SOCKETS]
        ]


class Listening:
    """The listening sockets for reports: looked at once a minute, however often something else changes."""

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


def listeners() -> list[Listener]:
    found: set[Listener] = set()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as diag:
        diag.settimeout(_TIMEOUT_S)
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 1 << _TCP_LISTEN)
            header = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 0, 0)
            diag.send(header + request)
            found.update(_dump(diag))
    return sorted(found)


def _dump(diag: socket.socket) -> Iterator[Listener]:
    while True:
        data = diag.recv(_RECEIVE_BYTES)
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, *_ = _HEADER.unpack_from(data, offset)
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                code = -struct.unpack_from("=i", data, offset + _HEADER.size)[0]
                if code == 0 or code == 2:  # ENOENT: this kernel has no such family
                    return
                raise OSError(code, "sock_diag")
            yield parse(data[offset + _HEADER.size : offset + length])
            offset += (length + 3) & ~3


def parse(message: bytes) -> Listener:
    """Read one `struct inet_diag_msg`."""
    family, _, port, source, uid, inode = _ANSWER.unpack(message[:_ANSWER_BYTES])
    packed = source[:4] if family == socket.AF_INET else source
    return Listener(socket.inet_ntop(family, packed), int.from_bytes(port, "big"), uid, inode)


def holders(inodes: Collection[int], proc: Path = Path("/proc")) -> dict[int, Holder]:
    """Find the programs that hold the sockets: one walk, ended early when all are found."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes if inode}
    found: dict[int, Holder] = {}
    # Lowest pid first: of a program and its workers that share a socket, the program.
    for process in sorted((each for each in proc.iterdir() if each.name.isdigit()), key=lambda each: int(each.name)):
        if len(found) == len(wanted):
            break
        # A process may end, or be closed to us, at any moment.
        with contextlib.suppress(OSError):
            for target in _links(process / "fd"):
                inode = wanted.get(target)
                if inode is not None and inode not in found:
                    found[inode] = Holder(int(process.name), (process / "comm").read_text(errors="replace").strip())
    return found


def _links(directory: Path) -> Iterator[str]:
    with os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                yield os.readlink(entry.path)  # noqa: PTH115 - a Path per open file of the host is too slow
