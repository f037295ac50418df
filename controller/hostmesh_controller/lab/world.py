"""The world of a lab: made by `create`, found by `space_of`, ended by `destroy`."""

import json
import os
import secrets
import signal
import socket
import subprocess
from pathlib import Path
from typing import Final

from hostmesh_controller.lab import cgroups
from hostmesh_controller.lab import layout as disk
from hostmesh_controller.lab.errors import LabError
from hostmesh_controller.lab.layout import LabFacts, Layout
from hostmesh_controller.lab.process import alive, end
from hostmesh_controller.lab.space import Space
from hostmesh_controller.lab.spawn import start_init, subordinate_ids
from hostmesh_controller.lab.subnet import GATEWAY, SHELL, Subnet, free_numbers

SYSCTLS: Final = {
    # Addresses that nobody has are refused at once, as a router would, and as often as they are asked for.
    "net.ipv4.ip_forward": "1",
    "net.ipv6.conf.all.forwarding": "1",
    "net.ipv4.icmp_ratelimit": "0",
    "net.ipv6.icmp.ratelimit": "0",
    "net.ipv6.conf.all.accept_dad": "0",
    "net.ipv6.conf.default.accept_dad": "0",
}
_END_S: Final = 15.0
_NO_USER_NAMESPACE: Final = """\
a lab of an ordinary user needs user namespaces, and this machine refuses them: {0}
cure, as root, whichever of these exists here:
    sysctl kernel.unprivileged_userns_clone=1
    sysctl kernel.apparmor_restrict_unprivileged_userns=0
    sysctl user.max_user_namespaces=15000
or run the lab as root"""


def create(layout: Layout, made: tuple[str, ...]) -> LabFacts:
    """Make the lab's world; the caller holds the lab's lock, and must `destroy` when this fails.

    Raises:
        LabError: the addresses or the namespaces cannot be had.
    """
    user = os.getuid() != 0
    if user:
        # Before anything is made: the message about what is missing is all that such a user should get.
        for file in ("/etc/subuid", "/etc/subgid"):
            subordinate_ids(Path(file))
    net, claim = _claim_subnet()
    with claim:
        facts = LabFacts(secrets.token_hex(4), net.number, user, Path("/proc/sys/net/ipv6").exists(), made)
        disk.write_lab(layout, facts)
        _start(layout, facts, claim)
    return facts


def _claim_subnet() -> tuple[Subnet, socket.socket]:
    """Take the first free number; the claim is an abstract socket, which the kernel forgets with its last holder."""
    for number in free_numbers(_routes()):
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            claim.bind(f"\0hostmesh-lab/{Subnet(number).v4}")
        except OSError:
            claim.close()
        else:
            return Subnet(number), claim
    raise LabError("no network 10.201.N.0/24 is free: look at `ip route` and at other labs")


def _routes() -> list[str]:
    found = []
    for family in ("-4", "-6"):
        done = subprocess.run(["ip", family, "-j", "route", "show", "table", "all"], capture_output=True, check=False)
        entries = json.loads(done.stdout or b"[]") if done.returncode == 0 else []
        found += [entry["dst"] for entry in entries if entry.get("dst", "default") != "default"]
    return found


def _start(layout: Layout, facts: LabFacts, claim: socket.socket) -> None:
    wish = {"user": facts.user, "sysctls": SYSCTLS, "bridge": _bridge(facts)}
    try:
        # The world inherits the claim and keeps it as long as it lives.
        started = start_init("world", wish, f"lab {layout.root}", layout.world_log, pass_fds=(claim.fileno(),))
    except LabError as error:
        # Where only their use is restricted (AppArmor), the namespace is made and the first mount refused.
        if facts.user and ("unshare(" in str(error) or "mount" in str(error)):
            raise LabError(_NO_USER_NAMESPACE.format(error)) from None
        raise
    disk.write_process(layout.world, started.record)
    started.stay()
    if not facts.user:
        _ip(_shell_link(facts, started.record.pid))
        joined = space_of(layout, facts).run(["ip", "link", "set", "shell", "master", "br0", "up"])
        if joined.returncode != 0:
            raise LabError(f"the lab's bridge: {joined.stderr.strip()}")


def _bridge(facts: LabFacts) -> list[str]:
    net = facts.net
    lines = [
        "link set lo up",
        # Without a fixed address the bridge takes that of whichever port comes and goes.
        f"link add br0 address {net.mac(GATEWAY)} type bridge forward_delay 0 mcast_snooping 0",
        f"addr add {net.address(GATEWAY)}/24 dev br0",
    ]
    if facts.ipv6:
        lines.append(f"addr add {net.address6(GATEWAY)}/64 dev br0 nodad")
    return [*lines, "link set br0 up", "route add unreachable default metric 4096"]


def _shell_link(facts: LabFacts, world_pid: int) -> list[str]:
    """The one thing in root's own network: a leg in the lab's bridge. It goes when the world goes."""
    link, net = facts.shell_link, facts.net
    lines = [
        f"link add {link} type veth peer name shell netns {world_pid}",
        f"link set {link} alias hostmesh-lab",
        f"addr add {net.address(SHELL)}/24 dev {link}",
    ]
    if facts.ipv6:
        lines.append(f"addr add {net.address6(SHELL)}/64 dev {link} nodad")
    return [*lines, f"link set {link} up"]


def _ip(lines: list[str]) -> None:
    done = subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, capture_output=True, check=False)
    if done.returncode != 0:
        raise LabError(f"ip: {done.stderr.strip()}")


def space_of(layout: Layout, facts: LabFacts) -> Space:
    return Space("the lab's world", disk.read_process(layout.world), facts.user)


def lab_of(layout: Layout) -> LabFacts:
    """The facts of a lab that runs.

    Raises:
        LabError: there is none, or its world has ended.
    """
    facts = disk.read_lab(layout)
    if facts is None:
        raise LabError(f"there is no lab in {layout.root}; start one: hostmesh lab up HOST…")
    if not alive(disk.read_process(layout.world)):
        raise LabError(f"the lab in {layout.root} has ended without `down`; clear it: hostmesh lab down")
    return facts


def destroy(layout: Layout) -> bool:
    """Leave nothing of the lab, whatever state it is in; False when there was none.

    Raises:
        LabError: something could not be removed.
    """
    facts = disk.read_lab(layout)
    if facts is None:
        return False
    # The kernel ends every process of the world's PID namespace with it, and the networks with the processes.
    end(disk.read_process(layout.world), signal.SIGKILL, _END_S)
    if not facts.user:
        subprocess.run(["ip", "link", "delete", facts.shell_link], capture_output=True, check=False)
        cgroups.remove_empty()
    _remove_files(layout, facts)
    return True


def _remove_files(layout: Layout, facts: LabFacts) -> None:
    # The facts go last: a removal that was interrupted is still known for a lab, and can be taken up again.
    content = [str(entry) for entry in layout.root.iterdir() if entry != layout.facts]
    remove = ["rm", "-rf", "--one-file-system", "--", *content]
    if facts.user:
        # Files of the hosts' own users belong to subordinate ids, over which the user has power only in a namespace.
        remove = ["unshare", "--user", "--map-auto", "--map-root-user", "--", *remove]
    done = subprocess.run(remove, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"cannot remove the lab's files: {done.stderr.strip()}")
    layout.facts.unlink(missing_ok=True)
    disk.remove_directories(facts.made)
