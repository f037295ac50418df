"""Which cluster a host gets for a name, and what it depends on."""

from collections.abc import Iterable, Mapping
from functools import partial

from google.protobuf.message import Message

from hostmesh_api.delta import Resource
from hostmesh_api.identity import parse_identity
from hostmesh_controller.mesh import merging
from hostmesh_controller.mesh.destination_rules import destination_rules_for
from hostmesh_controller.mesh.inbound import inbound_ports
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.peers import selects
from hostmesh_controller.mesh.records import Endpoint, Endpoints, Host, NamedEndpoint, Resolution, Service, ServicePort
from hostmesh_controller.mesh.selection import endpoint_port
from hostmesh_controller.mesh.step import BLOCKS
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.mesh.visibility import destination_named, service_at
from hostmesh_controller.model.objects import ApiObject, ObjectKey
from hostmesh_controller.names import (
    BLACK_HOLE,
    PASSTHROUGH,
    OutboundName,
    TcpName,
    parse_inbound,
    parse_outbound,
    parse_tcp,
)
from hostmesh_controller.xds import clusters, custom_authorization, health_checks, inbound_clusters, rate_limits
from hostmesh_controller.xds.cluster_target import Outbound, is_passthrough
from hostmesh_controller.xds.encoding import resource as encoded
from hostmesh_controller.xds.endpoints import endpoints_of
from hostmesh_controller.xds.host_config import outbound_identity
from hostmesh_controller.xds.keeping import kept
from hostmesh_controller.xds.localities import Group, Place, Spread, grouped, place_of, spread_of
from hostmesh_controller.xds.origins import origin_of_cluster
from hostmesh_controller.xds.outbound import mirror_clusters, tcp_weights
from hostmesh_controller.xds.outbound_identities import outbound_identities
from hostmesh_controller.xds.policy import policy_for, subset_labels

BY_NAME = frozenset({Resolution.DNS, Resolution.DNS_ROUND_ROBIN})


def wildcard(mesh: Mesh, host: str) -> tuple[str, ...]:
    inbound = (port.cluster for port in inbound_ports(mesh, host))
    copied = mirror_clusters(mesh, host)
    return tuple(dict.fromkeys((BLACK_HOLE, PASSTHROUGH, *inbound, *copied, *asked_by_filters(mesh, host))))


def asked_by_filters(mesh: Mesh, host: str) -> tuple[str, ...]:
    """Return the clusters that filters of a host's proxy call by themselves: rate limit services and authorizers."""
    found = mesh.hosts.get(host)
    if found is None:
        return ()
    return (*rate_limits.services_of(mesh, found), *custom_authorization.services_of(mesh, found))


def dependencies(mesh: Mesh, host: str, name: str) -> tuple[str, ...]:
    outbound = parse_outbound(name)
    if outbound is not None:
        return (outbound.hostname,)
    dialled = parse_tcp(name)
    if dialled is None:
        return ()
    viewer = mesh.viewer_of(host)
    service = service_at(mesh, dialled.address, dialled.port, viewer)
    owners = mesh.services_by_address.get(dialled.address, ())
    exact = any(mesh.services[item].port(dialled.port) for item in owners)
    found_by = (dialled.address,) if exact else (dialled.address, BLOCKS)
    if service is None:
        return found_by
    port = service.port(dialled.port)
    assert port is not None
    targets = (parse_outbound(cluster) for cluster, _ in tcp_weights(mesh, service, port, viewer))
    return (*found_by, service.id.hostname, *(target.hostname for target in targets if target))


def resource(mesh: Mesh, host: Host, name: str) -> Resource | None:
    if name == PASSTHROUGH:
        return kept(mesh, name, (), name, lambda: clusters.passthrough(mesh.config))
    if name == BLACK_HOLE:
        return kept(mesh, name, (), name, clusters.black_hole)
    if parse_inbound(name) is not None:
        return _inbound(mesh, host, name)
    outbound = parse_outbound(name)
    if outbound is not None:
        # What does not exist is not kept: a peer may ask for any number of such names.
        return _outbound(mesh, host, outbound, None) or encoded(name, clusters.missing(name))
    dialled = parse_tcp(name)
    if dialled is None:
        return None
    target = dialled_target(mesh, mesh.viewer_of(host.name), dialled)
    return None if target is None else _outbound(mesh, host, target, dialled)


def _inbound(mesh: Mesh, host: Host, name: str) -> Resource | None:
    port = next((port for port in inbound_ports(mesh, host.name) if port.cluster == name), None)
    if port is None:
        return None
    ipv6, stat = mesh.runtime_of(host.name).ipv6, inbound_clusters.statistics_name(mesh, port)
    at = inbound_clusters.address_of(port, mesh.config)
    own = None if at is None else (port.workload.address, at.SerializeToString(deterministic=True))
    key = ("inbound", name, ipv6, stat, own, port.protocol)
    make = partial(inbound_clusters.inbound, port, mesh.config, stat, ipv6=ipv6)
    return kept(mesh, key, (port.listener, port.pool), name, make)


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
    service = destination_named(mesh, name.hostname, viewer)
    port = service.port(name.port) if service else None
    return None if service is None or port is None else (service, port)


