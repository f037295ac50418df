"""Where a gateway's connections go that are not HTTP: TCP, TLS that ends here, and TLS passed on by its name."""

from collections.abc import Iterator
from dataclasses import dataclass

from envoy.config.listener.v3.listener_components_pb2 import Filter

from hostmesh_controller.mesh.delegates import full_destination
from hostmesh_controller.mesh.gateways import Served
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.mesh.virtual_services import virtual_service_spec
from hostmesh_controller.model.http_actions import Destination
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.model.tcp_routes import ConnectionMatch, RouteDestination
from hostmesh_controller.names import gateway_name
from hostmesh_controller.xds.connections import destination_cluster
from hostmesh_controller.xds.filters import tcp_weighted
from hostmesh_controller.xds.gateway_bound import bound_virtual_services, shared_hosts


@dataclass(frozen=True, slots=True)
class ByName:
    """TLS connections that are passed on: which server names, and where to."""

    server_names: tuple[str, ...]
    to: tuple[Filter, ...]


def connection_filters(mesh: Mesh, viewer: Viewer, served: Served) -> tuple[Filter, ...]:
    """Return where a server's connections go by the tcp routes of VirtualServices; nothing if no route takes them."""
    for item in _bound(mesh, viewer, served):
        for route in virtual_service_spec(item).tcp:
            if not route.match or any(_holds(match, served, item) for match in route.match):
                return _filters(mesh, viewer, served, item, route.route)
    return ()


def by_server_name(mesh: Mesh, viewer: Viewer, served: Served) -> Iterator[ByName]:
    """Yield where TLS connections that are passed through go, by the tls routes of VirtualServices, in order."""
    for item in _bound(mesh, viewer, served):
        for route in virtual_service_spec(item).tls:
            for match in route.match:
                if _holds(match, served, item):
                    names = tuple(name.lower() for name in match.sni_hosts)
                    yield ByName(names, _filters(mesh, viewer, served, item, route.route))


def _bound(mesh: Mesh, viewer: Viewer, served: Served) -> Iterator[ApiObject]:
    for item in bound_virtual_services(mesh, served.gateway_name, viewer):
        if shared_hosts(served, item, mesh.settings.domain):
            yield item


def _holds(match: ConnectionMatch, served: Served, item: ApiObject) -> bool:
    """Tell whether a match is for a server. As in Istio, what tells callers in the mesh apart tells nothing here."""
    names = {gateway_name(name, item.key.namespace) for name in match.gateways}
    return match.port in {None, 0, served.server.port.number} and (not names or served.gateway_name in names)


def _filters(
    mesh: Mesh, viewer: Viewer, served: Served, item: ApiObject, to: tuple[RouteDestination, ...]
) -> tuple[Filter, ...]:
    number = served.server.port.number

    def cluster(destination: Destination) -> str:
        full = full_destination(destination, item.key.namespace, mesh.settings.domain)
        return str(destination_cluster(mesh, full, number, viewer))

    if len(to) == 1:
        name = cluster(to[0].destination)
        return tuple(tcp_weighted(name, [(name, 1)]))
    weights = [(cluster(each.destination), each.weight) for each in to if each.weight]
    return tuple(tcp_weighted(f"{item.key.name}.{item.key.namespace}", weights))
