"""Which route table a host gets for a name."""

from hostmesh_api import wire
from hostmesh_api.delta import Resource
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host
from hostmesh_controller.names import parse_port
from hostmesh_controller.xds import routes
from hostmesh_controller.xds.keeping import kept


def dependencies(_mesh: Mesh, _host: str, _name: str) -> tuple[str, ...]:
    """Return nothing: the table of a port is empty, its virtual hosts are asked for."""
    return ()


def resource(mesh: Mesh, _host: Host, name: str) -> Resource | None:
    port = parse_port(name)
    return None if port is None else kept(mesh, (wire.ROUTE_TYPE, port), (), name, lambda: routes.table(port))
