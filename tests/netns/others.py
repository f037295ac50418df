"""Other users of the kernel's rules: real programs in the thread's namespace, or the rules that they have written."""

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fcntl import ioctl
from pathlib import Path
from select import select
from struct import pack
from typing import Final

from netns.conftest import neighbour
from netns.space import Space, new_space, run

CONTAINER: Final = "172.17.0.2"
GUEST: Final = "192.168.122.10"

# What dockerd 20.10.24 has in the kernel after `docker run -p 8088:80 IMAGE`, by iptables-save.
DOCKER: Final = """
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp -m tcp --dport 80 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8088 -j DNAT --to-destination 172.17.0.2:80
COMMIT
"""

# What libvirt's network driver writes for its default network (src/network/network_iptables.c): virbr0, NAT.
LIBVIRT: Final = """
*filter
:LIBVIRT_INP - [0:0]
:LIBVIRT_OUT - [0:0]
:LIBVIRT_FWO - [0:0]
:LIBVIRT_FWI - [0:0]
:LIBVIRT_FWX - [0:0]
-A INPUT -j LIBVIRT_INP
-A OUTPUT -j LIBVIRT_OUT
-A FORWARD -j LIBVIRT_FWX
-A FORWARD -j LIBVIRT_FWI
-A FORWARD -j LIBVIRT_FWO
-A LIBVIRT_INP -i virbr0 -p udp -m udp --dport 53 -j ACCEPT
-A LIBVIRT_INP -i virbr0 -p tcp -m tcp --dport 53 -j ACCEPT
-A LIBVIRT_OUT -o virbr0 -p udp -m udp --dport 68 -j ACCEPT
-A LIBVIRT_FWO -s 192.168.122.0/24 -i virbr0 -j ACCEPT
-A LIBVIRT_FWO -i virbr0 -j REJECT --reject-with icmp-port-unreachable
-A LIBVIRT_FWI -d 192.168.122.0/24 -o virbr0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A LIBVIRT_FWI -o virbr0 -j REJECT --reject-with icmp-port-unreachable
-A LIBVIRT_FWX -i virbr0 -o virbr0 -j ACCEPT
COMMIT
*nat
:LIBVIRT_PRT - [0:0]
-A POSTROUTING -j LIBVIRT_PRT
-A LIBVIRT_PRT -s 192.168.122.0/24 -d 224.0.0.0/24 -j RETURN
-A LIBVIRT_PRT -s 192.168.122.0/24 -d 255.255.255.255/32 -j RETURN
-A LIBVIRT_PRT -s 192.168.122.0/24 ! -d 192.168.122.0/24 -p tcp -j MASQUERADE --to-ports 1024-65535
-A LIBVIRT_PRT -s 192.168.122.0/24 ! -d 192.168.122.0/24 -p udp -j MASQUERADE --to-ports 1024-65535
-A LIBVIRT_PRT -s 192.168.122.0/24 ! -d 192.168.122.0/24 -j MASQUERADE
COMMIT
*mangle
:LIBVIRT_PRT - [0:0]
-A POSTROUTING -j LIBVIRT_PRT
COMMIT
"""

_WITHIN_S: Final = 30.0
_SAVERS: Final = ("iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save")
_BUS: Final = """<busconfig><type>system</type><listen>unix:path={path}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/>
<allow send_destination="*"/><allow receive_sender="*"/></policy></busconfig>"""


def restore(text: str, *, legacy: bool = False) -> None:
    """Add rules as iptables-save tells them."""
    program = f"iptables-{'legacy' if legacy else 'nft'}-restore"
    subprocess.run([program, "--noflush"], input=text, text=True, timeout=30, check=True)


def rules_of_others() -> str:
    """Return everything that is not ours in the kernel's rules, without counters and times."""
    listed = run("nft", "-s", "list", "ruleset")
    listed = re.sub(r"table inet hostmesh \{.*?\n\}\n", "", listed, flags=re.DOTALL)
    return listed + "\n".join(line for saver in _SAVERS for line in _said(saver))


