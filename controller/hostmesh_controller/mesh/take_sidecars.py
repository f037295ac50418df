"""Sidecars that have a word on what comes in: of which workload each is."""

from dataclasses import replace

from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import WorkloadKey
from hostmesh_controller.mesh.scopes import sidecar_of
from hostmesh_controller.mesh.step import Step
from hostmesh_controller.mesh.viewer import Face
from hostmesh_controller.model.objects import ObjectKey
from hostmesh_controller.model.sidecar import SidecarSpec


def take_sidecars(step: Step) -> None:
    if not step.mesh.keys_by_kind.get("Sidecar") and not step.old.inbound_sidecars:
        return
    changed = {key for key, _, _ in step.before_and_after("Sidecar")}
    found: dict[WorkloadKey, ObjectKey | None] = {}
    for key in _concerned(step, changed):
        before, now = step.old.inbound_sidecars.get(key), _inbound_sidecar(step.mesh, key)
        if now == before and now not in changed:
            continue
        found[key] = now
        # Callers may meet mutual TLS on other ports now.
        step.recheck.add(key)
        for mesh in (step.old, step.mesh):
            workload = mesh.workloads.get(key)
            if workload is not None and workload.host is not None:
                step.touched_hosts.add(workload.host)
    step.mesh = replace(step.mesh, inbound_sidecars=step.mesh.inbound_sidecars.changed(found))


def _concerned(step: Step, changed: set[ObjectKey]) -> set[WorkloadKey]:
    result = set(step.workloads)
    for key, _, _ in step.before_and_after("Host"):
        # A Host's labels lie beneath those of its workloads.
        result.update(step.mesh.workloads_by_host.get(key.name, ()))
    namespaces = {key.namespace for key in changed}
    if step.mesh.settings.root_namespace in namespaces:
        result.update(step.mesh.workloads)
    elif namespaces:
        result.update(key for key in step.mesh.workloads if key.namespace in namespaces)
    return result


def _inbound_sidecar(mesh: Mesh, key: WorkloadKey) -> ObjectKey | None:
    workload = mesh.workloads.get(key)
    host = mesh.hosts.get(workload.host) if workload is not None and workload.host is not None else None
    if workload is None or host is None:
        return None
    found = sidecar_of(mesh, (Face(key.namespace, {**host.labels, **workload.labels}),))
    if found is None:
        return None
    spec = mesh.objects[found].spec
    assert isinstance(spec, SidecarSpec)
    return found if spec.ingress or spec.inbound_connection_pool is not None else None
