"""AuthorizationPolicies, and the services of the authorizers that they ask."""

from dataclasses import replace

from hostmesh_controller.mesh.authorization import KIND, authorizer_named, provider_of
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.step import Step
from hostmesh_controller.mesh.take_extensions import selected_hosts


def take_authorization(step: Step) -> None:
    changes = step.before_and_after(KIND)
    if changes:
        authorization = dict(step.old.authorization)
        for namespace in {key.namespace for key, _, _ in changes}:
            authorization[namespace] = step.mesh.of_kind(KIND, namespace)
            if not authorization[namespace]:
                del authorization[namespace]
        step.mesh = replace(step.mesh, authorization=authorization)
    for _, before, after in changes:
        for mesh, item in ((step.old, before), (step.mesh, after)):
            if item is not None:
                step.touched_hosts.update(selected_hosts(mesh, item))
    _take_authorizers(step, {service.hostname for service in step.services})


def _take_authorizers(step: Step, changed: set[str]) -> None:
    """Touch the hosts that ask an authorizer whose service is another now: while there is none, all is refused."""
    if not changed or not step.mesh.config.extension_providers:
        return
    for items in step.mesh.authorization.values():
        for item in items:
            if _hostname(step.mesh, provider_of(item)) in changed:
                step.touched_hosts.update(selected_hosts(step.mesh, item))


def _hostname(mesh: Mesh, provider: str) -> str:
    authorizer = authorizer_named(mesh, provider) if provider else None
    return authorizer.service.rpartition("/")[2].lower() if authorizer is not None else ""
