"""What a viewer calls outbound: port numbers with what is spoken on them, addresses, and TCP routes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hostmesh_controller.mesh.compiled import single_addresses
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Service, ServicePort
from hostmesh_controller.mesh.rules import virtual_service_for, virtual_service_spec
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.mesh.visibility import View, service_named, view
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.model.virtual_service import Destination, RouteDestination, TcpRoute
from hostmesh_controller.names import OutboundName, expand

Weights = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What the outbound listeners of a viewer are made from.

    `explicit`: services with addresses outside the virtual ranges. `http_ports`: port numbers that need the HTTP code,
    each with the services on it. `weighted`: TCP ports whose connections are spread over several clusters.
    """

    viewer: Viewer
    explicit: tuple[Service, ...]
    http_ports: dict[int, tuple[Service, ...]]
    weighted: tuple[tuple[Service, int, Weights], ...]


def plan(mesh: Mesh, viewer: Viewer) -> Plan:
    """Return the plan of a viewer; the same object for as long as nothing it reads is different."""
    seen = view(mesh, viewer)
    return mesh.memo.get(("plan", viewer), (seen, mesh.tcp_routes), lambda: _plan(mesh, seen))


def _plan(mesh: Mesh, seen: View) -> Plan:
    by_port: dict[int, list[Service]] = {}
    needs_http: set[int] = set()
    weighted: list[tuple[Service, int, Weights]] = []
    for service in seen.services:
        for port in service.ports:
            by_port.setdefault(port.number, []).append(service)
            if port.protocol.is_http or port.protocol.is_detected:
                needs_http.add(port.number)
            if not port.protocol.is_http:
                weights = tcp_weights(mesh, service, port, seen.viewer)
                if len(weights) > 1:
                    weighted.append((service, port.number, weights))
    return Plan(
        viewer=seen.viewer,
        explicit=tuple(service for service in seen.services if service.addresses),
        http_ports={number: tuple(by_port[number]) for number in sorted(needs_http)},
        weighted=tuple(weighted),
    )


def tcp_weights(mesh: Mesh, service: Service, port: ServicePort, viewer: Viewer) -> Weights:
    """Return the clusters, with weights, to which a TCP port's connections go: without a route, its own."""
    item = virtual_service_for(mesh, service, viewer, tcp=True)
    route = _tcp_route(virtual_service_spec(item).tcp, port.number) if item else None
    if item is None or route is None:
        return ((str(OutboundName(port.number, "", service.id.hostname)), 1),)
    return _weights(mesh, item, route.route, port, viewer)


def _tcp_route(routes: Sequence[TcpRoute], port: int) -> TcpRoute | None:
    def holds(route: TcpRoute) -> bool:
        return not route.match or any(match.port in {None, port} for match in route.match)

    return next(filter(holds, routes), None)


def _weights(
    mesh: Mesh, item: ApiObject, routes: Iterable[RouteDestination], port: ServicePort, viewer: Viewer
) -> Weights:
    routes = tuple(routes)
    if len(routes) == 1:
        return ((str(destination_name(mesh, item, routes[0].destination, port.number, viewer)), 1),)
    return tuple(
        (str(destination_name(mesh, item, route.destination, port.number, viewer)), route.weight)
        for route in routes
        if route.weight
    )


def destination_hostname(mesh: Mesh, item: ApiObject, destination: Destination) -> str:
    return expand(destination.host, item.key.namespace, mesh.settings.domain)


def destination_name(
    mesh: Mesh, item: ApiObject, destination: Destination, called_port: int, viewer: Viewer
) -> OutboundName:
    """Return the cluster of a VirtualService's destination.

    Without a port it is the destination's only port, or else the one that was called. A destination that does not
    exist has a name all the same: there is no such cluster, and requests are answered 503.
    """
    hostname = destination_hostname(mesh, item, destination)
    number = destination.port.number if destination.port else None
    if number is None:
        service = service_named(mesh, hostname, viewer)
        number = service.ports[0].number if service is not None and len(service.ports) == 1 else called_port
    return OutboundName(number, destination.subset or "", hostname)


def explicit_prefixes(services: Iterable[Service]) -> tuple[str, ...]:
    return tuple(sorted({prefix for service in services for prefix in service.addresses}))


def prefixes_of(service: Service) -> tuple[str, ...]:
    """Return everything under which a service is dialled: its blocks and addresses, then its virtual addresses."""
    virtual = (address for address in single_addresses(service) if address in {service.vip4, service.vip6})
    return (*service.addresses, *virtual)
