"""Objects that hold for the hosts whose workloads they select, and active health checks."""

from typing import Final

from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.scopes import is_for
from hostmesh_controller.mesh.step import Step, object_dependency
from hostmesh_controller.mesh.viewer import faces_of
from hostmesh_controller.model.health_check import HealthCheckSpec
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.names import expand

SELECTING: Final = ("CapturePolicy", "RateLimit", "WasmPlugin")
"""Kinds that add filters to what their `selector` chooses, or decide what meets them."""


def take_extensions(step: Step) -> None:
    for key, before, after in step.before_and_after(*SELECTING):
        step.touched_services.add(object_dependency(key))
        for mesh, item in ((step.old, before), (step.mesh, after)):
            if item is not None:
                step.touched_hosts.update(selected_hosts(mesh, item))
    for _, before, after in step.before_and_after("HealthCheck"):
        for item in (before, after):
            if item is not None:
                step.touched_services.add(checked_host(item, step.mesh.settings.domain))


def checked_host(item: ApiObject, domain: str) -> str:
    """Return the full name of the service that a HealthCheck is for."""
    assert isinstance(item.spec, HealthCheckSpec)
    return expand(item.spec.host, item.key.namespace, domain)


def selected_hosts(mesh: Mesh, item: ApiObject) -> set[str]:
    """Return the hosts that have a workload which an object of a selecting kind chooses."""
    return {name for name, host in mesh.hosts.items() if is_for(mesh, item, faces_of(mesh, host))}
