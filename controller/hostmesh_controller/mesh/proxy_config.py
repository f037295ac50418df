"""ProxyConfig: settings of a host's Envoy, and which of several hold."""

from collections.abc import Iterator, Mapping

from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host
from hostmesh_controller.mesh.step import Step
from hostmesh_controller.mesh.viewer import Face, faces_of
from hostmesh_controller.model.proxy_config import ProxyConfigSpec


def concurrency_of(mesh: Mesh, host: Host) -> int | None:
    """Return the worker threads of a host's Envoy: 0 for one on each core, None if nobody says.

    As in Istio: who selects a workload, then its namespace, then the root namespace, then the mesh; of several the
    oldest. A host has one Envoy: of several workloads the first by name for which there is a word decides.
    """
    for spec in _holding(mesh, faces_of(mesh, host)):
        if spec.concurrency is not None:
            return spec.concurrency
    return mesh.config.default_config.concurrency


def _holding(mesh: Mesh, faces: tuple[Face, ...]) -> Iterator[ProxyConfigSpec]:
    root = mesh.settings.root_namespace
    namespaces = dict.fromkeys(face.namespace for face in faces)
    for face in faces:
        for spec, labels in _of(mesh, face.namespace):
            if labels and face.selected_by(labels):
                yield spec
    for namespace in dict.fromkeys((*namespaces, root)):
        yield from (spec for spec, labels in _of(mesh, namespace) if not labels)


def _of(mesh: Mesh, namespace: str) -> Iterator[tuple[ProxyConfigSpec, Mapping[str, str]]]:
    for item in mesh.of_kind("ProxyConfig", namespace):
        spec = item.spec
        assert isinstance(spec, ProxyConfigSpec)
        yield spec, spec.selector.match_labels if spec.selector is not None else {}


def take_proxy_configs(step: Step) -> None:
    """Touch the hosts whose Envoy a changed ProxyConfig may concern."""
    namespaces = {key.namespace for key, _, _ in step.before_and_after("ProxyConfig")}
    everywhere = step.mesh.settings.root_namespace in namespaces
    for name, host in step.mesh.hosts.items() if namespaces else ():
        if everywhere or any(face.namespace in namespaces for face in faces_of(step.mesh, host)):
            step.touched_hosts.add(name)
