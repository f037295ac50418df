"""Which Sidecar and which EnvoyFilters hold for a host, and for whom an object with a selector is."""

from collections.abc import Iterable, Mapping

from hostmesh_controller.mesh.compiled import order_of
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.viewer import Face
from hostmesh_controller.model.authorization_policy import AuthorizationPolicySpec
from hostmesh_controller.model.capture_policy import CapturePolicySpec
from hostmesh_controller.model.envoy_filter import EnvoyFilterSpec
from hostmesh_controller.model.objects import ApiObject, ObjectKey
from hostmesh_controller.model.rate_limit import RateLimitSpec
from hostmesh_controller.model.request_authentication import RequestAuthenticationSpec
from hostmesh_controller.model.schema import Spec
from hostmesh_controller.model.sidecar import SidecarSpec
from hostmesh_controller.model.wasm_plugin import WasmPluginSpec


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
        assert isinstance(item.spec, EnvoyFilterSpec)
        if is_for(mesh, item, faces):
            name = f"{item.key.name}.{item.key.namespace}"
            order = (item.spec.priority, item.key.namespace != root, order_of(item).created, name)
            result.append((order, item.key))
    return tuple(key for _, key in sorted(result, key=lambda each: each[0]))


def is_for(mesh: Mesh, item: ApiObject, faces: Iterable[Face]) -> bool:
    """Tell whether an object with a selector is for one of some workloads.

    It selects within its namespace, in the root namespace within all; without a selector it is for everybody.
    """
    labels, namespace, root = _selector(item), item.key.namespace, mesh.settings.root_namespace
    return any(namespace in {face.namespace, root} and face.selected_by(labels) for face in faces)


def _selector(item: ApiObject) -> Mapping[str, str]:
    match item.spec:
        case EnvoyFilterSpec(workload_selector=selector) if selector:
            return selector.labels
        case (
            AuthorizationPolicySpec(selector=chosen)
            | CapturePolicySpec(selector=chosen)
            | RateLimitSpec(selector=chosen)
            | RequestAuthenticationSpec(selector=chosen)
            | WasmPluginSpec(selector=chosen)
        ) if chosen:
            return chosen.match_labels
    return {}
