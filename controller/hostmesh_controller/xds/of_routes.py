"""Which route table a host gets for a name."""

from hostmesh_api import wire
from hostmesh_api.delta import Resource
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host
from hostmesh_controller.names import parse_port
from hostmesh_controller.xds import gateway_routes, routes
from hostmesh_controller.xds.keeping import kept
from hostmesh_controller.xds.sidecar_egress import bound_listeners


def dependencies(mesh: Mesh, host: str, name: str) -> tuple[str, ...]:
    """Return nothing for a port's table: it is empty, its virtual hosts are asked for."""
    return gateway_routes.dependencies(mesh, host, name) if gateway_routes.is_gateway_table(name) else ()


def resource(mesh: Mesh, host: Host, name: str) -> Resource | None:
    if gateway_routes.is_gateway_table(name):
        return gateway_routes.resource(mesh, host, name)
    if name in {each.table for each in bound_listeners(mesh, mesh.viewer_of(host.name)) if not each.port}:
        return kept(mesh, (wire.ROUTE_TYPE, name), (), name, lambda: routes.table(name))
    port = parse_port(name)
    return None if port is None else kept(mesh, (wire.ROUTE_TYPE, port), (), name, lambda: routes.table(port))
