"""Which AuthorizationPolicies hold for whom, and the external authorizers that they name."""

from collections.abc import Iterable

from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.scopes import is_for
from hostmesh_controller.mesh.viewer import Face, Viewer
from hostmesh_controller.mesh.visibility import destination_named
from hostmesh_controller.model.authorization_policy import DRY_RUN, TRUE, AuthorizationPolicySpec
from hostmesh_controller.model.extension_providers import Authorizer
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.names import OutboundName

KIND = "AuthorizationPolicy"


def policies_for(mesh: Mesh, faces: Iterable[Face]) -> tuple[ApiObject, ...]:
    """Return the policies that hold for one of some workloads: the root namespace's first, the oldest first."""
    faces = tuple(faces)
    namespaces = tuple(dict.fromkeys((mesh.settings.root_namespace, *(face.namespace for face in faces))))
    there = tuple(mesh.authorization.get(each, ()) for each in namespaces)
    if not any(there):
        return ()
    key = ("policies for", tuple((face.namespace, frozenset(face.labels.items())) for face in faces))

    # It is asked for each port of each host, and a namespace may have many policies.
    def make() -> tuple[ApiObject, ...]:
        return tuple(each for items in there for each in items if is_for(mesh, each, faces))

    return mesh.memo.get(key, there, make)


def spec_of(item: ApiObject) -> AuthorizationPolicySpec:
    assert isinstance(item.spec, AuthorizationPolicySpec)
    return item.spec


def is_dry_run(item: ApiObject) -> bool:
    """Tell whether a policy is only tried; what asks an authorizer, and what only notes, cannot be."""
    return item.metadata.annotations.get(DRY_RUN) in TRUE and spec_of(item).action in {"ALLOW", "DENY"}


def provider_of(item: ApiObject) -> str:
    """Return the name of the authorizer that a CUSTOM policy asks, "" for others."""
    spec = spec_of(item)
    return spec.provider.name if spec.action == "CUSTOM" and spec.provider is not None else ""


def authorizer_named(mesh: Mesh, name: str) -> Authorizer | None:
    """Return the authorizer of a provider, or None if the mesh's settings have none of that name."""
    for each in mesh.config.extension_providers:
        if each.name == name:
            return each.authorizer
    return None


def cluster_of(mesh: Mesh, authorizer: Authorizer, viewer: Viewer) -> OutboundName | None:
    """Return the cluster of an authorizer; None if no service that the viewer sees is meant, or several are."""
    namespace, _, hostname = authorizer.service.rpartition("/")
    hostname = hostname.lower()
    owners = {each.namespace for each in mesh.services_by_hostname.get(hostname, ())}
    found = destination_named(mesh, hostname, viewer)
    if found is None or found.port(authorizer.port) is None:
        return None
    if found.id.namespace != namespace if namespace else len(owners) > 1:
        return None
    return OutboundName(authorizer.port, "", hostname)
