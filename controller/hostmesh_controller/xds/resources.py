"""The heart: which resource a host gets for a type and a name, and what its content depends on.

What is the same for many hosts is built once: results are kept while the records they are made from are the same.
"""

from collections.abc import Callable
from typing import Final

from google.protobuf.message import Message

from hostmesh_api import wire
from hostmesh_api.delta import Resource
from hostmesh_api.identity import parse_identity
from hostmesh_controller.mesh.inbound import inbound_ports
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host, Resolution, Service, ServicePort
from hostmesh_controller.mesh.revision import host_dependency
from hostmesh_controller.mesh.rules import destination_rules_for, virtual_service_for, virtual_service_spec
from hostmesh_controller.mesh.visibility import service_at, service_for_header, service_named, view
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.names import (
    BLACK_HOLE,
    DNS_LISTENER,
    PASSTHROUGH,
    VIRTUAL_INBOUND,
    VIRTUAL_OUTBOUND,
    OutboundName,
    TcpName,
    VirtualHostName,
    candidates,
    canonical_address,
    inbound_cluster,
    parse_inbound,
    parse_outbound,
    parse_port,
    parse_port_listener,
    parse_tcp,
    parse_virtual_host,
    port_listener,
    split_header,
)
from hostmesh_controller.xds import clusters, dns, endpoints, listeners_inbound, listeners_outbound, routes
from hostmesh_controller.xds.encoding import absent
from hostmesh_controller.xds.encoding import resource as encoded
from hostmesh_controller.xds.host_config import host_config, outbound_identity
from hostmesh_controller.xds.outbound import destination_hostname, plan, tcp_weights
from hostmesh_controller.xds.policy import policy_for, subset_labels


def knows_host(mesh: Mesh, host: str) -> bool:
    """Tell whether there is a Host of that name; others get nothing."""
    return host in mesh.hosts


def wildcard(mesh: Mesh, host: str, type_url: str) -> tuple[str, ...]:
    """Return the names that a host gets without asking for them by name; none for types that are on demand only."""
    if not knows_host(mesh, host):
        return ()
    if type_url == wire.HOST_CONFIG_TYPE:
        return (wire.HOST_CONFIG_NAME,)
    if type_url == wire.LISTENER_TYPE:
        ports = plan(mesh, mesh.namespace_of(host)).http_ports
        return (DNS_LISTENER, VIRTUAL_INBOUND, VIRTUAL_OUTBOUND, *map(port_listener, ports))
    if type_url == wire.CLUSTER_TYPE:
        inbound = sorted({port.number for port in inbound_ports(mesh, host)})
        return (BLACK_HOLE, PASSTHROUGH, *map(inbound_cluster, inbound))
    return ()


def resource(mesh: Mesh, host: str, type_url: str, name: str) -> Resource | None:
    """Return what a host gets for a name, or None if there is no such thing for it.

    A virtual host that does not exist is a resource all the same: one that holds its alias alone, because Envoy answers
    404 on it at once, and waits where it is told that the resource was removed. But where Envoy has a virtual host of
    that name, it keeps that: then the name must be removed first. A cluster that a route names and that does not exist
    has no endpoints.
    """
    found = mesh.hosts.get(host)
    maker = _MAKERS.get(type_url)
    return None if found is None or maker is None else maker(mesh, found, name)


def audience(mesh: Mesh, host: str, type_url: str) -> str | None:
    """Return what hosts have in common that get the same resources of a type; None where each has its own."""
    return mesh.namespace_of(host) if type_url in _OF_NAMESPACE and knows_host(mesh, host) else None


def dependencies(mesh: Mesh, host: str, type_url: str, name: str) -> tuple[str, ...]:
    """Return the names whose change can change a resource, as `Touched.services` and `Touched.endpoints` hold them.

    Host names of services (existing or not), addresses, and the host's own view. They hold until one of them is
    touched: ask again then. Of resources that are a host's own (listeners, inbound clusters, HostConfig)
    `Touched.hosts` tells too. For endpoints (EDS) both sets count, for all other types `Touched.services` alone.
    """
    found = _DEPENDENCIES.get(type_url)
    return tuple(dict.fromkeys((host_dependency(host), *(found(mesh, host, name) if found else ()))))


def _host_config(mesh: Mesh, host: Host, name: str) -> Resource | None:
    if name != wire.HOST_CONFIG_NAME:
        return None
    inbound = _listener(mesh, host, VIRTUAL_INBOUND)
    version = inbound.version if inbound else ""
    return encoded(name, host_config(mesh, host, plan(mesh, mesh.namespace_of(host.name)), version))


