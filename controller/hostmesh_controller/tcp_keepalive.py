"""Heartbeats of agents, by the kernel: at the same rate gRPC's pings cost more than all else of an idle controller.

A socket that is accepted has the options of the one that listens, which is gRPC's, in this process.
"""

import socket
from typing import Final

from hostmesh_api.tcp_keepalive import Heartbeat, watch

GIVE_UP_MS: Final = 7_000
"""After so long without a sign of life the kernel ends a connection. Three more questions in between may be lost."""
HEARTBEAT: Final = Heartbeat(idle_s=3, again_s=1, give_up_ms=GIVE_UP_MS)
"""With 1,000 hosts that are quiet it is 333 packets a second."""


def keep_alive(port: int) -> int:
    """Let connections that will be accepted on a port of this process be watched; return on how many sockets."""

    def listens(found: socket.socket) -> bool:
        return bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)) and found.getsockname()[1] == port

    return watch(listens, HEARTBEAT)
