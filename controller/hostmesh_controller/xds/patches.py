"""EnvoyFilter: the operator's own changes, made to finished resources."""

from hostmesh_api.delta import Resource
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host


def added(_mesh: Mesh, _host: Host, _type_url: str) -> tuple[str, ...]:
    """Return the names of resources that EnvoyFilters add to what a host gets by wildcard."""
    return ()


def patched(_mesh: Mesh, _host: Host, _type_url: str, _name: str, made: Resource | None) -> Resource | None:
    """Return a resource (None: there is none of that name) as the EnvoyFilters of the host leave it."""
    return made
