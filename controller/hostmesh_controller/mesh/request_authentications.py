"""RequestAuthentication: whose tokens a workload takes."""

from collections.abc import Iterable

from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.scopes import is_for
from hostmesh_controller.mesh.viewer import Face
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.model.request_authentication import JwtRule, RequestAuthenticationSpec


def request_authentications_of(mesh: Mesh, faces: Iterable[Face]) -> tuple[ApiObject, ...]:
    """Return all that hold for one of some workloads: those of their namespaces, then of the root namespace."""
    if not mesh.request_authentications:
        return ()
    faces = tuple(faces)
    namespaces = dict.fromkeys((*(face.namespace for face in faces), mesh.settings.root_namespace))
    found = (item for namespace in namespaces for item in mesh.request_authentications.get(namespace, ()))
    return tuple(item for item in found if is_for(mesh, item, faces))


def jwt_rules(item: ApiObject) -> tuple[JwtRule, ...]:
    assert isinstance(item.spec, RequestAuthenticationSpec)
    return item.spec.jwt_rules
