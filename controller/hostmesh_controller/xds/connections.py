"""Where connections to a service's port go: the tcp and tls routes of VirtualServices, by Istio's rules."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from hostmesh_controller.mesh.compiled import blocks, single_addresses
from hostmesh_controller.mesh.delegates import full_destination
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Service, ServicePort
from hostmesh_controller.mesh.sidecars import beyond
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.mesh.virtual_services import MESH_ONLY, connection_rules, virtual_service_spec
from hostmesh_controller.mesh.visibility import destination_named
from hostmesh_controller.model.domains import is_partial_wildcard
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.model.protocols import Protocol
from hostmesh_controller.model.virtual_service import ConnectionMatch, Destination, RouteDestination
from hostmesh_controller.names import OutboundName, canonical_prefix, gateway_name

Weights = tuple[tuple[str, int], ...]
"""Clusters with their weights; none at all: connections are closed."""
ANY_NAME: Final = "*"


@dataclass(frozen=True, slots=True)
class Way:
    """Connections that go their own way.

    `prefixes` are where they are dialled to, empty: anywhere. `server_names` are of their TLS handshakes, empty: any
    or none.
    """

    prefixes: tuple[str, ...]
    server_names: tuple[str, ...]
    to: Weights


@dataclass(frozen=True, slots=True)
class Ways:
    """Where connections to one port go: `special` ones first, the others `by_default` where the port is dialled.

    `routed`: because a route says so; else the default is the port's own cluster.
    """

    special: tuple[Way, ...]
    by_default: Weights
    routed: bool = False

    @property
    def need_chains(self) -> bool:
        """Whether filter chains are needed; else connections go to the cluster of the address that was dialled.

        A route has one even if it leads to one cluster: while its weights change from and to zero the listener stays,
        and with it the connections of others on the port.
        """
        return bool(self.special) or self.routed


def is_tls(port: ServicePort) -> bool:
    """Tell whether a port's programs speak TLS themselves: then the server name of the handshake is looked at."""
    return port.protocol in {Protocol.TLS, Protocol.HTTPS}


def ways(mesh: Mesh, service: Service, port: ServicePort, viewer: Viewer) -> Ways:
    """Return where a viewer's connections to a port go, which is not of plain HTTP."""
    rules = connection_rules(mesh, service, viewer)
    if not is_tls(port):
        return _tcp_ways(mesh, rules, service, port, viewer)
    special = _distinct(_tls_ways(mesh, rules, service, port, viewer))
    # As in Istio: where some server names have routes the others have none.
    if special:
        return Ways(special, (), routed=True)
    return own_ways(service, port, anywhere=not beyond(mesh, viewer).is_open)


def own_ways(service: Service, port: ServicePort, *, anywhere: bool) -> Ways:
    """Return where connections to a port go that has no routes.

    `anywhere`: TLS is told by its server name whatever address is dialled, as in Istio. Where other destinations are
    simply passed on nobody needs that: whoever found the real address of a service gets there.
    """
    own = _own(service, port)
    if not is_tls(port):
        return Ways((), own)
    by_name = _by_own_name(service, own)
    names = _server_names((service.id.hostname,))
    if anywhere and names is not None and all(way.prefixes for way in by_name):
        by_name = (*by_name, Way((), names, own))
    return Ways(by_name, own)


def _own(service: Service, port: ServicePort) -> Weights:
    return ((str(OutboundName(port.number, "", service.id.hostname)), 1),)


def prefixes_of(service: Service) -> tuple[str, ...]:
    """Return everything under which a service is dialled: its blocks and addresses, then its virtual addresses."""
    virtual = (address for address in single_addresses(service) if address in {service.vip4, service.vip6})
    return (*service.addresses, *virtual)


def destination_cluster(mesh: Mesh, destination: Destination, called_port: int, viewer: Viewer) -> OutboundName:
    """Return the cluster of a VirtualService's destination, which has its full name.

    Without a port it is the destination's only port, or else the one that was called. A destination that does not
    exist has a name all the same: there is no such cluster, and requests are answered 503.
    """
    number = destination.port.number if destination.port else None
    if number is None:
        service = destination_named(mesh, destination.host, viewer)
        number = service.ports[0].number if service is not None and len(service.ports) == 1 else called_port
    return OutboundName(number, destination.subset or "", destination.host)


