"""Heartbeats by the kernel: TCP keepalive on the connections of agents, which costs this process nothing.

gRPC has no option for it, and pings of its own cost CPU on both sides: at the same rate more than all else that an idle
controller does. A socket that is accepted has the options of the one that listens, which is gRPC's, in this process.
"""

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

IDLE_S: Final = 3
AGAIN_S: Final = 1
GIVE_UP_MS: Final = 7_000
"""After so long without a sign of life the kernel ends a connection, be there something to send or not.

Three more questions in between may be lost. With 1,000 hosts that are quiet it is 333 packets a second.
"""


def keep_alive(port: int) -> int:
    """Let connections that will be accepted on a port of this process be watched; return on how many sockets."""
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError, ValueError):
            count += _keep_alive(int(entry.name), port)
    return count


def _keep_alive(descriptor: int, port: int) -> bool:
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return False
    # A copy, so that closing it here leaves gRPC's alone.
    with socket.socket(fileno=os.dup(descriptor)) as found:
        if found.family not in {socket.AF_INET, socket.AF_INET6} or found.type != socket.SOCK_STREAM:
            return False
        if not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) or found.getsockname()[1] != port:
            return False
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_S)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, AGAIN_S)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GIVE_UP_MS)
    return True
