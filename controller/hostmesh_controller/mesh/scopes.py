"""Which Sidecar and which EnvoyFilters hold for a host."""

from collections.abc import Iterable, Mapping

from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.viewer import Face
from hostmesh_controller.model.envoy_filter import EnvoyFilterSpec
from hostmesh_controller.model.objects import ObjectKey
from hostmesh_controller.model.schema import Spec
from hostmesh_controller.model.sidecar import SidecarSpec


def sidecar_of(mesh: Mesh, faces: Iterable[Face]) -> ObjectKey | None:
    """Return the Sidecar of a host, or None.

    One that selects a workload of the host, else its namespace's without a selector, else the root namespace's; of
    several the oldest.
    """
    faces = tuple(faces)
    namespaces = dict.fromkeys(face.namespace for face in faces)
    for namespace in namespaces:
        for item in mesh.of_kind("Sidecar", namespace):
            labels = _sidecar_labels(item.spec)
            if labels and any(face.namespace == namespace and face.selected_by(labels) for face in faces):
                return item.key
    for namespace in (*namespaces, mesh.settings.root_namespace):
        for item in mesh.of_kind("Sidecar", namespace):
            if not _sidecar_labels(item.spec):
                return item.key
    return None


def _sidecar_labels(spec: Spec) -> Mapping[str, str]:
    assert isinstance(spec, SidecarSpec)
    return spec.workload_selector.labels if spec.workload_selector else {}


def patches_of(mesh: Mesh, faces: Iterable[Face]) -> tuple[ObjectKey, ...]:
    """Return the EnvoyFilters of a host in the order of their application.

    By priority, as in Istio; of one priority those of the root namespace come first, then the oldest.
    """
    faces = tuple(faces)
    root = mesh.settings.root_namespace
    result: list[tuple[tuple[object, ...], ObjectKey]] = []
    for item in mesh.of_kind("EnvoyFilter"):
        spec = item.spec
        assert isinstance(spec, EnvoyFilterSpec)
        labels = spec.workload_selector.labels if spec.workload_selector else {}
        if any(item.key.namespace in {root, face.namespace} and face.selected_by(labels) for face in faces):
            created = item.metadata.creation_timestamp
            age = created.timestamp() if created else 0.0
            name = f"{item.key.name}.{item.key.namespace}"
            result.append(((spec.priority, item.key.namespace != root, age, name), item.key))
    return tuple(key for _, key in sorted(result, key=lambda each: each[0]))
