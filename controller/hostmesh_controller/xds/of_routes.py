"""Which route table a host gets for a name."""

from hostmesh_api import wire
from hostmesh_api.delta import Resource
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host
from hostmesh_controller.names import parse_port
from hostmesh_controller.xds import gateway_routes, routes
from hostmesh_controller.xds.keeping import kept


def dependencies(mesh: Mesh, host: str, name: str) -> tuple[str, ...]:
    """Return nothing for a port's table: it is empty, its virtual hosts are asked for."""
    return gateway_routes.dependencies(mesh, host, name) if gateway_routes.is_gateway_table(name) else ()


def resource(mesh: Mesh, host: Host, name: str) -> Resource | None:
    if gateway_routes.is_gateway_table(name):
        return gateway_routes.resource(mesh, host, name)
    port = parse_port(name)
    return None if port is None else kept(mesh, (wire.ROUTE_TYPE, port), (), name, lambda: routes.table(port))
