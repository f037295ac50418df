"""What the host itself insists on: where its SSH servers listen, whether it has IPv6, what its owner excludes.

SSH ports are looked for in three places, since each alone misses one: the sockets of running servers and sessions
(misses a server that is down), sshd's own account of its configuration (misses other servers), and systemd's socket
units (there the listening socket belongs to systemd). A port too many costs a port that is not captured; a port too
few costs the way into the host.
"""

import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import psutil

from hostmesh_agent import rights
from hostmesh_agent.capture import kernel
from hostmesh_agent.capture.plan import SSH_PORT, HostFloor, Scope
from hostmesh_agent.capture.who import Match
from hostmesh_agent.config import CaptureSettings

_SERVERS: Final = ("sshd", "dropbear")  # also sshd-session and sshd-auth of OpenSSH 9.8 and later
_SOCKET_UNITS: Final = ("ssh.socket", "sshd.socket", "dropbear.socket")
_COMMAND_WITHIN_S: Final = 5.0
_IPV6_SWITCHES: Final = ("all", "lo")


def look(
    envoy_uid: int, controller: frozenset[tuple[str, int]], settings: CaptureSettings, *, mtls_only: bool = False
) -> HostFloor:
    """Return the host's floor as it is now. Blocks: programs are asked.

    Args:
        envoy_uid: as whom Envoy runs.
        controller: addresses and ports of the controllers (see `controller_addresses`).
        settings: what the owner of the host does not want captured.
        mtls_only: the owner lets nobody in without mutual TLS.
    """
    servers = ssh_servers()
    return HostFloor(
        envoy_uid=envoy_uid,
        ssh_ports=servers | {SSH_PORT},
        ssh_servers=servers,
        never_inbound_ports=frozenset(settings.exclude_inbound_ports),
        controller=controller,
        ipv6=ipv6_enabled(),
        mtls_only=mtls_only,
        never_outbound=never_outbound(settings),
        never_interfaces=frozenset(settings.exclude_interfaces),
        max_scope=Scope(settings.max_scope),
        backend=kernel.backend(settings.backend),
    )


def never_outbound(settings: CaptureSettings) -> tuple[Match, ...]:
    """Return what the owner excludes: each of the lists by itself."""
    found = (
        Match(ports=frozenset(settings.exclude_outbound_ports)),
        Match(cidrs=frozenset(settings.exclude_outbound_cidrs)),
        Match(users=frozenset(settings.exclude_users)),
        Match(units=frozenset(settings.exclude_units)),
    )
    return tuple(each for each in found if each != Match())


def ssh_ports() -> frozenset[int]:
    """Return every TCP port where an SSH server of this host listens or may listen; 22 is always among them.

    Sources that are not there (no sshd, no systemd, sockets of others not visible) add nothing.
    """
    return ssh_servers() | {SSH_PORT}


def ssh_servers() -> frozenset[int]:
    """Return every TCP port where an SSH server of this host is known to listen, or will when it runs.

    Raises:
        RightsError: we are not root, and the privileged part does not tell: nothing must be captured then.
    """
    return rights.here().ssh_servers(lambda: _of_processes() | _of_sshd() | _of_systemd())


def ipv6_enabled(proc: Path = Path("/proc")) -> bool:
    """Return whether the kernel has IPv6 and has it on for the loopback interface, where redirected traffic goes."""
    switches = [proc / "sys/net/ipv6/conf" / name / "disable_ipv6" for name in _IPV6_SWITCHES]
    try:
        return all(switch.read_text().strip() == "0" for switch in switches)
    except FileNotFoundError:
        return False


def ports_of_sshd_config(text: str) -> frozenset[int]:
    """Return the ports in what `sshd -T` prints: its `port` and `listenaddress` lines."""
    found = re.findall(r"^(?:port\s+|listenaddress\s.*:)(\d+)\s*$", text, re.MULTILINE | re.IGNORECASE)
    return _ports(found)


def ports_of_socket_units(text: str) -> frozenset[int]:
    """Return the ports in what `systemctl show -p Listen` prints ("Listen=[::]:22 (Stream)")."""
    return _ports(re.findall(r"^Listen=(?:.*:)?(\d+) \(Stream\)", text, re.MULTILINE))


def _ports(numbers: Iterable[str]) -> frozenset[int]:
    return frozenset(port for port in map(int, numbers) if 0 < port <= 65535)


def _of_processes() -> frozenset[int]:
    servers = {each.pid for each in psutil.process_iter(["name", "uids"]) if _is_server(each.info)}
    if not servers:
        return frozenset()
    try:
        bound = [(each, each.laddr) for each in psutil.net_connections("tcp") if each.laddr]
    except psutil.AccessDenied:
        return frozenset()
    # Listeners on loopback are sessions' forwarded ports. A session's own port counts where it is a listening one:
    # so the servers that got their socket from systemd are found too.
    listening = {
        local.port for each, local in bound if each.status == psutil.CONN_LISTEN and not _is_loopback(local.ip)
    }
    return frozenset(local.port for each, local in bound if each.pid in servers and local.port in listening)


def _is_server(process: Mapping[str, Any]) -> bool:
    """Tell whether a process is an SSH server of root's: any program may call itself so, to get out of capture."""
    name, users = process["name"] or "", process["uids"]
    return name.startswith(_SERVERS) and users is not None and users.effective == 0


def _is_loopback(text: str) -> bool:
    return ip_address(text.partition("%")[0]).is_loopback


def _of_sshd() -> frozenset[int]:
    sshd = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin:/usr/bin")
    return ports_of_sshd_config(_output([sshd, "-T"])) if sshd else frozenset()


def _of_systemd() -> frozenset[int]:
    if not Path("/run/systemd/system").exists():
        return frozenset()
    return ports_of_socket_units(_output(["systemctl", "show", "-p", "Listen", *_SOCKET_UNITS]))


def _output(command: list[str]) -> str:
    """Return what the command prints; "" if it cannot be run or fails, as on a host without it."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_WITHIN_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
