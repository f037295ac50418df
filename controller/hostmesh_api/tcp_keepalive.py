"""Heartbeats by the kernel: TCP keepalive on sockets of gRPC's, which costs this process nothing.

gRPC has no option for it, and pings of its own cost CPU on both sides.
"""

import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """After `idle_s` of silence the kernel asks, each `again_s`, and ends what gave no sign of life for `give_up_ms`.

    It ends it whether there is something to send or not (tcp(7), TCP_USER_TIMEOUT).
    """

    idle_s: int
    again_s: int
    give_up_ms: int


def watch(wanted: Callable[[socket.socket], bool], heartbeat: Heartbeat) -> int:
    """Let the kernel watch those TCP sockets of this process that are `wanted`; return how many.

    A socket that `wanted` cannot look at (OSError) is none of them. What a listening socket accepts is watched, too.
    """
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError, ValueError):
            count += _watch(int(entry.name), wanted, heartbeat)
    return count


def _watch(descriptor: int, wanted: Callable[[socket.socket], bool], heartbeat: Heartbeat) -> bool:
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return False
    # A copy, so that closing it here leaves gRPC's alone.
    with socket.socket(fileno=os.dup(descriptor)) as found:
        if found.family not in {socket.AF_INET, socket.AF_INET6} or found.type != socket.SOCK_STREAM:
            return False
        if not wanted(found):
            return False
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, heartbeat.idle_s)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, heartbeat.again_s)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, heartbeat.give_up_ms)
    return True
