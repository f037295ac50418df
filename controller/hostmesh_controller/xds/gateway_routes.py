"""Route tables of gateways: whole ones, since whoever calls from outside chooses the host header.

A virtual host that is asked for on demand would let any caller make the proxies ask for names without end. An unknown
one is answered 404 from the table.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from envoy.config.route.v3.route_components_pb2 import Route, VirtualHost
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from google.protobuf.wrappers_pb2 import BoolValue

from hostmesh_api.delta import Resource
from hostmesh_controller.mesh.gateways import NO_GATEWAYS, Served
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host
from hostmesh_controller.mesh.step import object_dependency
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.model.objects import ApiObject, ObjectKey
from hostmesh_controller.names import host_and_port
from hostmesh_controller.xds.encoding import resource as encoded
from hostmesh_controller.xds.gateway_bound import bound_virtual_services, shared_hosts
from hostmesh_controller.xds.routes import (
    virtual_service_dependencies,
    virtual_service_inputs,
    virtual_service_routes,
)

Piece = tuple[str, ObjectKey]
"""The routes of one VirtualService at one gateway."""


def is_gateway_table(name: str) -> bool:
    return name.startswith(("http.", "https."))


def dependencies(mesh: Mesh, host: str, name: str) -> tuple[str, ...]:
    """Return what a table is made from: its Gateways, the VirtualServices bound to them, and their destinations.

    A VirtualService that is bound to a Gateway or no longer is touches the Gateway's name.
    """
    viewer = mesh.viewer_of(host)
    result: dict[str, None] = {}
    for served in mesh.gateways.get(host, NO_GATEWAYS).servers_of(name):
        result[object_dependency(served.gateway)] = None
        for item in bound_virtual_services(mesh, served.gateway_name, viewer):
            result |= dict.fromkeys(virtual_service_dependencies(mesh, item))
    return tuple(result)


def resource(mesh: Mesh, host: Host, name: str) -> Resource:
    """Return the table of a gateway's servers; one that no server has is empty, as Istio's."""
    servers = mesh.gateways.get(host.name, NO_GATEWAYS).servers_of(name)
    return encoded(name, table(mesh, mesh.viewer_of(host.name), name, servers))


@dataclass(slots=True)
class _Named:
    """The virtual host of one name on its way."""

    port: int
    pieces: list[Piece] = field(default_factory=list)
    routes: list[Route] = field(default_factory=list)
    require_tls: bool = False


def table(mesh: Mesh, viewer: Viewer, name: str, servers: Iterable[Served]) -> RouteConfiguration:
    """Return the routes of servers that share a table.

    Of each name the routes of all VirtualServices that have it, in Istio's order; those that take everything come last.
    Names with the same routes are one virtual host.
    """
    named: dict[str, _Named] = {}
    port = 0
    for served in servers:
        port = port or served.server.port.number
        _add(mesh, viewer, served, named)
    hosts = _collapsed(named) if named else [_not_found(port)]
    return RouteConfiguration(
        name=name,
        virtual_hosts=sorted(hosts, key=lambda host: host.name),
        validate_clusters=BoolValue(value=False),
        ignore_port_in_host_matching=True,
    )


def _add(mesh: Mesh, viewer: Viewer, served: Served, named: dict[str, _Named]) -> None:
    redirect = served.server.tls is not None and served.server.tls.https_redirect
    number = served.server.port.number
    for item in bound_virtual_services(mesh, served.gateway_name, viewer):
        shared = shared_hosts(served, item, mesh.settings.domain)
        if not shared:
            continue
        piece = (served.gateway_name, item.key)
        routes = _routes(mesh, viewer, item, served)
        for host in shared:
            entry = named.setdefault(host, _Named(number))
            entry.require_tls = entry.require_tls or redirect
            if routes and piece not in entry.pieces:
                entry.pieces.append(piece)
                entry.routes += routes
    for host in served.server_names if redirect else ():
        named.setdefault(host, _Named(number)).require_tls = True


def _routes(mesh: Mesh, viewer: Viewer, item: ApiObject, served: Served) -> tuple[Route, ...]:
    """Return the routes of one VirtualService; made again only when it or where it leads changes."""
    number, gateway, tls = served.server.port.number, served.gateway_name, served.server.tls is not None
    key, inputs = virtual_service_inputs(mesh, viewer, item)

    def make() -> tuple[Route, ...]:
        return tuple(virtual_service_routes(mesh, viewer, item, number, {gateway}, tls=tls))

    return mesh.memo.get(("gateway routes", viewer, number, gateway, tls, *key), inputs, make)


def _collapsed(named: dict[str, _Named]) -> list[VirtualHost]:
    """Return the virtual hosts; names with the same routes share one, named by the most specific of them."""
    groups: dict[tuple[tuple[Piece, ...], bool], list[str]] = {}
    for host in sorted(named, key=_specific_first):
        entry = named[host]
        groups.setdefault((tuple(entry.pieces), entry.require_tls), []).append(host)
    return [_virtual_host(hosts, named[hosts[0]]) for hosts in groups.values()]


def _specific_first(host: str) -> tuple[bool, int, str]:
    return host.startswith("*"), -len(host), host


def _virtual_host(domains: list[str], entry: _Named) -> VirtualHost:
    result = VirtualHost(
        include_request_attempt_count=True,
        name=host_and_port(domains[0], entry.port),
        domains=domains,
        routes=sorted(entry.routes, key=_takes_everything),
    )
    if entry.require_tls:
        result.require_tls = VirtualHost.ALL
    return result


def _takes_everything(route: Route) -> bool:
    match = route.match
    anything = match.prefix == "/" or match.path_separated_prefix == "/" or match.safe_regex.regex == ".*"
    return anything and not (match.headers or match.query_parameters or match.dynamic_metadata)


def _not_found(port: int) -> VirtualHost:
    return VirtualHost(name=f"blackhole:{port}", domains=["*"])
