"""What files say of the machine: system, processor, virtualisation, cloud. Pure: texts in, words out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_CLOUD_OF_VENDOR: Final = {"Amazon EC2": "aws", "Google": "gcp"}
AZURE_TAG: Final = "7783-7084-3265-9085-8269-3286-77"
"""The chassis of every machine of Azure's, and of no other Hyper-V."""
# What DMI says, as in systemd-detect-virt (src/basic/virt.c).
_HYPERVISORS: Final = (
    ("KVM", "kvm"),
    ("OpenStack", "kvm"),
    ("KubeVirt", "kvm"),
    ("Amazon EC2", "amazon"),
    ("QEMU", "qemu"),
    ("VMware", "vmware"),
    ("VMW", "vmware"),
    ("innotek GmbH", "oracle"),
    ("VirtualBox", "oracle"),
    ("Oracle Corporation", "oracle"),
    ("Xen", "xen"),
    ("Bochs", "bochs"),
    ("Parallels", "parallels"),
    ("BHYVE", "bhyve"),
    ("Hyper-V", "microsoft"),
    ("Virtual Machine", "microsoft"),
    ("Apple Virtualization", "apple"),
    ("Google Compute Engine", "google"),
)
_MODELS: Final = ("model name", "Model", "cpu model", "Processor", "uarch")
MAX_CHARS: Final = 256


@dataclass(frozen=True, slots=True)
class Traces:
    """What is looked at for virtualisation. Each is "" or False where there is none.

    `dmi` holds files of /sys/class/dmi/id by name; `hypervisor` is /sys/hypervisor/type; `container` the variable of
    that name of process 1; `cgroup` that of process 1. `dockerenv` and `containerenv` tell whether the files are there.
    """

    dmi: Mapping[str, str]
    cpuinfo: str = ""
    hypervisor: str = ""
    container: str = ""
    cgroup: str = ""
    dockerenv: bool = False
    containerenv: bool = False


def virtualisation(traces: Traces) -> str:
    """Return what the machine runs in, the innermost first; "none" for bare metal."""
    return _container(traces) or _machine(traces) or "none"


def _container(traces: Traces) -> str:
    if traces.container:
        return traces.container[:MAX_CHARS]
    if traces.containerenv:
        return "podman"
    if traces.dockerenv:
        return "docker"
    for trace, name in (("/lxc.payload", "lxc"), ("/lxc/", "lxc"), ("/docker", "docker"), ("/kubepods", "kubernetes")):
        if trace in traces.cgroup:
            return name
    return ""


def _machine(traces: Traces) -> str:
    # On bare metal of theirs, DMI says Amazon or Google too; the processor tells that somebody is beneath.
    beneath = traces.hypervisor or "hypervisor" in _flags(traces.cpuinfo)
    names = ("product_name", "sys_vendor", "board_vendor", "bios_vendor", "product_version")
    said = [traces.dmi.get(name, "") for name in names]
    metal = any("metal" in each for each in said)
    for each in () if metal else said:
        for prefix, name in _HYPERVISORS:
            if each.startswith(prefix):
                return name
    if traces.hypervisor:
        return traces.hypervisor[:MAX_CHARS]
    return "vm-other" if beneath else ""


def _flags(cpuinfo: str) -> list[str]:
    return next((value.split() for key, value in _pairs(cpuinfo) if key == "flags"), [])


def cpu_model(cpuinfo: str) -> str:
    """Return the processor's name in /proc/cpuinfo, "" where it has none (most arm64)."""
    found = dict(reversed(list(_pairs(cpuinfo))))
    return next((found[name][:MAX_CHARS] for name in _MODELS if found.get(name)), "")


def _pairs(cpuinfo: str) -> list[tuple[str, str]]:
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    return [(key.strip(), value.strip()) for key, colon, value in lines if colon]


def cloud_of(dmi: Mapping[str, str]) -> str:
    """Return aws, gcp or azure where the machine's own firmware says so, "" elsewhere: nobody needs to be asked."""
    vendor = dmi.get("sys_vendor", "")
    if vendor == "Microsoft Corporation":
        return "azure" if dmi.get("chassis_asset_tag", "") == AZURE_TAG else ""
    found = _CLOUD_OF_VENDOR.get(vendor, "")
    if not found and dmi.get("bios_vendor", "") == "Amazon EC2":
        return "aws"
    return found
