"""ROUTE_CONFIGURATION, VIRTUAL_HOST and HTTP_ROUTE patches."""

from collections.abc import Collection
from functools import partial
from typing import Final

from envoy.config.route.v3.route_components_pb2 import Route, VirtualHost
from envoy.config.route.v3.route_pb2 import RouteConfiguration

from hostmesh_controller.model.envoy_filter import RouteConfigurationMatch
from hostmesh_controller.names import parse_inbound, parse_port
from hostmesh_controller.xds.patch_merge import apply_merge, changed_list, refill
from hostmesh_controller.xds.patch_set import GATEWAY, Patch, PatchSet

TARGETS: Final = ("ROUTE_CONFIGURATION", "VIRTUAL_HOST", "HTTP_ROUTE")
_ACTIONS: Final = {"route": "ROUTE", "redirect": "REDIRECT", "direct_response": "DIRECT_RESPONSE"}


def patch_routes(
    table: RouteConfiguration, patches: PatchSet, contexts: frozenset[str], gateway_ports: Collection[int] = ()
) -> None:
    """Change a table of routes in place.

    Args:
        table: the table, with the virtual hosts that are in it.
        patches: of the host.
        contexts: what the table is for.
        gateway_ports: the ports by which a gateway's table is known beside the one in its name.
    """

    def matches(patch: Patch) -> bool:
        return patch.is_for(contexts) and table_matches(table.name, patch, contexts, gateway_ports)

    for patch in patches.of("ROUTE_CONFIGURATION"):
        if patch.merges and matches(patch):
            apply_merge(patch, table)
    if table.HasField("vhds"):
        # Its virtual hosts are asked for one by one, and patched one by one.
        return
    hosts = [patch for patch in patches.of("VIRTUAL_HOST") if matches(patch)]
    routes = [patch for patch in patches.of("HTTP_ROUTE") if matches(patch)]
    left = [patched for host in table.virtual_hosts if (patched := patch_virtual_host(host, hosts, routes)) is not None]
    left += [patch.value for patch in hosts if patch.operation == "ADD" and isinstance(patch.value, VirtualHost)]
    if hosts or routes:
        refill(table.virtual_hosts, left)


def table_matches(name: str, patch: Patch, contexts: frozenset[str], gateway_ports: Collection[int] = ()) -> bool:
    """Tell whether a table of routes is meant, by its name alone."""
    match = patch.route_configuration
    if match is None:
        return True
    if match.name and match.name != name:
        return False
    if GATEWAY in contexts:
        return _gateway_matches(name, match, gateway_ports)
    port = parse_inbound(name) or parse_port(name)
    return not match.port_number or match.port_number == port


def _gateway_matches(name: str, match: RouteConfigurationMatch, ports: Collection[int]) -> bool:
    """Compare with what a gateway's table is named by: `http.PORT` or `https.PORT.PORTNAME.GATEWAY.NAMESPACE`."""
    kind, *parts = name.split(".")
    known = {*ports, parse_port(parts[0]) if parts else None}
    port_name = gateway = ""
    if kind == "https" and len(parts) >= 4:
        port_name, gateway = parts[1], f"{parts[3]}/{parts[2]}"
    return (
        match.port_name in {"", port_name}
        and match.gateway in {"", gateway}
        and (not match.port_number or match.port_number in known)
    )


def patch_virtual_host(host: VirtualHost, hosts: list[Patch], routes: list[Patch]) -> VirtualHost | None:
    """Return a virtual host as VIRTUAL_HOST and HTTP_ROUTE patches of its table leave it, None if they remove it.

    The one that is given may be changed in place.
    """
    for patch in hosts:
        if patch.operation == "ADD" or not virtual_host_matches(host, patch):
            continue
        if patch.operation == "REMOVE":
            return None
        if patch.merges:
            apply_merge(patch, host)
        elif patch.operation == "REPLACE":
            assert isinstance(patch.value, VirtualHost)
            replacement = VirtualHost()
            replacement.CopyFrom(patch.value)
            host = replacement
    mine = [patch for patch in routes if virtual_host_matches(host, patch)]
    if mine:
        _patch_routes_of(host, mine)
    return host


def virtual_host_matches(host: VirtualHost, patch: Patch) -> bool:
    match = patch.route_configuration.vhost if patch.route_configuration is not None else None
    if match is None:
        return True
    return match.name in {"", host.name} and (not match.domain_name or match.domain_name in host.domains)


def _patch_routes_of(host: VirtualHost, patches: list[Patch]) -> None:
    routes = [route for route in host.routes if _patch_route(route, patches)]
    for patch in patches:
        has_match = _names_route(patch)
        if patch.operation == "INSERT_FIRST" and has_match and not any(_route_matches(each, patch) for each in routes):
            continue
        if patch.operation in {"ADD", "INSERT_FIRST", "INSERT_BEFORE", "INSERT_AFTER"}:
            routes = changed_list(patch, routes, partial(_route_matches, patch=patch), has_match=has_match)
    refill(host.routes, routes)


def _patch_route(route: Route, patches: list[Patch]) -> bool:
    """Change a route in place; return whether it is still there."""
    for patch in patches:
        if patch.operation in {"REMOVE", "MERGE", "MERGE_AND_REPLACE_LIST"} and _route_matches(route, patch):
            if patch.operation == "REMOVE":
                return False
            apply_merge(patch, route)
    return True


def _names_route(patch: Patch) -> bool:
    match = patch.route_configuration
    return match is not None and match.vhost is not None and match.vhost.route is not None


def _route_matches(route: Route, patch: Patch) -> bool:
    vhost = patch.route_configuration.vhost if patch.route_configuration is not None else None
    match = vhost.route if vhost is not None else None
    if match is None:
        return True
    if match.name and match.name != route.name:
        return False
    # As in Istio, a route that does something else (a non-forwarding one) is not told apart by it.
    action = _ACTIONS.get(route.WhichOneof("action") or "")
    return match.action == "ANY" or action in {None, match.action}