def _said(saver: str) -> Iterator[str]:
    """Yield what iptables-save prints, but for tables that are loaded and empty."""
    table = ""
    for line in run(saver).splitlines():
        if line.startswith("*"):
            table = line
        elif line.startswith((":", "-A")) and "HOSTMESH_" not in line and " ACCEPT [" not in line:
            yield f"{saver} {table} {re.sub(r'.[0-9]+:[0-9]+.$', '', line)}"


@contextmanager
def container() -> Iterator[Space]:
    """A container on Docker's bridge, with 80 published as the host's 8088; bridged packets meet iptables, as with it.

    In a namespace that had no rules the host forwards nothing before.
    """
    run("ip", "link", "add", "docker0", "type", "bridge")
    run("ip", "address", "add", "172.17.0.1/16", "dev", "docker0")
    run("ip", "link", "set", "docker0", "up")
    run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
    with ExitStack() as stack:
        space = stack.enter_context(neighbour("veth7", (None, None), (CONTAINER, None)))
        run("ip", "link", "set", "veth7", "master", "docker0")
        with space():
            run("ip", "route", "add", "default", "via", "172.17.0.1")
        yield space


@contextmanager
def guest() -> Iterator[Space]:
    """A virtual machine behind libvirt's bridge: its network card is a tap whose frames a thread carries."""
    run("ip", "link", "add", "virbr0", "type", "bridge")
    run("ip", "address", "add", "192.168.122.1/24", "dev", "virbr0")
    run("ip", "link", "set", "virbr0", "up")
    run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
    here = _tap("vnet0")
    run("ip", "link", "set", "vnet0", "master", "virbr0", "up")
    with new_space() as space:
        with space():
            there = _tap("eth0")
            run("ip", "address", "add", f"{GUEST}/24", "dev", "eth0")
            run("ip", "link", "set", "eth0", "up")
            run("ip", "route", "add", "default", "via", "192.168.122.1")
        done, wake = os.pipe()
        carrier = threading.Thread(target=_carry, args=(here, there, done))
        carrier.start()
        try:
            yield space
        finally:
            os.close(wake)
            carrier.join(5)
            for each in (here, there, done):
                os.close(each)


def _tap(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    ioctl(descriptor, 0x400454CA, pack("16sH22x", name.encode(), 0x1002))  # TUNSETIFF; IFF_TAP, IFF_NO_PI
    return descriptor


def _carry(here: int, there: int, done: int) -> None:
    while True:
        readable, _, _ = select([here, there, done], [], [])
        if done in readable:
            return
        for each in readable:
            os.write(there if each == here else here, os.read(each, 65535))


@contextmanager
def firewalld(directory: Path) -> Iterator[None]:
    """A running firewalld with its packaged configuration, alone on a bus of its own."""
    shutil.copytree("/etc/firewalld", directory / "etc")
    bus = directory / "bus"
    (directory / "bus.conf").write_text(_BUS.format(path=bus))
    with ExitStack() as stack:
        stack.enter_context(_program("dbus-daemon", f"--config-file={directory}/bus.conf", "--nofork"))
        _until(bus.exists, "the bus")
        stack.enter_context(_environment(DBUS_SYSTEM_BUS_ADDRESS=f"unix:path={bus}"))
        arguments = ("--nofork", "--nopid", f"--system-config={directory}/etc", f"--log-file={directory}/log")
        stack.enter_context(_program("firewalld", *arguments))
        asked = ["firewall-cmd", "--state"]
        _until(lambda: subprocess.run(asked, capture_output=True, check=False).returncode == 0, "firewalld")
        yield


def ufw(directory: Path, *words: str) -> str:
    """Run ufw with a configuration that is in `directory` alone: the machine's own is what it was."""
    own = directory / "ufw"
    if not own.exists():
        shutil.copytree("/etc/ufw", own)
    command = f'mount --bind "{own}" /etc/ufw && exec ufw "$@"'
    return run("unshare", "--mount", "sh", "-c", command, "ufw", *words)


def _until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _WITHIN_S
    while not holds():
        assert time.monotonic() < deadline, f"{what} is not there within {_WITHIN_S} s"
        time.sleep(0.02)


@contextmanager
def _program(*command: str) -> Iterator[None]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


@contextmanager
def _environment(**changes: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
