"""Who is at the other end of a unix socket: what the kernel attests, and nothing that the other end says."""

import os
import select
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

from hostmesh_agent.entitlements import Caller, unit_of

_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_SO_PEERPIDFD: Final = 77  # asm-generic/socket.h, Linux 6.5; Python does not name it


def uid_of(connection: socket.socket) -> int:
    """Return the user of the process that connected."""
    return int(_credentials(connection)[1])


def caller_of(connection: socket.socket, proc: Path = Path("/proc")) -> Caller:
    """Return who connected. The unit is "" where there is none, or where the kernel cannot tell it for sure.

    A process id may be another process by the time it is looked at. A descriptor of the process from the socket itself
    (Linux 6.5) shows that it was not: the process lives after its cgroup was read.
    """
    pid, uid, _ = _credentials(connection)
    try:
        descriptor = int(connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD))
    except OSError:
        return Caller(uid, pid, "")
    try:
        unit = ""
        with suppress(OSError, UnicodeDecodeError):
            unit = unit_of((proc / str(pid) / "cgroup").read_text(encoding="utf-8"))
        return Caller(uid, pid, unit if _lives(descriptor) else "")
    finally:
        os.close(descriptor)


def _lives(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return not poll.poll(0)


def _credentials(connection: socket.socket) -> tuple[int, int, int]:
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(packed)
    return pid, uid, gid
