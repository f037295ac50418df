"""Whether programs of this host can see the address of who calls, and which Envoy may use its clients' addresses.

What is true of an Envoy is asked of the kernel: the right comes with the start and goes with the end. From it follows
what that Envoy is told (`without_clients`) and that the rules for it are there: neither without the other.
"""

import os
from pathlib import Path
from typing import Final

from hostmesh_agent import launch, process, rights
from hostmesh_agent.capture import nft, routes, transparent
from hostmesh_agent.config import CaptureSettings

_RAW_MAY_MARK: Final = (5, 17)
"""From which Linux on CAP_NET_RAW is enough to mark packets. Before, and there alone, Envoy gets CAP_NET_ADMIN."""
_NAMES: Final = {launch.NET_RAW: "CAP_NET_RAW", launch.NET_ADMIN: "CAP_NET_ADMIN"}


def right(release: str = "") -> int:
    """Return which capability lets Envoy use its clients' addresses, on this kernel or one of another release."""
    numbers = (release or os.uname().release).split("-")[0].split(".")[:2]
    try:
        found = tuple(int(each) for each in numbers)
    except ValueError:
        return launch.NET_ADMIN
    return launch.NET_RAW if found >= _RAW_MAY_MARK else launch.NET_ADMIN


def why_not(settings: CaptureSettings) -> str:
    """Return why programs of this host cannot see the address of who calls; "" if they can. Blocks for milliseconds."""
    if not settings.tproxy:
        return "the host's own configuration refuses it (capture.tproxy)"
    # Without root it is Envoy's unit that has it.
    if right() != launch.NET_RAW if rights.here().helped else not launch.permitted() & 1 << right():
        return f"the agent has no {_NAMES[right()]} to give to Envoy"
    if not nft.knows(*transparent.chains()):
        return "the kernel's nf_tables lacks a part of it (zones of connection tracking, chains of type route)"
    if not routes.knows_marks():
        return "the kernel has no routing rules (CONFIG_IP_MULTIPLE_TABLES)"
    return ""


def may_use(directory: Path, proc: Path = Path("/proc")) -> bool:
    """Tell whether the Envoy of a directory runs and may use its clients' addresses."""
    record = process.read_record(directory)
    if record is None or not record.runs():
        return False
    try:
        status = (proc / str(record.pid) / "status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    effective = next((line for line in status.splitlines() if line.startswith("CapEff:")), "CapEff: 0")
    return bool(int(effective.split()[1], 16) & 1 << right())
