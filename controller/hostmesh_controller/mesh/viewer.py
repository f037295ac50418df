"""Who looks: everything about a host that decides what it sees of the mesh.

Hosts with equal viewers see the same, so what is made for one of them is made for all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hostmesh_controller.mesh.peers import selects
from hostmesh_controller.model.objects import ObjectKey

if TYPE_CHECKING:
    from hostmesh_controller.mesh.index import Mesh
    from hostmesh_controller.mesh.records import Host, Workload

DEFAULT_NAMESPACE: Final = "default"

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Face:
    """One workload of a host as selectors see it, or the bare host if it has none. Labels of the Host lie beneath."""

    namespace: str
    labels: Mapping[str, str]

    def selected_by(self, labels: Mapping[str, str]) -> bool:
        """Tell whether all of a selector's labels are there; an empty selector takes everything."""
        return selects(labels, self.labels)


@dataclass(frozen=True, slots=True)
class Viewer:
    """What a host sees follows from this alone.

    Attributes:
        namespace: as which it sees the mesh.
        labels: of each of its faces, without keys that no selector of a caller mentions (VirtualService sourceLabels,
            DestinationRule workloadSelector), so that hosts which differ in other labels stay equal.
        locality: `region/zone/subzone`, or "".
        sidecar: the Sidecar that holds for it, if any.
        patches: the EnvoyFilters that hold for it, in the order in which they are applied.
    """

    namespace: str = DEFAULT_NAMESPACE
    labels: tuple[Labels, ...] = ()
    locality: str = ""
    sidecar: ObjectKey | None = None
    patches: tuple[ObjectKey, ...] = ()

    def selected_by(self, labels: Mapping[str, str]) -> bool:
        """Tell whether one workload of the host has all of these labels; nothing asked for is always there."""
        return not labels or any(own >= labels.items() for own in self.labels)


def face_of(host: "Host", workload: "Workload") -> Face:
    """Return what selectors of workloads see of a workload on a host."""
    return Face(workload.key.namespace, {**host.labels, **workload.labels})


def faces_of(mesh: "Mesh", host: "Host") -> tuple[Face, ...]:
    """Return what selectors of workloads see of a host: each of its workloads, by name, or itself if it has none."""
    workloads = mesh.workloads_of(host.name)
    if not workloads:
        return (Face(namespace_of(mesh, host), host.labels),)
    return tuple(face_of(host, each) for each in workloads)


def namespace_of(mesh: "Mesh", host: "Host") -> str:
    """Return the namespace as which a host sees the mesh: as declared, or that of all its workloads, or `default`."""
    if host.namespace is not None:
        return host.namespace
    found = {key.namespace for key in mesh.workloads_by_host.get(host.name, ())}
    return found.pop() if len(found) == 1 else DEFAULT_NAMESPACE


def locality_of(mesh: "Mesh", host: "Host") -> str:
    """Return where a host is: as declared, or where all its workloads are, or where it says itself, or ""."""
    if host.locality:
        return host.locality
    found = {workload.locality for workload in mesh.workloads_of(host.name)}
    declared = found.pop() if len(found) == 1 else ""
    return declared or ("" if found else mesh.reported_locality(host.name))
