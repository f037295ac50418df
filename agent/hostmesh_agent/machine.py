"""Reads what the machine is: files of /proc and /sys, file systems, interfaces."""

import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import psutil

from hostmesh_agent.machine_facts import MAX_CHARS, Traces
from hostmesh_api.v1.hostmesh_pb2 import Disk, Interface

MAX_DISKS: Final = 32
MAX_INTERFACES: Final = 32
_MAX_FILE_BYTES: Final = 64 * 1024
_DMI: Final = (
    "sys_vendor",
    "product_name",
    "product_version",
    "board_vendor",
    "bios_vendor",
    "chassis_asset_tag",
)
_IMAGES: Final = frozenset({"squashfs", "iso9660", "erofs"})
"""File systems that are always full: packages and installation media."""


def traces(root: Path = Path("/")) -> Traces:
    """Look at the files below `root`; one that cannot be read says nothing."""
    return Traces(
        dmi={name: _text(root / "sys/class/dmi/id" / name) for name in _DMI},
        cpuinfo=_text(root / "proc/cpuinfo"),
        hypervisor=_text(root / "sys/hypervisor/type"),
        container=_variable(_text(root / "proc/1/environ"), "container") or _text(root / "run/systemd/container"),
        cgroup=_text(root / "proc/1/cgroup"),
        dockerenv=(root / ".dockerenv").exists(),
        containerenv=(root / "run/.containerenv").exists(),
    )


def os_release() -> dict[str, str]:
    """Return os-release(5), empty where there is none."""
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def disks() -> list[Disk]:
    """Return the file systems on devices, each device once, at its shortest mount. Blocks while a disk is slow."""
    found: dict[str, Disk] = {}
    for each in sorted(psutil.disk_partitions(all=False), key=lambda each: (len(each.mountpoint), each.mountpoint)):
        if each.device in found or each.fstype in _IMAGES:
            continue
        with suppress(OSError):
            size = os.statvfs(each.mountpoint)
            if size.f_blocks:
                found[each.device] = Disk(
                    mount=_told(each.mountpoint),
                    device=_told(each.device),
                    filesystem=_told(each.fstype),
                    size_bytes=size.f_blocks * size.f_frsize,
                    free_bytes=size.f_bavail * size.f_frsize,
                )
    return sorted(found.values(), key=lambda each: each.mount)[:MAX_DISKS]


def interfaces(root: Path = Path("/")) -> list[Interface]:
    """Return the network interfaces but loopback: those with addresses first, as containers bring dozens of others."""
    stats = psutil.net_if_stats()
    found = []
    for name, each in psutil.net_if_addrs().items():
        if name == "lo":
            continue
        macs = [one.address for one in each if one.family == psutil.AF_LINK]
        found.append(
            Interface(
                name=name,
                mac=macs[0] if macs else "",
                mtu=stats[name].mtu if name in stats else 0,
                state=_text(root / "sys/class/net" / name / "operstate") or "unknown",
                addresses=sorted(_addresses(each)),
            )
        )
    found.sort(key=lambda each: (not each.addresses, each.name))
    return found[:MAX_INTERFACES]


def used_percent(disk: Disk) -> float:
    return 100.0 * (1 - disk.free_bytes / disk.size_bytes) if disk.size_bytes else 0.0


def _addresses(found: Iterable[Any]) -> list[str]:
    """Return the IP addresses among psutil's with the lengths of their prefixes; what is another kind is left out."""
    result = []
    for each in found:
        with suppress(ValueError):
            address = ip_address(each.address.partition("%")[0])
            length = int(ip_address(each.netmask)).bit_count() if each.netmask else address.max_prefixlen
            result.append(f"{address}/{length}")
    return result


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE_BYTES).decode(errors="replace").strip()
    except OSError:
        return ""


def _variable(environment: str, name: str) -> str:
    prefix = f"{name}="
    return next((each.removeprefix(prefix) for each in environment.split("\0") if each.startswith(prefix)), "")


def _told(text: str) -> str:
    return text.encode(errors="replace").decode(errors="replace")[:MAX_CHARS]
