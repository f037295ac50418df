"""Which cluster a host gets for a name, and what it depends on."""

from google.protobuf.message import Message

from hostmesh_api.delta import Resource
from hostmesh_api.identity import parse_identity
from hostmesh_controller.mesh.inbound import inbound_ports
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host, Resolution, Service, ServicePort
from hostmesh_controller.mesh.rules import destination_rules_for
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.mesh.visibility import service_at, service_named
from hostmesh_controller.names import (
    BLACK_HOLE,
    PASSTHROUGH,
    OutboundName,
    TcpName,
    inbound_cluster,
    parse_inbound,
    parse_outbound,
    parse_tcp,
)
from hostmesh_controller.xds import clusters, endpoints
from hostmesh_controller.xds.host_config import outbound_identity
from hostmesh_controller.xds.keeping import kept
from hostmesh_controller.xds.outbound import tcp_weights
from hostmesh_controller.xds.policy import policy_for, subset_labels


def wildcard(mesh: Mesh, host: str) -> tuple[str, ...]:
    inbound = sorted({port.number for port in inbound_ports(mesh, host)})
    return (BLACK_HOLE, PASSTHROUGH, *map(inbound_cluster, inbound))


def dependencies(mesh: Mesh, host: str, name: str) -> tuple[str, ...]:
    outbound = parse_outbound(name)
    if outbound is not None:
        return (outbound.hostname,)
    dialled = parse_tcp(name)
    if dialled is None:
        return ()
    viewer = mesh.viewer_of(host)
    service = service_at(mesh, dialled.address, dialled.port, viewer)
    if service is None:
        return (dialled.address,)
    port = service.port(dialled.port)
    assert port is not None
    targets = (parse_outbound(cluster) for cluster, _ in tcp_weights(mesh, service, port, viewer))
    return (dialled.address, service.id.hostname, *(target.hostname for target in targets if target))


def resource(mesh: Mesh, host: Host, name: str) -> Resource | None:
    if name == PASSTHROUGH:
        return kept(mesh, name, (), name, clusters.passthrough)
    if name == BLACK_HOLE:
        return kept(mesh, name, (), name, clusters.black_hole)
    inbound = parse_inbound(name)
    if inbound is not None:
        if all(port.number != inbound for port in inbound_ports(mesh, host.name)):
            return None
        ipv6 = mesh.runtime_of(host.name).ipv6
        return kept(mesh, (name, ipv6), (), name, lambda: clusters.inbound(inbound, ipv6=ipv6))
    outbound = parse_outbound(name)
    if outbound is not None:
        found = _outbound(mesh, host, outbound, None)
        return found or kept(mesh, ("missing", name), (), name, lambda: clusters.missing(name))
    dialled = parse_tcp(name)
    if dialled is None:
        return None
    target = dialled_target(mesh, mesh.viewer_of(host.name), dialled)
    return None if target is None else _outbound(mesh, host, target, dialled)


def dialled_target(mesh: Mesh, viewer: Viewer, dialled: TcpName) -> OutboundName | None:
    """Return what a destination that was dialled stands for, or None if it is not of the mesh."""
    service = service_at(mesh, dialled.address, dialled.port, viewer)
    port = service.port(dialled.port) if service else None
    if service is None or port is None:
        return None
    weights = tcp_weights(mesh, service, port, viewer)
    # Several destinations have a filter chain of their own; the address itself then stands for the service.
    return parse_outbound(weights[0][0]) if len(weights) == 1 else OutboundName(port.number, "", service.id.hostname)


def service_port(mesh: Mesh, viewer: Viewer, name: OutboundName) -> tuple[Service, ServicePort] | None:
    """Return the service and port of a cluster's name, or None if the viewer sees no such thing."""
    service = service_named(mesh, name.hostname, viewer)
    port = service.port(name.port) if service else None
    return None if service is None or port is None else (service, port)


def _outbound(mesh: Mesh, host: Host, name: OutboundName, dialled: TcpName | None) -> Resource | None:
    """Return the cluster of a service's port; `dialled`: under the name of the destination, and for bytes alone.

    It is the same for all hosts that see the same and call under the same identity.
    """
    viewer, caller = mesh.viewer_of(host.name), parse_identity(outbound_identity(mesh, host)).slug
    found = service_port(mesh, viewer, name)
    if found is None:
        return None
    service, port = found
    rules = destination_rules_for(mesh, service, viewer)
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
    return kept(mesh, key, inputs, str(dialled or name), make)
