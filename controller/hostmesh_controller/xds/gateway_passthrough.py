"""AUTO_PASSTHROUGH: mutual TLS of the mesh that a gateway passes on to the service that the server name tells.

Names are Istio's: a cluster `outbound_.PORT_.SUBSET_.HOST` is the service as it is, without TLS of its own. There is a
filter chain for each, as in Istio: callers from outside may say any name, and one that is none's must cost nothing.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_components_pb2 import FilterChain, FilterChainMatch
from envoy.service.discovery.v3.discovery_pb2 import Resource as WireResource

from hostmesh_api.delta import Resource
from hostmesh_controller.mesh.destination_rules import destination_rules_for, spec_of
from hostmesh_controller.mesh.gateways import NO_GATEWAYS
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.mesh.visibility import view
from hostmesh_controller.names import OutboundName, host_matches, parse_port
from hostmesh_controller.xds import filters, of_clusters, of_endpoints, tls
from hostmesh_controller.xds.encoding import resource as encoded

_PREFIX: Final = "outbound_."


def parse_server_name(name: str) -> OutboundName | None:
    """Return what `outbound_.PORT_.SUBSET_.HOST` stands for, or None if it is no such name."""
    parts = name.split("_.", 3)
    if len(parts) != 4 or not name.startswith(_PREFIX) or not parts[3]:
        return None
    port = parse_port(parts[1])
    return None if port is None else OutboundName(port, parts[2], parts[3])


def passthrough_chains(mesh: Mesh, viewer: Viewer, hosts: Iterable[str]) -> Iterator[FilterChain]:
    """Yield the chains of every port and subset of the mesh's services that one of the hosts covers."""
    patterns = tuple(hosts)
    for service in view(mesh, viewer).services:
        # A wildcard within a server name is none to Envoy: it would refuse the whole listener.
        if service.external or service.is_wildcard:
            continue
        if not any(host_matches(pattern, service.id.hostname) for pattern in patterns):
            continue
        rules = map(spec_of, destination_rules_for(mesh, service, viewer))
        subsets = dict.fromkeys(subset.name for rule in rules for subset in rule.subsets)
        for port in service.ports:
            for subset in ("", *subsets):
                yield _chain(OutboundName(port.number, subset, service.id.hostname).server_name)


def _chain(name: str) -> FilterChain:
    # Only a proxy of the mesh is let through, to a port that demands its mutual TLS.
    match = FilterChainMatch(server_names=[name.lower()], application_protocols=tls.MESH_ANY)
    return FilterChain(filter_chain_match=match, filters=filters.tcp_weighted(name, [(name, 1)]))


def cluster_dependencies(mesh: Mesh, host: str, name: str) -> tuple[str, ...]:
    target = parse_server_name(name)
    return () if target is None else of_clusters.dependencies(mesh, host, str(target))


def cluster(mesh: Mesh, host: Host, name: str) -> Resource | None:
    """Return the cluster of a server name, on a host with a gateway that passes it on: bytes as they come."""
    target = parse_server_name(name)
    if target is None or not _passes_on(mesh, host, target):
        return None
    made = of_clusters.resource(mesh, host, str(target))
    if made is None:
        return None
    message = Cluster.FromString(WireResource.FromString(made.body).resource.value)
    message.name = name
    message.ClearField("transport_socket")
    message.ClearField("transport_socket_matches")
    message.ClearField("typed_extension_protocol_options")
    if message.HasField("load_assignment"):
        message.load_assignment.cluster_name = name
    return encoded(name, message)


def _passes_on(mesh: Mesh, host: Host, target: OutboundName) -> bool:
    ports = mesh.gateways.get(host.name, NO_GATEWAYS).ports
    servers = (served for port in ports for served in port.servers)
    return any(
        served.server.tls is not None
        and served.server.tls.mode == "AUTO_PASSTHROUGH"
        and any(host_matches(pattern, target.hostname) for pattern in served.server_names)
        for served in servers
    )


def endpoints(mesh: Mesh, host: Host, name: str) -> Resource | None:
    """Return the endpoints behind a server name: those that speak mutual TLS, which is what is passed on."""
    target = parse_server_name(name)
    made = of_endpoints.resource(mesh, host, str(target)) if target else None
    if made is None:
        return None
    message = ClusterLoadAssignment.FromString(WireResource.FromString(made.body).resource.value)
    message.cluster_name = name
    for locality in message.endpoints:
        speaking = [each for each in locality.lb_endpoints if not each.HasField("metadata")]
        del locality.lb_endpoints[:]
        locality.lb_endpoints.extend(speaking)
    return encoded(name, message)
