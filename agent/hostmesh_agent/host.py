"""What is true of the host: facts, which change with a reboot or a new address, and load, which changes always."""

import hashlib
import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final

import psutil

from hostmesh_agent.launch import boot_id
from hostmesh_api.v1.hostmesh_pb2 import HostFacts, HostLoad
from hostmesh_api.wire import VIP4, VIP6

_MAX_ADDRESSES: Final = 64
MACHINE_IDS: Final = (Path("/etc/machine-id"), Path("/sys/class/dmi/id/product_uuid"))


@dataclass(frozen=True, slots=True)
class FixedFacts:
    """What does not change while the host is up."""

    os: str
    kernel: str
    machine: str
    cpus: int
    memory_bytes: int
    boot_id: str
    agent_version: str
    machine_id: str


def fixed_facts() -> FixedFacts:
    return FixedFacts(
        os=_os_name(),
        kernel=platform.release(),
        machine=platform.machine(),
        cpus=cpus(),
        memory_bytes=psutil.virtual_memory().total,
        boot_id=boot_id(),
        agent_version=agent_version(),
        machine_id=machine_id(),
    )


def facts(fixed: FixedFacts, envoy_version: str) -> HostFacts:
    return HostFacts(
        hostname=platform.node(),
        os=fixed.os,
        kernel=fixed.kernel,
        machine=fixed.machine,
        cpus=fixed.cpus,
        memory_bytes=fixed.memory_bytes,
        addresses=addresses(),
        agent_version=fixed.agent_version,
        envoy_version=envoy_version,
        boot_id=fixed.boot_id,
    )


def load() -> HostLoad:
    """Sample the load; `cpu_percent` is the mean since the last call (0 at the first)."""
    return HostLoad(
        load_1m=os.getloadavg()[0],
        cpu_percent=psutil.cpu_percent(interval=None),
        memory_available_bytes=psutil.virtual_memory().available,
    )


def cpus() -> int:
    """Cores this process may run on: a container or a cpuset may have fewer than the machine."""
    return len(os.sched_getaffinity(0))


def addresses() -> list[str]:
    """Addresses under which others may reach the host: neither loopback nor link-local nor the mesh's virtual ones."""
    found: set[IPv4Address | IPv6Address] = set()
    for interface in psutil.net_if_addrs().values():
        for each in interface:
            if each.family in (psutil.AF_LINK, None):
                continue
            try:
                found.add(ip_address(each.address.partition("%")[0]))
            except ValueError:
                continue
    useful = [each for each in found if not (each.is_loopback or each.is_link_local or each.is_unspecified)]
    mesh_free = [each for each in useful if each not in VIP4 and each not in VIP6]
    return [str(each) for each in sorted(mesh_free, key=lambda each: (each.version, int(each)))][:_MAX_ADDRESSES]


def machine_id(places: Iterable[Path] = MACHINE_IDS) -> str:
    """Return a hash of what tells this machine from others, "" where nothing does.

    The ids themselves are secrets of the machine to some (machine-id(5)); a hypervisor gives a copy of a disk another
    one than the original.
    """
    found = []
    for place in places:
        with suppress(OSError):
            found.append(place.read_bytes().strip())
    return hashlib.sha256(b"hostmesh\0" + b"\0".join(found)).hexdigest()[:16] if any(found) else ""


def agent_version() -> str:
    try:
        return version("hostmesh")
    except PackageNotFoundError:  # run from a source tree
        return "0"


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"
