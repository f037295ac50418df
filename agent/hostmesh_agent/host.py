"""What is true of the host: facts, which change with a reboot or a new address, and load, which changes always."""

import hashlib
import os
import platform
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final

import psutil

from hostmesh_agent import machine, packaged_envoy
from hostmesh_agent.launch import boot_id
from hostmesh_agent.machine_facts import cloud_of, cpu_model, virtualisation
from hostmesh_api.v1.hostmesh_pb2 import Cloud, Disk, HostFacts, HostLoad, Interface
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
    os_id: str
    os_version: str
    virtualisation: str
    cpu_model: str
    cloud: str
    """aws, gcp or azure, as the firmware says; "" elsewhere."""


@dataclass(frozen=True, slots=True)
class Changing:
    """What may change while the host is up."""

    disks: tuple[Disk, ...] = ()
    interfaces: tuple[Interface, ...] = ()
    cloud: Cloud | None = None


def fixed_facts() -> FixedFacts:
    system, traces = machine.os_release(), machine.traces()
    return FixedFacts(
        os=system.get("PRETTY_NAME", "Linux"),
        kernel=platform.release(),
        machine=platform.machine(),
        cpus=cpus(),
        memory_bytes=psutil.virtual_memory().total,
        boot_id=boot_id(),
        agent_version=agent_version(),
        machine_id=machine_id(),
        os_id=system.get("ID", ""),
        os_version=system.get("VERSION_ID", ""),
        virtualisation=virtualisation(traces),
        cpu_model=cpu_model(traces.cpuinfo),
        cloud=cloud_of(traces.dmi),
    )


def facts(
    fixed: FixedFacts,
    envoy_version: str,
    changing: Changing = Changing(),
    labels: Mapping[str, str] | None = None,
) -> HostFacts:
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
        os_id=fixed.os_id,
        os_version=fixed.os_version,
        virtualisation=fixed.virtualisation,
        cpu_model=fixed.cpu_model,
        disks=changing.disks,
        interfaces=changing.interfaces,
        cloud=changing.cloud,
        labels=labels or {},
        envoy_package=packaged_envoy.package_version(),
    )


class Load:
    """Samples the load. Means are since the last sample: 0 at the first."""

    def __init__(self) -> None:
        self._network: tuple[float, int, int] | None = None

    def sample(self, disks: Iterable[Disk] = ()) -> HostLoad:
        one, five, fifteen = os.getloadavg()
        received, sent = self._rates()
        return HostLoad(
            load_1m=one,
            load_5m=five,
            load_15m=fifteen,
            cpu_percent=psutil.cpu_percent(interval=None),
            memory_available_bytes=psutil.virtual_memory().available,
            disk_used_percent=max(map(machine.used_percent, disks), default=0.0),
            received_bytes_per_s=received,
            sent_bytes_per_s=sent,
        )

    def _rates(self) -> tuple[float, float]:
        counters = [each for name, each in psutil.net_io_counters(pernic=True).items() if name != "lo"]
        now = (time.monotonic(), sum(each.bytes_recv for each in counters), sum(each.bytes_sent for each in counters))
        before, self._network = self._network, now
        if before is None or now[0] <= before[0]:
            return 0.0, 0.0
        # An interface that went takes its count with it.
        received, sent = ((now[at] - before[at]) / (now[0] - before[0]) for at in (1, 2))
        return max(0.0, received), max(0.0, sent)


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


def now_s() -> float:
    """Return the seconds since the epoch."""
    return time.time()


def agent_version() -> str:
    try:
        return version("hostmesh")
    except PackageNotFoundError:  # run from a source tree
        return "0"