def _by_own_name(service: Service, own: Weights) -> tuple[Way, ...]:
    # An address does not tell services apart that share a block, or that have none at all: the server name does.
    shared = blocks(service)
    names = _server_names((service.id.hostname,))
    if names is None or (not shared and prefixes_of(service)):
        return ()
    return (Way(shared, names, own),)


def _tls_ways(
    mesh: Mesh, rules: Iterable[ApiObject], service: Service, port: ServicePort, viewer: Viewer
) -> Iterator[Way]:
    for item in rules:
        for route in virtual_service_spec(item).tls:
            for match in route.match:
                if _holds(item, match, port.number, viewer):
                    dialled, names = _dialled(service, match.destination_subnets), _server_names(match.sni_hosts)
                    if dialled is not None and names is not None:
                        yield Way(dialled, names, _weights(mesh, item, route.route, port, viewer))


def _tcp_ways(mesh: Mesh, rules: Iterable[ApiObject], service: Service, port: ServicePort, viewer: Viewer) -> Ways:
    special: list[Way] = []
    for item in rules:
        for route in virtual_service_spec(item).tcp:
            to = _weights(mesh, item, route.route, port, viewer)
            holding = [match for match in route.match if _holds(item, match, port.number, viewer)]
            if not route.match or any(not match.destination_subnets for match in holding):
                return Ways(_distinct(special), to, routed=True)
            subnets = tuple(subnet for match in holding for subnet in match.destination_subnets)
            dialled = _dialled(service, subnets) if subnets else None
            if dialled is not None:
                special.append(Way(dialled, (), to))
    return Ways(_distinct(special), _own(service, port))


def _holds(item: ApiObject, match: ConnectionMatch, port: int, viewer: Viewer) -> bool:
    gateways = {gateway_name(name, item.key.namespace) for name in match.gateways}
    return (
        match.port in {None, port}
        and (not gateways or not MESH_ONLY.isdisjoint(gateways))
        and viewer.selected_by(match.source_labels)
        and (match.source_namespace or viewer.namespace) == viewer.namespace
    )


def _dialled(service: Service, subnets: Iterable[str]) -> tuple[str, ...] | None:
    """Return where a service is dialled inside the subnets, if any are given; None: nowhere."""
    own = prefixes_of(service)
    wanted = [ip_network(each) for each in map(canonical_prefix, subnets) if each is not None]
    if not wanted:
        return own
    found = wanted if not own else [both for a in map(ip_network, own) for b in wanted if (both := _both(a, b))]
    return tuple(dict.fromkeys(map(str, found))) or None


def _both(one: IPv4Network | IPv6Network, other: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network | None:
    if one.version != other.version or not one.overlaps(other):
        return None
    return max(one, other, key=lambda block: block.prefixlen)


def _server_names(hosts: Iterable[str]) -> tuple[str, ...] | None:
    """Return what to ask of a handshake: nothing for every name; None if Envoy can tell none of the names."""
    names = tuple(dict.fromkeys(host.lower() for host in hosts))
    # Envoy has no pattern for every name: it is then not asked for.
    if ANY_NAME in names:
        return ()
    # With a wildcard of a part of a label it refuses the whole listener.
    return tuple(name for name in names if not is_partial_wildcard(name)) or None


def _distinct(found: Iterable[Way]) -> tuple[Way, ...]:
    """Return ways without those that can take no connection because an earlier one has the same condition."""
    result: dict[tuple[tuple[str, ...], tuple[str, ...]], Way] = {}
    for way in found:
        result.setdefault((way.prefixes, way.server_names), way)
    return tuple(result.values())


def _weights(
    mesh: Mesh, item: ApiObject, routes: tuple[RouteDestination, ...], port: ServicePort, viewer: Viewer
) -> Weights:
    def cluster(destination: Destination) -> str:
        full = full_destination(destination, item.key.namespace, mesh.settings.domain)
        return str(destination_cluster(mesh, full, port.number, viewer))

    if len(routes) == 1:
        return ((cluster(routes[0].destination), 1),)
    return tuple((cluster(route.destination), route.weight) for route in routes if route.weight)


def tcp_weights(mesh: Mesh, service: Service, port: ServicePort, viewer: Viewer) -> Weights:
    """Return the clusters, with weights, to which connections go that are dialled to a port; none: they are closed."""
    return ways(mesh, service, port, viewer).by_default
