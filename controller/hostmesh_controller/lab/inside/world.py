"""The holder of a lab's namespaces: makes them, builds the bridge, and keeps them until it ends.

Its argument is the channel's descriptor; what it must know comes there: user (make a user namespace), sysctls,
bridge (iproute2 lines).
"""

import os
import sys
from typing import Any

from hostmesh_controller.lab.inside import init, kernel
from hostmesh_controller.lab.inside.channel import Channel

_SPACES = kernel.NEWNS | kernel.NEWUTS | kernel.NEWIPC | kernel.NEWNET | kernel.NEWPID


def main() -> None:
    channel = Channel.inherited(int(sys.argv[1]))
    wish = channel.wish()
    try:
        if wish["user"]:
            kernel.unshare(kernel.NEWUSER)
            channel.send(step="user namespace")
            if not channel.wait_for_go():
                return
            os.setgid(0)
            os.setuid(0)
        kernel.unshare(_SPACES)
        if os.fork() == 0:
            _hold(channel, wish)
    except OSError as error:
        channel.send(error=str(error))


def _hold(channel: Channel, wish: dict[str, Any]) -> None:
    try:
        init.begin()
        kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_SLAVE)
        kernel.mount("proc", "/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
        for name, value in wish["sysctls"].items():
            init.set_sysctl(name, value)
        init.ip_batch(wish["bridge"])
    except OSError as error:
        channel.send(error=str(error))
        os._exit(1)
    channel.send(step="ready")
    # Nobody has written down this process before it is told to go on: without that word it must not stay.
    if channel.wait_for_go():
        channel.close()
        init.serve(grace_s=0)
    os._exit(0)