def _listener(mesh: Mesh, host: Host, name: str) -> Resource | None:
    namespace, ipv6 = mesh.namespace_of(host.name), mesh.runtime_of(host.name).ipv6
    if name == VIRTUAL_INBOUND:
        ports = inbound_ports(mesh, host.name)
        return encoded(name, listeners_inbound.virtual_inbound(ports, mesh.settings.trust_domain, ipv6=ipv6))
    if name == DNS_LISTENER:
        seen = view(mesh, namespace)
        return _kept(mesh, (name, namespace), (seen,), name, lambda: dns.listener(namespace, seen.services, mesh.memo))
    planned = plan(mesh, namespace)
    key, inputs = (name, namespace, ipv6), (planned,)
    if name == VIRTUAL_OUTBOUND:
        make = listeners_outbound.virtual_outbound
        return _kept(mesh, key, inputs, name, lambda: make(mesh.settings, planned, ipv6=ipv6))
    port = parse_port_listener(name)
    if port is None or port not in planned.http_ports:
        return None
    return _kept(mesh, key, inputs, name, lambda: listeners_outbound.port_http(mesh.settings, planned, port, ipv6=ipv6))


def _cluster(mesh: Mesh, host: Host, name: str) -> Resource | None:
    if name == PASSTHROUGH:
        return _kept(mesh, name, (), name, clusters.passthrough)
    if name == BLACK_HOLE:
        return _kept(mesh, name, (), name, clusters.black_hole)
    inbound = parse_inbound(name)
    if inbound is not None:
        if all(port.number != inbound for port in inbound_ports(mesh, host.name)):
            return None
        ipv6 = mesh.runtime_of(host.name).ipv6
        return _kept(mesh, (name, ipv6), (), name, lambda: clusters.inbound(inbound, ipv6=ipv6))
    outbound = parse_outbound(name)
    if outbound is not None:
        found = _outbound_cluster(mesh, host, outbound, None)
        return found or _kept(mesh, ("missing", name), (), name, lambda: clusters.missing(name))
    dialled = parse_tcp(name)
    return None if dialled is None else _tcp_cluster(mesh, host, dialled)


def _tcp_cluster(mesh: Mesh, host: Host, dialled: TcpName) -> Resource | None:
    target = _tcp_target(mesh, mesh.namespace_of(host.name), dialled)
    return None if target is None else _outbound_cluster(mesh, host, target, dialled)


def _tcp_target(mesh: Mesh, namespace: str, dialled: TcpName) -> OutboundName | None:
    """Return what a destination that was dialled stands for, or None if it is not of the mesh."""
    service = service_at(mesh, dialled.address, dialled.port, namespace)
    port = service.port(dialled.port) if service else None
    if service is None or port is None:
        return None
    weights = tcp_weights(mesh, service, port, namespace)
    # Several destinations have a filter chain of their own; the address itself then stands for the service.
    return parse_outbound(weights[0][0]) if len(weights) == 1 else OutboundName(port.number, "", service.id.hostname)


def _outbound_cluster(mesh: Mesh, host: Host, name: OutboundName, dialled: TcpName | None) -> Resource | None:
    """Return the cluster of a service's port; `dialled`: under the name of the destination, and for bytes alone.

    It is the same for all hosts of a namespace that call under the same identity.
    """
    namespace, caller = mesh.namespace_of(host.name), parse_identity(outbound_identity(mesh, host)).slug
    found = _service_port(mesh, namespace, name)
    if found is None:
        return None
    service, port = found
    rules = destination_rules_for(mesh, service, namespace)
    if subset_labels(rules, name.subset) is None:
        return None
    of_service = mesh.endpoints_of(service)
    # A cluster that gets its endpoints by EDS is made from the identities alone: health changes leave it as it is.
    by_eds = service.resolution is Resolution.STATIC
    inputs = (service, *rules, of_service.identities if by_eds else of_service)

    def make() -> Message:
        http = dialled is None and (port.protocol.is_http or port.protocol.is_detected)
        policy = policy_for(rules, name.subset, port.number)
        trust_domain, identities = mesh.settings.trust_domain, of_service.identities
        target = clusters.Outbound(name, service, port, policy, identities, trust_domain, http, caller)
        placed = endpoints.endpoints_of(of_service, port.number, subset_labels(rules, name.subset) or {})
        return clusters.outbound(target, placed) if dialled is None else clusters.tcp(str(dialled), target, placed)

    key = (name, dialled, service.id, tuple(rule.key for rule in rules), caller)
    return _kept(mesh, key, inputs, str(dialled or name), make)


def _service_port(mesh: Mesh, namespace: str, name: OutboundName) -> tuple[Service, ServicePort] | None:
    service = service_named(mesh, name.hostname, namespace)
    port = service.port(name.port) if service else None
    return None if service is None or port is None else (service, port)


