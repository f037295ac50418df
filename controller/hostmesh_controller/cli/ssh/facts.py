"""What is asked of a host before anything is done to it, and whether it is fit. Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from hostmesh_controller.cli.ssh.packages import manager_of
from hostmesh_controller.cli.ssh.steps import StepError

NEEDED_MIB: Final = 400
"""What the packages take installed (about 250 MiB with Envoy), as they are unpacked beside their archives."""
MACHINES: Final = frozenset({"x86_64"})
ASK: Final = """
. /etc/os-release 2>/dev/null
echo "os=${PRETTY_NAME:-unknown}"
echo "machine=$(uname -m)"
echo "uid=$(id -u)"
echo "free_kib=$(df -Pk /usr /var /etc 2>/dev/null | awk 'NR > 1 {print $4}' | sort -n | head -n 1)"
[ -d /run/systemd/system ] && echo systemd=yes
PATH=$PATH:/usr/sbin:/sbin
if command -v apt-get >/dev/null 2>&1; then echo manager=apt
elif command -v dnf >/dev/null 2>&1; then echo manager=dnf; fi
exit 0
"""
ASK_AS_ROOT: Final = """
echo "record=$(tr -d '\\n' 2>/dev/null </var/lib/hostmesh/host.json)"
echo "uid=$(id -u)"
"""


@dataclass(frozen=True, slots=True)
class Facts:
    os: str
    machine: str
    uid: int
    free_mib: int
    systemd: bool
    manager: str


def read_facts(text: str) -> Facts:
    """Read what ASK printed."""
    found = dict(line.partition("=")[::2] for line in text.splitlines())
    free = found.get("free_kib", "")
    return Facts(
        os=found.get("os", "unknown"),
        machine=found.get("machine", "unknown"),
        uid=int(found["uid"]) if found.get("uid", "").isdigit() else -1,
        free_mib=int(free) // 1024 if free.isdigit() else 0,
        systemd=found.get("systemd") == "yes",
        manager=found.get("manager", ""),
    )


def check(facts: Facts, *, sudo: bool, installed: bool) -> None:
    """Say why a host is not fit.

    Raises:
        StepError: it is not.
    """
    if facts.uid != 0 and not sudo:
        raise StepError("this user is not root", "give --sudo, or come as root")
    if facts.machine not in MACHINES:
        raise StepError(f"there are no packages for {facts.machine}", f"hosts are {', '.join(sorted(MACHINES))}")
    if not facts.systemd:
        raise StepError(f"{facts.os} does not run systemd", "join such hosts by hand: hostmesh-agent join, run")
    if manager_of(facts.manager) is None:
        raise StepError(f"{facts.os} has neither apt nor dnf", "install by hand, then: hostmesh-agent join")
    if not installed and facts.free_mib < NEEDED_MIB:
        raise StepError(f"{facts.free_mib} MiB are free, {NEEDED_MIB} MiB are needed", "make room in /usr and /var")


def joined_as(text: str) -> str | None:
    """Read what ASK_AS_ROOT printed: the name as which this host has joined, None for none, "" if it is damaged."""
    found = dict(line.partition("=")[::2] for line in text.splitlines())
    if not (record := found.get("record", "").strip()):
        return None
    try:
        read = json.loads(record)
    except ValueError:
        return ""
    name = read.get("host") if isinstance(read, Mapping) else None
    return name if isinstance(name, str) else ""
