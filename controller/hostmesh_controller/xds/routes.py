"""Routes: an empty table per port that asks for virtual hosts at their first use (RDS, VHDS)."""

from collections.abc import Iterator
from typing import Final

from envoy.config.route.v3.route_components_pb2 import Route, RouteAction, RouteMatch, VirtualHost
from envoy.config.route.v3.route_pb2 import RouteConfiguration, Vhds
from google.protobuf.wrappers_pb2 import BoolValue

from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Service
from hostmesh_controller.mesh.rules import virtual_service_spec
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.model.virtual_service import HttpMatch, HttpRoute
from hostmesh_controller.names import OutboundName, VirtualHostName
from hostmesh_controller.xds.outbound import destination_name
from hostmesh_controller.xds.route_action import default_retries, duration_or_none, outcome
from hostmesh_controller.xds.route_match import path_match
from hostmesh_controller.xds.sources import ads

FIRST_ANSWER_TIMEOUT_S: Final = 0.01
"""An empty VHDS subscription is never answered before something is asked: the default would hold the listener 15 s."""
DEFAULT_ROUTE: Final = "default"


def table(port: int) -> RouteConfiguration:
    """Return the routes of an outbound port: none, all are asked for."""
    return RouteConfiguration(
        name=str(port),
        vhds=Vhds(config_source=ads(FIRST_ANSWER_TIMEOUT_S)),
        validate_clusters=BoolValue(value=False),
    )


def virtual_host(
    mesh: Mesh, viewer: Viewer, name: VirtualHostName, service: Service, item: ApiObject | None
) -> VirtualHost:
    """Return the virtual host of one host header: the routes of the service's VirtualService, or else all to itself.

    As in Istio a VirtualService replaces the default: what none of its routes matches is answered 404.
    """
    if item is None:
        routes = [_default(name.port, service)]
    else:
        spec = virtual_service_spec(item)
        routes = [route for http in spec.http for route in _routes(mesh, viewer, name, item, http)]
    return VirtualHost(name=str(name), domains=[name.header], routes=routes)


def _default(port: int, service: Service) -> Route:
    action = RouteAction(cluster=str(OutboundName(port, "", service.id.hostname)), timeout=duration_or_none(None))
    action.retry_policy.CopyFrom(default_retries())
    return Route(name=DEFAULT_ROUTE, match=RouteMatch(prefix="/"), route=action)


def _routes(mesh: Mesh, viewer: Viewer, name: VirtualHostName, item: ApiObject, http: HttpRoute) -> Iterator[Route]:
    """Yield one route per match; none where every match is for another port."""
    matches: tuple[HttpMatch | None, ...] = http.match or (None,)
    for match in matches:
        if match is not None and match.port not in {None, name.port}:
            continue
        clusters = [
            (str(destination_name(mesh, item, entry.destination, name.port, viewer)), entry) for entry in http.route
        ]
        route = Route(name=_route_name(http, match), match=path_match(match))
        outcome(route, http, match, clusters)
        yield route


def _route_name(http: HttpRoute, match: HttpMatch | None) -> str:
    own = http.name or DEFAULT_ROUTE
    return f"{own}.{match.name}" if match is not None and match.name and http.name else own