def _endpoints(mesh: Mesh, host: Host, name: str) -> Resource | None:
    """Return the endpoints of an outbound or of an on-demand TCP cluster.

    Each cluster has endpoints of its own name, though they may be the same ones: Envoy does not ask again for a name
    that it knows, and a second cluster would wait in vain for the first answer.
    """
    namespace = mesh.namespace_of(host.name)
    dialled = parse_tcp(name)
    outbound = parse_outbound(name) if dialled is None else _tcp_target(mesh, namespace, dialled)
    found = _service_port(mesh, namespace, outbound) if outbound else None
    if outbound is None or found is None or found[0].resolution is not Resolution.STATIC:
        return None
    service = found[0]
    rules = destination_rules_for(mesh, service, namespace) if outbound.subset else ()
    labels = subset_labels(rules, outbound.subset)
    if labels is None:
        return None
    of_service = mesh.endpoints_of(service)

    def make() -> Resource:
        return endpoints.assignment(name, endpoints.endpoints_of(of_service, outbound.port, labels))

    key = (wire.ENDPOINT_TYPE, name, outbound, service.id, tuple(rule.key for rule in rules))
    return mesh.memo.get(key, (of_service, *rules), make)


def _route(mesh: Mesh, _host: Host, name: str) -> Resource | None:
    port = parse_port(name)
    return None if port is None else _kept(mesh, (wire.ROUTE_TYPE, port), (), name, lambda: routes.table(port))


def _virtual_host(mesh: Mesh, host: Host, name: str) -> Resource | None:
    namespace = mesh.namespace_of(host.name)
    parsed = parse_virtual_host(name)
    service = _service_of_header(mesh, namespace, parsed) if parsed else None
    if parsed is None or service is None:
        return absent(name)
    item = virtual_service_for(mesh, service, namespace, tcp=False)
    # A destination without a port has the port of its service.
    named = (service_named(mesh, hostname, namespace) for hostname in _destinations(mesh, item))

    def make() -> Resource:
        return encoded(name, routes.virtual_host(mesh, namespace, parsed, service, item), aliases=(name,))

    key = (wire.VIRTUAL_HOST_TYPE, name, namespace, service.id, item.key if item else None)
    return mesh.memo.get(key, (service, item, *named), make)


def _destinations(mesh: Mesh, item: ApiObject | None) -> tuple[str, ...]:
    """Return the host names to which a VirtualService's HTTP routes send requests."""
    https = virtual_service_spec(item).http if item else ()
    return tuple(destination_hostname(mesh, item, each.destination) for http in https for each in http.route if item)


def _service_of_header(mesh: Mesh, namespace: str, name: VirtualHostName) -> Service | None:
    host, port = split_header(name.header)
    if port not in {None, name.port}:
        return None
    return service_for_header(mesh, _meanings(mesh, namespace, host), name.port, namespace)


def _meanings(mesh: Mesh, namespace: str, host: str) -> tuple[str, ...]:
    address = canonical_address(host)
    return (address,) if address else candidates(host, namespace, mesh.settings.domain)


def _kept(mesh: Mesh, key: object, inputs: tuple[object, ...], name: str, make: Callable[[], Message]) -> Resource:
    return mesh.memo.get(("resource", key), inputs, lambda: encoded(name, make()))


def _cluster_dependencies(mesh: Mesh, host: str, name: str) -> tuple[str, ...]:
    outbound = parse_outbound(name)
    if outbound is not None:
        return (outbound.hostname,)
    dialled = parse_tcp(name)
    if dialled is None:
        return ()
    namespace = mesh.namespace_of(host)
    service = service_at(mesh, dialled.address, dialled.port, namespace)
    if service is None:
        return (dialled.address,)
    port = service.port(dialled.port)
    assert port is not None
    targets = (parse_outbound(cluster) for cluster, _ in tcp_weights(mesh, service, port, namespace))
    return (dialled.address, service.id.hostname, *(target.hostname for target in targets if target))


def _virtual_host_dependencies(mesh: Mesh, host: str, name: str) -> tuple[str, ...]:
    parsed = parse_virtual_host(name)
    if parsed is None:
        return ()
    namespace = mesh.namespace_of(host)
    service = _service_of_header(mesh, namespace, parsed)
    meanings = _meanings(mesh, namespace, split_header(parsed.header)[0])
    if service is None:
        return meanings
    item = virtual_service_for(mesh, service, namespace, tcp=False)
    return (*meanings, service.id.hostname, *_destinations(mesh, item))


_MAKERS: Final[dict[str, Callable[[Mesh, Host, str], Resource | None]]] = {
    wire.HOST_CONFIG_TYPE: _host_config,
    wire.LISTENER_TYPE: _listener,
    wire.CLUSTER_TYPE: _cluster,
    wire.ENDPOINT_TYPE: _endpoints,
    wire.ROUTE_TYPE: _route,
    wire.VIRTUAL_HOST_TYPE: _virtual_host,
}
_OF_NAMESPACE: Final = frozenset({wire.ENDPOINT_TYPE, wire.VIRTUAL_HOST_TYPE})
"""Types whose resources depend on the host's namespace alone."""
_DEPENDENCIES: Final[dict[str, Callable[[Mesh, str, str], tuple[str, ...]]]] = {
    wire.CLUSTER_TYPE: _cluster_dependencies,
    wire.ENDPOINT_TYPE: _cluster_dependencies,
    wire.VIRTUAL_HOST_TYPE: _virtual_host_dependencies,
}
