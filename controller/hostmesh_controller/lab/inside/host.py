"""A lab host's boot: namespaces, file systems, network, then process number 1 for as long as the host is up.

Its argument is the channel's descriptor; what it must know comes there, from `hostmesh_controller.lab.host`.
"""

import contextlib
import os
import socket
import sys
from pathlib import Path
from typing import Any, Final

from hostmesh_controller.lab.inside import init, kernel
from hostmesh_controller.lab.inside.channel import Channel

_OWN: Final = kernel.NEWNS | kernel.NEWUTS | kernel.NEWIPC | kernel.NEWNET
_SAFE: Final = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
_GRACE_S: Final = 5.0


def main() -> None:
    channel = Channel.inherited(int(sys.argv[1]))
    wish = channel.wish()
    try:
        user = kernel.NEWUSER if wish["user"] else 0
        kernel.setns(wish["world"], user | kernel.NEWNET | kernel.NEWNS | kernel.NEWPID | kernel.NEWUTS | kernel.NEWIPC)
        os.close(wish["world"])
        # setns moves only children into the PID namespace, and only one who is in it may make one below it.
        maker = os.fork()
        if maker == 0:
            os._exit(_make(channel, wish))
        os.waitpid(maker, 0)
    except OSError as error:
        channel.send(error=str(error))


def _make(channel: Channel, wish: dict[str, Any]) -> int:
    """Start the host's process 1 and give it its link, which only one who sees both namespaces can do."""
    try:
        kernel.unshare(kernel.NEWPID)
        to_init, to_maker = socket.socketpair()
        if os.fork() == 0:
            to_init.close()
            _boot(channel, to_maker, wish)
        to_maker.close()
        if to_init.recv(1):
            link = wish["link"]
            # Children of this process are born in the PID namespace it asked for, and there the host's init is 1.
            init.ip_batch(
                [
                    f"link add {link} type veth peer name eth0 address {wish['mac']} netns 1",
                    f"link set {link} master br0 up",
                ]
            )
            to_init.send(b"k")
    except OSError as error:
        channel.send(error=str(error))
        return 1
    return 0


def _boot(channel: Channel, maker: socket.socket, wish: dict[str, Any]) -> None:
    try:
        init.begin()
        kernel.unshare(_OWN)
        socket.sethostname(wish["name"])
        _file_systems(wish)
        for name, value in wish["sysctls"].items():
            init.set_sysctl(name, value)
        maker.send(b"n")
        if not maker.recv(1):
            os._exit(1)
        maker.close()
        init.ip_batch(wish["network"])
    except OSError as error:
        channel.send(error=str(error))
        os._exit(1)
    channel.send(step="ready")
    if channel.wait_for_go():
        channel.close()
        init.serve(_GRACE_S)
    os._exit(0)


def _file_systems(wish: dict[str, Any]) -> None:
    kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_SLAVE)
    # Bound before /run is covered: the program may lie where only root can look (a checkout under /root), or in /run.
    for overlay in wish["overlays"]:
        options = f"lowerdir={overlay['target']},upperdir={overlay['upper']},workdir={overlay['work']}"
        kernel.mount("overlay", overlay["target"], "overlay", data=options + (",userxattr" if wish["user"] else ""))
    envoy = os.open(wish["envoy"], os.O_PATH) if wish["envoy"] else None
    kernel.mount("tmpfs", "/run", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755")
    kernel.mount("tmpfs", "/dev/shm", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=1777")  # noqa: S108 - a mount point
    lock = Path("/run/lock")
    lock.mkdir()
    lock.chmod(0o1777)
    programs = Path(wish["programs"])
    programs.mkdir(parents=True)
    for name, target in wish["links"].items():
        (programs / name).symlink_to(target)
    if envoy is not None:
        (programs / "envoy").touch()
        kernel.mount(f"/proc/self/fd/{envoy}", str(programs / "envoy"), flags=kernel.MS_BIND)
        os.close(envoy)
    kernel.mount("proc", "/proc", "proc", _SAFE)
    # A restart of the host is a boot: programs that compare boot ids must see another one.
    boot_id = Path("/run/hostmesh-lab/boot_id")
    boot_id.write_text(wish["boot_id"] + "\n")
    with contextlib.suppress(OSError):
        kernel.mount(str(boot_id), "/proc/sys/kernel/random/boot_id", flags=kernel.MS_BIND)
    _own_sys()
    for path, uid in wish["homes"].items():
        home = Path(path)
        if not home.exists():
            home.mkdir(mode=0o755)
            os.chown(home, uid, uid)


def _own_sys() -> None:
    """Have /sys show this host's interfaces and the machine's cgroups; where that is refused, /sys stays as it was."""
    stage = Path("/run/hostmesh-lab/sys")
    stage.mkdir()
    with contextlib.suppress(OSError):
        kernel.mount("sysfs", str(stage), "sysfs", _SAFE)
        kernel.mount("/sys/fs/cgroup", str(stage / "fs/cgroup"), flags=kernel.MS_BIND | kernel.MS_REC)
        kernel.mount(str(stage), "/sys", flags=kernel.MS_MOVE)
    with contextlib.suppress(OSError):
        stage.rmdir()
