"""Routes: an empty table per port that asks for virtual hosts at their first use (RDS, VHDS), and what these hold."""

from collections.abc import Collection, Iterable
from typing import Final

from envoy.config.route.v3.route_components_pb2 import Decorator, Route, RouteAction, RouteMatch, VirtualHost
from envoy.config.route.v3.route_pb2 import RouteConfiguration, Vhds
from google.protobuf.wrappers_pb2 import BoolValue, UInt32Value

from hostmesh_controller.mesh.delegates import delegates_of, destination_hosts, http_routes
from hostmesh_controller.mesh.destination_rules import destination_rules_for
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Service
from hostmesh_controller.mesh.step import object_dependency
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.mesh.virtual_services import MESH_ONLY
from hostmesh_controller.mesh.visibility import destination_named
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.model.virtual_service import HttpMatch, HttpRoute
from hostmesh_controller.names import OutboundName, VirtualHostName, parse_outbound
from hostmesh_controller.xds.connections import destination_cluster
from hostmesh_controller.xds.load_balancing import hash_policies
from hostmesh_controller.xds.origins import origin_of_route
from hostmesh_controller.xds.policy import policy_for
from hostmesh_controller.xds.route_action import Surroundings, set_outcome, set_timeout
from hostmesh_controller.xds.route_match import is_for, path_match, takes_everything
from hostmesh_controller.xds.route_retries import retry_policy
from hostmesh_controller.xds.sources import ads

FIRST_ANSWER_TIMEOUT_S: Final = 0.01
"""An empty VHDS subscription is never answered before something is asked: the default would hold the listener 15 s."""
DEFAULT_ROUTE: Final = "default"
MAX_BODY_BYTES: Final = 1024 * 1024
"""Of an answer that Envoy gives by itself, as the API promises. Envoy's own limit is 4 KiB."""


def table(port: int | str) -> RouteConfiguration:
    """Return the routes of an outbound port, or of a Unix socket: none, all are asked for."""
    return RouteConfiguration(
        name=str(port),
        vhds=Vhds(config_source=ads(FIRST_ANSWER_TIMEOUT_S)),
        validate_clusters=BoolValue(value=False),
        max_direct_response_body_size_bytes=UInt32Value(value=MAX_BODY_BYTES),
    )


def virtual_host(
    mesh: Mesh, viewer: Viewer, name: VirtualHostName, service: Service | None, items: Iterable[ApiObject]
) -> VirtualHost | None:
    """Return the virtual host of one host header, or None if there is nothing for it.

    Args:
        mesh: the mesh.
        viewer: who calls.
        name: port and host header.
        service: which is meant, or None if VirtualServices alone have the host.
        items: its VirtualServices. The first that has a route for the caller and the port replaces the default route
            to the service, as in Istio: what none of its routes takes is answered 404.
    """
    for item in items:
        routes = virtual_service_routes(mesh, viewer, item, name.port, MESH_ONLY)
        if routes:
            break
    else:
        if service is None:
            return None
        routes = [_default(mesh, viewer, name.port, service)]
    return VirtualHost(name=str(name), domains=[name.header], routes=routes, include_request_attempt_count=True)


def virtual_service_routes(
    mesh: Mesh, viewer: Viewer, item: ApiObject, port: int, gateway_names: Collection[str], *, tls: bool = False
) -> list[Route]:
    """Return the HTTP routes of a VirtualService for one caller; none if none of its matches can hold.

    Args:
        mesh: the mesh.
        viewer: the caller, or the host of a gateway.
        item: the VirtualService, not a delegate.
        port: which is called.
        gateway_names: what the routes are for: `mesh`, or gateways as NAMESPACE/NAME.
        tls: calls come over TLS.
    """
    gateways = frozenset(gateway_names)
    around = Surroundings(
        port=port,
        tls=tls,
        retries=mesh.config.default_http_retry_policy,
        cluster=lambda destination: str(destination_cluster(mesh, destination, port, viewer)),
        hashes=lambda destination: _hashes(mesh, viewer, destination_cluster(mesh, destination, port, viewer)),
    )
    result: list[Route] = []
    for http in http_routes(mesh, item):
        for match in http.match or (None,):
            if match is not None and not is_for(match, viewer, port, gateways):
                continue
            result.append(_route(item, http, match, around))
            if takes_everything(result[-1].match):
                return result
    return result


