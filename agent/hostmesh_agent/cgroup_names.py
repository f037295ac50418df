"""Which systemd unit and which container a program is in, by the names of its cgroup. Pure.

A program that root starts may stand in any cgroup, and a container may give itself any name below its own: this is for
people and for maps, never for rights (those are `entitlements`).
"""

import re
from dataclasses import dataclass
from typing import Final

MAX_CHARS: Final = 256
_ID: Final = r"(?P<id>[0-9a-f]{64})"
_SCOPES: Final = (
    # What the runtimes name the scope that systemd makes for them, and after ":" what kubelet's driver writes.
    (re.compile(rf"docker-{_ID}\.scope"), "docker"),
    (re.compile(rf"libpod-(?:payload-)?{_ID}(?:\.scope)?"), "podman"),
    (re.compile(rf"(?:cri-containerd|nerdctl)-{_ID}\.scope"), "containerd"),
    (re.compile(rf".*:cri-containerd:{_ID}"), "containerd"),
    (re.compile(rf"crio-{_ID}(?:\.scope)?"), "cri-o"),
    (re.compile(r"lxc\.payload\.(?P<id>[^/]+)"), "lxc"),
    (re.compile(r"machine-(?P<id>[^/]+)\.scope"), "machine"),
    (re.compile(r"systemd-nspawn@(?P<id>[^/]+)\.service"), "nspawn"),
)
_BARE: Final = re.compile(_ID)
_PARENTS: Final = {"docker": "docker", "lxc": "lxc", "default": "containerd", "libpod_parent": "podman"}
"""Groups of runtimes that make cgroups themselves: what is below one is a container."""
_UNIT: Final = re.compile(r"[^/]+\.(?:service|scope|socket|mount|swap)")


@dataclass(frozen=True, slots=True)
class Place:
    """`unit` is "" outside any; `container` is "RUNTIME:ID", "" outside any."""

    unit: str = ""
    container: str = ""


def place_of(cgroup: str) -> Place:
    """Return where /proc/PID/cgroup says that a program is, of cgroups v1 and v2 alike."""
    paths = [line.split(":", 2)[2] for line in cgroup.splitlines() if line.count(":") >= 2]
    places = [_of_path(path) for path in paths]
    container = next((each.container for each in places if each.container), "")
    unit = "" if container else next((each.unit for each in places if each.unit), "")
    return Place(unit[:MAX_CHARS], container[:MAX_CHARS])


def _of_path(path: str) -> Place:
    parts = [part for part in path.split("/") if part and part != ".."]
    # The innermost container is the program's own: docker in lxc.
    for index in range(len(parts) - 1, -1, -1):
        found = _container(parts[index], parts[index - 1] if index else "")
        if found:
            return Place(container=found)
    # Units of a user's own manager are below the user's: user@1000.service/app.slice/web.service.
    units = [part for part in parts if _UNIT.fullmatch(part)]
    of_user = [part for part in units if not part.startswith("user@")]
    return Place(unit=(of_user or units or [""])[0])


def _container(part: str, parent: str) -> str:
    for pattern, runtime in _SCOPES:
        matched = pattern.fullmatch(part)
        if matched is not None:
            return f"{runtime}:{matched['id']}"
    if parent == "lxc":
        return f"lxc:{part}"
    if _BARE.fullmatch(part):
        return f"{_PARENTS.get(parent, 'oci')}:{part}"
    return ""