def _outbound(mesh: Mesh, host: Host, name: OutboundName, dialled: TcpName | None) -> Resource | None:
    caller = parse_identity(outbound_identity(mesh, host)).slug
    return for_caller(mesh, mesh.viewer_of(host.name), caller, name, dialled, outbound_identities(mesh, host))


def for_caller(
    mesh: Mesh,
    viewer: Viewer,
    caller: str,
    name: OutboundName,
    dialled: TcpName | None = None,
    callers: tuple[str, ...] = (),
) -> Resource | None:
    """Return the cluster of a service's port; `dialled`: under the name of the destination, and for bytes alone.

    It is the same for all hosts that see the same and call under the same identity, whose directory `caller` is.
    `callers` are the SPIFFE IDs of programs that have one of their own.
    """
    found = service_port(mesh, viewer, name)
    if found is None:
        return None
    service, port = found
    rules = rules_of(mesh, service, viewer)
    labels = subset_labels(rules, name.subset)
    if labels is None or (name.subset and service.resolution is Resolution.DYNAMIC_DNS):
        return None
    policy = policy_for(rules, name.subset, port.number)
    spread = spread_of(policy, mesh.config)
    of_service = merging.endpoints_of(mesh, service)
    place = place_of(viewer, spread) if service.resolution in BY_NAME else Place()
    groups = _named_groups(service, port, of_service, labels, spread, place)
    if service.resolution in BY_NAME and not groups:
        return None
    # Only what names a credential depends on where the caller has it.
    namespace = viewer.namespace if policy.tls is not None and policy.tls.credential_name else ""
    # A cluster that gets its endpoints by EDS is made from the identities alone: health changes leave it as it is.
    in_the_cluster = service.resolution in BY_NAME or is_passthrough(policy)
    check = health_checks.check_of(mesh, service, port, viewer)
    inputs = (service, rules, check, of_service if in_the_cluster else of_service.identities)

    def make() -> Message:
        target = Outbound(
            name=name,
            service=service,
            port=port,
            policy=policy,
            config=mesh.config,
            identities=of_service.identities,
            trust_domain=mesh.settings.trust_domain,
            http=dialled is None and (port.protocol.is_http or port.protocol.is_detected),
            caller=caller,
            callers=callers,
            namespace=namespace,
            spread=spread,
            groups=groups,
            all_tls=_all_tls(of_service, port),
        )
        return _made(target, dialled, rules, check)

    where = (place.locality, frozenset(place.labels.items()))
    key = (name, dialled, service.id, keys_of(rules), caller, callers, namespace, *where)
    return kept(mesh, key, inputs, str(dialled or name), make)


def _made(target: Outbound, dialled: TcpName | None, rules: Iterable[ApiObject], check: ApiObject | None) -> Message:
    cluster = clusters.outbound(target) if dialled is None else clusters.tcp(str(dialled), target)
    cluster.metadata.CopyFrom(origin_of_cluster(target.service, target.name.subset, keys_of(rules)))
    if check is not None:
        health_checks.set_health_check(cluster, check, target.service, target.port)
    return cluster


def rules_of(mesh: Mesh, service: Service, viewer: Viewer) -> tuple[ApiObject, ...]:
    """Return the DestinationRules that hold, as a tuple that is the same object for as long as they are."""
    rules = destination_rules_for(mesh, service, viewer)
    return mesh.memo.get(("rules", keys_of(rules)), rules, lambda: rules)


def keys_of(rules: Iterable[ApiObject]) -> tuple[ObjectKey, ...]:
    return tuple(rule.key for rule in rules)


def _named_groups(
    service: Service,
    port: ServicePort,
    of_service: Endpoints,
    labels: Mapping[str, str],
    how: Spread | None,
    place: Place,
) -> tuple[Group, ...]:
    """Return the endpoints that a cluster looks up in DNS itself; none for other clusters."""
    if service.resolution not in BY_NAME:
        return ()
    named = [_named(item, port) for item in merging.named_endpoints(service, port) if selects(labels, item.labels)]
    found = endpoints_of(of_service, port.number, labels)
    if service.resolution is Resolution.DNS_ROUND_ROBIN:
        # Envoy takes one name there.
        return grouped([*named, *found][:1], how, place)
    return grouped([*named, *found], how, place)


def _named(item: NamedEndpoint, port: ServicePort) -> Endpoint:
    number = endpoint_port(port, item.ports) or port.number
    return Endpoint(item.address, number, item.labels, item.weight, item.locality, tls=False)


def _all_tls(of_service: Endpoints, port: ServicePort) -> bool:
    found = endpoints_of(of_service, port.number, {})
    return bool(found) and all(endpoint.tls for endpoint in found)