def virtual_service_inputs(mesh: Mesh, viewer: Viewer, item: ApiObject) -> tuple[tuple[object, ...], ...]:
    """Return what the routes of a VirtualService are made from besides the caller and the port, for `Memo.get`.

    Returns:
        A pair: what belongs into the key, and as many inputs as the key tells.
    """
    delegates = delegates_of(item)
    hosts = destination_hosts(http_routes(mesh, item))
    # A destination without a port has the port of its service, and its DestinationRules tell what of a request counts.
    services = tuple(destination_named(mesh, host, viewer) for host in hosts)
    rules = tuple(_rules(mesh, viewer, service) for service in services)
    keys = tuple(tuple(rule.key for rule in each) for each in rules)
    objects = (item, *map(mesh.objects.get, delegates), *(rule for each in rules for rule in each))
    return (item.key, delegates, hosts, keys), (*objects, *services)


def service_inputs(mesh: Mesh, viewer: Viewer, service: Service | None) -> tuple[tuple[object, ...], ...]:
    """Return the same for the default route to a service."""
    rules = _rules(mesh, viewer, service)
    return (service and service.id, *(rule.key for rule in rules)), (service, *rules)


def virtual_service_dependencies(mesh: Mesh, item: ApiObject) -> tuple[str, ...]:
    """Return the dependency names of the routes of a VirtualService: itself, its delegates, and where they lead."""
    objects = (item.key, *delegates_of(item))
    return (*map(object_dependency, objects), *destination_hosts(http_routes(mesh, item)))


def _rules(mesh: Mesh, viewer: Viewer, service: Service | None) -> tuple[ApiObject, ...]:
    return destination_rules_for(mesh, service, viewer) if service is not None else ()


def _hashes(mesh: Mesh, viewer: Viewer, cluster: OutboundName) -> list[RouteAction.HashPolicy]:
    rules = _rules(mesh, viewer, destination_named(mesh, cluster.hostname, viewer))
    return hash_policies(policy_for(rules, cluster.subset, cluster.port)) if rules else []


def _default(mesh: Mesh, viewer: Viewer, port: int, service: Service) -> Route:
    cluster = OutboundName(port, "", service.id.hostname)
    action = RouteAction(cluster=str(cluster), hash_policy=_hashes(mesh, viewer, cluster))
    set_timeout(action, None)
    retries = retry_policy(mesh.config.default_http_retry_policy, hashed=bool(action.hash_policy))
    if retries is not None:
        action.retry_policy.CopyFrom(retries)
    operation = Decorator(operation=f"{service.id.hostname}:{port}/*")
    return Route(name=DEFAULT_ROUTE, match=RouteMatch(prefix="/"), route=action, decorator=operation)


def _route(item: ApiObject, http: HttpRoute, match: HttpMatch | None, around: Surroundings) -> Route:
    route = Route(name=_route_name(http, match), match=path_match(match), metadata=origin_of_route(item.key))
    if match is not None and match.stat_prefix:
        route.stat_prefix = match.stat_prefix
    set_outcome(route, http, around)
    route.decorator.operation = _operation(route, item.key.name, around.port)
    return route


def _route_name(http: HttpRoute, match: HttpMatch | None) -> str:
    own = http.name or ""
    return f"{own}.{match.name}" if match is not None and match.name else own


def _operation(route: Route, own_name: str, port: int) -> str:
    """Return how traces name a route, as Istio does: by its one destination, or else by its VirtualService."""
    match route.match.WhichOneof("path_specifier"):
        case "path":
            path = route.match.path
        case "safe_regex":
            path = route.match.safe_regex.regex
        case _:
            path = f"{route.match.prefix}*"
    only = parse_outbound(route.route.cluster)
    return f"{only.hostname}:{only.port}{path}" if only is not None else f"{own_name}:{port}{path}"
