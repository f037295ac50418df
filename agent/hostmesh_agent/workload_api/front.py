"""The socket that programs call: it learns from the kernel who they are, and splices their bytes to gRPC's socket.

Every connection to gRPC comes from an address of its own, by which `caller` finds who is behind it.
"""

import asyncio
import os
import socket
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import structlog

from hostmesh_agent.entitlements import Caller
from hostmesh_agent.peer import caller_of

MAX_OF_ONE_USER: Final = 32
MAX_CONNECTIONS: Final = 256
"""A program needs one. No user of the host may use up the agent's descriptors, nor keep the others out."""
_BACKLOG: Final = 64
_CHUNK_BYTES: Final = 16 << 10
_MODE: Final = 0o666
_SERVER: Final = "server.sock"

log = structlog.get_logger(__name__)


class Front:
    """Listens on `path`; `directory` is for the sockets behind it."""

    def __init__(self, path: Path, directory: Path) -> None:
        self._path = path
        self._directory = directory
        self._callers: dict[str, Caller] = {}
        self._numbers = 0

    @property
    def server(self) -> Path:
        """Where gRPC listens."""
        return self._directory / _SERVER

    def prepare(self) -> None:
        """Make the directory, closed to others, with nothing of an earlier life in it."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchown(descriptor, os.geteuid(), os.getegid())
            os.fchmod(descriptor, 0o700)
            with os.scandir(descriptor) as left:
                for each in left:
                    os.unlink(each.name, dir_fd=descriptor)
        finally:
            os.close(descriptor)

    def caller(self, peer: str) -> Caller | None:
        """Return who is behind a connection, which gRPC names as `unix:` with the path that it came from."""
        return self._callers.get(unquote(peer).rpartition("/")[2])

    async def run(self) -> None:
        """Take connections until cancelled."""
        listener = _listen(self._path)
        server = await asyncio.start_unix_server(self._connected, sock=listener, limit=_CHUNK_BYTES)
        try:
            async with server:
                await server.serve_forever()
        finally:
            self._path.unlink(missing_ok=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = ""
        try:
            caller = await asyncio.to_thread(caller_of, writer.get_extra_info("socket"))
            if self._is_full(caller.uid):
                log.warning("workload api: too many connections", caller=str(caller))
                return
            self._numbers += 1
            name = f"c{self._numbers}"
            self._callers[name] = caller
            inner_reader, inner_writer = await self._dial(name)
            try:
                await _splice((reader, inner_writer), (inner_reader, writer))
            finally:
                inner_writer.transport.abort()
        except OSError as error:
            log.warning("workload api: connection failed", error=str(error))
        finally:
            self._callers.pop(name, None)
            writer.transport.abort()

    def _is_full(self, uid: int) -> bool:
        counts = Counter(each.uid for each in self._callers.values())
        return counts[uid] >= MAX_OF_ONE_USER or counts.total() >= MAX_CONNECTIONS

    async def _dial(self, name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to gRPC's socket from the address `name`."""
        dialled = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        path = self._directory / name
        try:
            dialled.bind(str(path))
            await asyncio.get_running_loop().sock_connect(dialled, str(self.server))
            return await asyncio.open_unix_connection(sock=dialled, limit=_CHUNK_BYTES)
        except BaseException:
            dialled.close()
            raise
        finally:
            path.unlink(missing_ok=True)


async def _splice(*ways: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    """Pass bytes on both ways until one of them ends."""
    tasks = [asyncio.ensure_future(_pass_on(reader, writer)) for reader, writer in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while chunk := await reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()


def _listen(path: Path) -> socket.socket:
    """Bind the socket that every user may call: who gets what is decided by who calls."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(_MODE)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
